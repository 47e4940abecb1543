"""The store of trajectories on disk, which loses no finished shard when its process is killed.

A store is a folder: shards (`shard-00000.safetensors`), numbered by the chunk of tasks that they hold and never changed, and
an `index.json` that names them with their checksums and is replaced by one rename after each shard. A shard that the index
does not name is not part of the store. Any process may write a shard; the index is written by the process that holds the lock.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.trajectories.shards import (
    CURE,
    STORAGE,
    first_difference,
    index_bytes,
    layout,
    read_index,
    sealed_index,
    shard_file,
    shard_tensors,
    within,
)
from mcdi.utils.checksums import checksum
from mcdi.utils.files import only_writer, write_bytes, write_tensors
from mcdi.utils.urls import url_or_path


@dataclass(frozen=True, eq=False)
class Trajectories:
    """The recorded points of N tasks, in memory; weights are not standardised. Raises McdiError when a column does not
    have N rows, or has the name of a field."""

    targets: Tensor  # (N, k, U, D) float32: local targets theta_d .. theta_kd
    mask: Tensor  # (N, U) bool: which units exist
    seeds: Tensor  # (N,) int64: with the split they decide the task
    scores: Tensor  # (N, k) score on the task's query set at every target
    losses: Tensor  # (N, k) training loss at every target
    epochs: Tensor  # (N, k) int64: epoch of every target
    columns: Mapping[str, Tensor] = field(default_factory=dict)  # (N, ...) each: further values of a task

    def __post_init__(self) -> None:
        if taken := [name for name in self.columns if name in _FIELDS]:
            raise McdiError(f"a column cannot be called {taken[0]!r}, a name that every store uses: choose another name")
        for name, tensor in self.tensors().items():
            if tensor.shape[:1] != self.seeds.shape:
                given = f"{name} has shape {tuple(tensor.shape)}, but there are {len(self)} tasks"
                raise McdiError(f"{given}: give it one row for each task")

    def __len__(self) -> int:
        return len(self.seeds)

    def tensors(self) -> dict[str, Tensor]:
        """Fields and columns under their names, as a shard holds them."""
        return {**{n: getattr(self, n) for n in _FIELDS}, **self.columns}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Trajectories":
        """Inverse of `tensors`."""
        return cls(**{n: tensors[n] for n in _FIELDS}, columns={n: t for n, t in tensors.items() if n not in _FIELDS})

    def rows(self, index: Tensor | slice) -> "Trajectories":
        """The tasks at `index`, in its order."""
        return self.from_tensors({n: t[index] for n, t in self.tensors().items()})

    def parts(self) -> Iterator["Trajectories"]:
        """Everything as one part, where a store yields its shards."""
        yield self

    @classmethod
    def cat(cls, parts: Sequence["Trajectories"]) -> "Trajectories":
        """All tasks of several parts of the same columns and shapes."""
        tensors = [part.tensors() for part in parts]
        return cls.from_tensors({n: torch.cat([t[n] for t in tensors]) for n in tensors[0]})


_FIELDS = ("targets", "mask", "seeds", "scores", "losses", "epochs")


class Stored(Protocol):
    """The training data of a method: trajectories in memory, or a store on disk that may be larger than memory."""

    def __len__(self) -> int: ...
    def rows(self, index: Tensor, /) -> Trajectories: ...
    def parts(self) -> Iterator[Trajectories]: ...


class TrajectoryStore:
    """A folder of trajectories that can be appended to and reopened, or a finished store at a URL, which is read-only.

    Rows are in the order of the shards' numbers. With meta["storage"] = "bfloat16" targets take half the space; they are read
    as float32. `read`, `parts` and `rows` verify every shard before they return any of it.

    Args:
        location: a folder, or a URL (file://, memory://, s3://, hf://, ...).

    Raises:
        McdiError: when there is no store or its index is damaged; when a shard that is read is missing, changed, holds NaN or
            infinite weights, or has other columns than the first.
    """

    def __init__(self, location: str | Path) -> None:
        self.location = url_or_path(location)
        self.index: dict[str, Any] = {}
        self._writing = False
        self._layout: dict[str, tuple[torch.dtype, torch.Size]] = {}
        self._mapped: dict[str, dict[str, Tensor]] = {}  # by checksum: shards that `rows` has verified, mapped into memory
        self.refresh()

    @classmethod
    def create(cls, folder: Path, meta: Mapping[str, Any]) -> "TrajectoryStore":
        """A new store, or the existing one. Raises McdiError when the existing one was made with another `meta`."""
        meta = json.loads(json.dumps(meta))
        if meta.get("storage", "float32") not in STORAGE:
            raise McdiError(f"unknown storage {meta['storage']!r}: choose {' or '.join(STORAGE)}")
        if not (folder / "index.json").exists():
            with only_writer(folder):
                if not (folder / "index.json").exists():  # another process may have been faster
                    write_bytes(folder / "index.json", index_bytes(sealed_index(meta, [])))
        store = cls(folder)
        if name := first_difference(meta, store.meta):
            made = f"{folder} holds trajectories made with {name} = {store.meta.get(name)!r}"
            raise McdiError(f"{made}, not {meta.get(name)!r}: delete that folder or choose another --out")
        return store

    @classmethod
    def open(cls, location: str | Path) -> "TrajectoryStore":
        """The existing store at a location: see the class."""
        return cls(location)

    def refresh(self) -> None:
        """Read the index again, with the shards that another process has committed since."""
        self._use(read_index(self.location))

    def _use(self, index: dict[str, Any]) -> None:
        if index == self.index:
            return
        self.index = index
        tasks = torch.tensor([shard["tasks"] for shard in self.shards], dtype=torch.int64)
        self._tasks, self._ends = int(tasks.sum()), tasks.cumsum(0)
        self._starts = self._ends - tasks
        self._small: dict[str, Tensor] = {}  # (N, ...) each: all but the targets, filled when a shard is first read
        self._targets: dict[int, memoryview] = {}  # by position in the index: the bytes of a shard's targets

    @property
    def meta(self) -> dict[str, Any]:
        return dict(self.index["meta"])

    @property
    def shards(self) -> Sequence[Mapping[str, Any]]:
        """The index's entry of every shard: number, file, tasks, bytes, blake2b."""
        return self.index["shards"]

    def __len__(self) -> int:
        return self._tasks

    def numbers(self) -> set[int]:
        """The finished chunks."""
        return {shard["number"] for shard in self.shards}

    def _folder(self) -> Path:
        if isinstance(self.location, Path):
            return self.location
        raise McdiError(f"{self.location} is read-only: write to a folder, then copy it with `mcdi store export`")

    @contextmanager
    def writer(self) -> Iterator["TrajectoryStore"]:
        """Hold the lock for writing. May be nested. Raises McdiError when another process holds the lock."""
        if self._writing:
            yield self
            return
        with only_writer(self._folder()):
            self.refresh()  # another process may have written before it released the lock
            self._writing = True
            try:
                yield self
            finally:
                self._writing = False

    def write_shard(self, number: int, data: Trajectories) -> dict[str, Any]:
        """Write chunk `number` and return its entry for `commit`. Any process may call it: the index does not change.
        Raises McdiError when the chunk is finished already, or `data` holds no tasks."""
        if number in self.numbers():
            raise McdiError(f"{self.location} holds chunk {number} already: shards are never changed")
        if not len(data):
            raise McdiError(f"chunk {number} holds no tasks: nothing was written")
        file = shard_file(number)
        tensors = {**data.tensors(), "targets": data.targets.to(STORAGE[self.meta.get("storage", "float32")])}
        content = write_tensors(self._folder() / file, tensors)
        return {"number": number, "file": file, "tasks": len(data), "bytes": len(content), "blake2b": checksum(content)}

    def commit(self, entry: Mapping[str, Any]) -> None:
        """Name a written shard in the index, which makes it part of the store."""
        with self.writer():
            if entry["number"] in self.numbers():
                raise McdiError(f"{self.location} holds chunk {entry['number']} already: shards are never changed")
            index = sealed_index(self.meta, [*self.shards, entry])
            write_bytes(self._folder() / "index.json", index_bytes(index))
            self._use(index)

    def append(self, data: Trajectories) -> None:
        """`write_shard` and `commit` under the number after the last."""
        with self.writer():
            self.commit(self.write_shard(max(self.numbers(), default=-1) + 1, data))

    def _verified(self, shard: Mapping[str, Any]) -> dict[str, Tensor]:
        tensors = shard_tensors(self.location, shard)
        self._layout = self._layout or layout(tensors)
        if name := first_difference(layout(tensors), self._layout):
            file = within(self.location, shard["file"])
            raise McdiError(f"{file} has another type or shape of {name!r} than the shards before it: {CURE}")
        return tensors

    def _require_shards(self) -> None:
        if not self.shards:
            raise McdiError(f"{self.location} holds no trajectories yet: run `mcdi prepare` first")

    def parts(self) -> Iterator[Trajectories]:
        """The shards one at a time, verified; none is kept in memory."""
        self._require_shards()
        for shard in self.shards:
            tensors = self._verified(shard)
            yield Trajectories.from_tensors({**tensors, "targets": tensors["targets"].float()})

    def read(self) -> Trajectories:
        """All trajectories, verified."""
        return Trajectories.cat(list(self.parts()))

    def verify(self) -> list[str]:
        """One sentence for every damaged shard; empty when there is none."""
        problems = []
        for shard in self.shards:
            try:
                self._verified(shard)
            except McdiError as error:
                problems.append(str(error))
        return problems

    def rows(self, index: Tensor) -> Trajectories:
        """The tasks at `index` (B,) int64, in its order. A shard is verified when it is first read. Its targets then
        stay mapped into memory, its other columns copied. Raises IndexError outside 0..N-1."""
        self._require_shards()
        at = torch.searchsorted(self._ends, index, right=True)
        shards = at.tolist()
        if shards and (max(shards) == len(self.shards) or bool((index < 0).any())):
            raise IndexError(f"rows {int(index.min())}..{int(index.max())} of {len(self)}")
        for shard in {*(shards or [0])} - self._targets.keys():
            self._load(shard)
        dtype, shape = self._layout["targets"]
        size = shape.numel() * dtype.itemsize
        offsets = ((index - self._starts[at]) * size).tolist()
        # One copy, straight from the maps: a fancy index for every shard costs three times as much for a few rows each.
        data = bytearray().join([self._targets[s][o : o + size] for s, o in zip(shards, offsets, strict=True)])
        targets = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        small = {n: t.index_select(0, index) for n, t in self._small.items()}
        return Trajectories.from_tensors({**small, "targets": targets.reshape(len(index), *shape).float()})

    def _load(self, at: int) -> None:
        shard = self.shards[at]
        if shard["blake2b"] not in self._mapped:
            self._mapped[shard["blake2b"]] = self._verified(shard)
        tensors = dict(self._mapped[shard["blake2b"]])
        self._targets[at] = tensors.pop("targets").flatten().view(torch.uint8).numpy().data
        for name, tensor in tensors.items():
            if name not in self._small:
                self._small[name] = tensor.new_empty((len(self), *tensor.shape[1:]))
            self._small[name][int(self._starts[at]) : int(self._ends[at])] = tensor
