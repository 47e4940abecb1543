"""How are trajectories kept on disk so that a kill at any moment loses nothing that was finished?

A store is a folder: shards (`shard-00000.safetensors`), numbered by the chunk of tasks that they hold and never changed, and
an `index.json` that names them with their checksums and is replaced in one rename after each shard. A shard that the index
does not name does not exist. Any process may write a shard; one process at a time, which holds the lock, writes the index.
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
    checksum,
    first_difference,
    index_bytes,
    layout,
    read_index,
    sealed_index,
    shard_file,
    shard_tensors,
    within,
)
from mcdi.utils.files import only_writer, remove_temporaries, write_bytes, write_tensors
from mcdi.utils.urls import url_or_path


@dataclass(frozen=True, eq=False)
class Trajectories:
    """N trajectories: what preparation found, on the natural scale.

    Raises McdiError when a column has not N rows or bears the name of a field.
    """

    targets: Tensor  # (N, k, U, D) float32: local targets theta_d .. theta_kd
    mask: Tensor  # (N, U) bool: which units exist
    seeds: Tensor  # (N,) int64: with the split they rebuild the task
    scores: Tensor  # (N, k) score on the task's held-out query set at every target
    losses: Tensor  # (N, k) training loss there
    epochs: Tensor  # (N, k) int64: the epoch at which every target was taken
    columns: Mapping[str, Tensor] = field(default_factory=dict)  # (N, ...) each: whatever else is known of a task

    def __post_init__(self) -> None:
        for name in self.columns:
            if name in _FIELDS:
                raise McdiError(f"a column cannot be called {name!r}, which every store has: choose another name")
        for name, tensor in self.tensors().items():
            if tensor.shape[:1] != self.seeds.shape:
                raise McdiError(f"{name} has shape {tuple(tensor.shape)}, but there are {len(self)} tasks: one row a task")

    def __len__(self) -> int:
        return len(self.seeds)

    def tensors(self) -> dict[str, Tensor]:
        """Fields and columns under their names, as a shard holds them."""
        return {**{n: getattr(self, n) for n in _FIELDS}, **self.columns}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Trajectories":
        """Inverse of `tensors`."""
        return cls(**{n: tensors[n] for n in _FIELDS}, columns={n: t for n, t in tensors.items() if n not in _FIELDS})

    def rows(self, index: Tensor | slice) -> "Trajectories":
        """The tasks at `index`, in its order."""
        return self.of({n: t[index] for n, t in self.tensors().items()})

    def parts(self) -> Iterator["Trajectories"]:
        """All of it, as a store gives its shards."""
        yield self

    @classmethod
    def cat(cls, parts: Sequence["Trajectories"]) -> "Trajectories":
        """All tasks of one or more parts, which have the same columns and shapes."""
        tensors = [part.tensors() for part in parts]
        return cls.of({n: torch.cat([t[n] for t in tensors]) for n in tensors[0]})


_FIELDS = ("targets", "mask", "seeds", "scores", "losses", "epochs")


class Stored(Protocol):
    """What is learned from: trajectories in memory, or a store on disk that may be larger than memory."""

    def __len__(self) -> int: ...
    def rows(self, index: Tensor, /) -> Trajectories: ...
    def parts(self) -> Iterator[Trajectories]: ...


class TrajectoryStore:
    """A folder of trajectories that can be appended to, stopped at any moment, and opened again; or a finished one at a URL.

    Rows are in the order of the shards' numbers. meta["storage"] = "bfloat16" halves the targets on disk; they are read as
    float32. `read`, `parts` and `rows` verify every shard before they hand anything out, and raise McdiError naming one that
    is missing, changed, holds NaN or infinite weights, or has other columns than the first.
    """

    def __init__(self, where: str | Path) -> None:
        self.where = url_or_path(where)
        self.index: dict[str, Any] = {}
        self._writing = False
        self._layout: dict[str, tuple[torch.dtype, torch.Size]] = {}
        self._held: dict[str, dict[str, Tensor]] = {}  # by checksum: shards that `rows` has verified, mapped into memory
        self.refresh()

    @classmethod
    def create(cls, folder: Path, meta: Mapping[str, Any]) -> "TrajectoryStore":
        """A new store, or the one already there if it was made with the same `meta` (else McdiError)."""
        meta = json.loads(json.dumps(meta))
        if meta.get("storage", "float32") not in STORAGE:
            raise McdiError(f"unknown storage {meta['storage']!r}: choose {' or '.join(STORAGE)}")
        if not (folder / "index.json").exists():
            with only_writer(folder):
                if not (folder / "index.json").exists():  # another process may have been faster
                    write_bytes(folder / "index.json", index_bytes(sealed_index(meta, [])))
        store = cls(folder)
        name = first_difference(meta, store.meta)
        if name is not None:
            raise McdiError(
                f"{folder} holds trajectories made with {name} = {store.meta.get(name)!r}, not {meta.get(name)!r}: "
                "delete that folder or choose another --out"
            )
        return store

    @classmethod
    def open(cls, where: str | Path) -> "TrajectoryStore":
        """The store in a folder, or the finished one at a URL (file://, memory://, s3://, hf://, ...), which is only read.

        Raises McdiError when there is none, or its index is damaged.
        """
        return cls(where)

    def refresh(self) -> None:
        """Read the index again: shards that another process has finished since appear, and none that it has not."""
        self._use(read_index(self.where))

    def _use(self, index: dict[str, Any]) -> None:
        if index == self.index:
            return
        self.index = index
        tasks = torch.tensor([shard["tasks"] for shard in self.shards], dtype=torch.int64)
        self._tasks, self._ends = int(tasks.sum()), tasks.cumsum(0)
        self._starts = self._ends - tasks
        self._small: dict[str, Tensor] = {}  # (N, ...) each: all but the targets, filled as shards are touched
        self._targets: dict[int, memoryview] = {}  # by position in the index: the bytes of a shard's targets

    @property
    def meta(self) -> dict[str, Any]:
        return dict(self.index["meta"])

    @property
    def shards(self) -> Sequence[Mapping[str, Any]]:
        """What the index says of every shard: number, file, tasks, bytes, blake2b."""
        return self.index["shards"]

    def __len__(self) -> int:
        return self._tasks

    def numbers(self) -> set[int]:
        """The chunks that are finished."""
        return {shard["number"] for shard in self.shards}

    def _folder(self) -> Path:
        if isinstance(self.where, Path):
            return self.where
        raise McdiError(f"{self.where} is only read: write to a folder, then `mcdi store export` it")

    @contextmanager
    def writer(self) -> Iterator["TrajectoryStore"]:
        """The right to write, for as long as it is held or the process lives. Temporary files that a kill left are removed.

        Raises McdiError when another process holds it.
        """
        with self._lock():
            remove_temporaries(self._folder())
            yield self

    @contextmanager
    def _lock(self) -> Iterator[None]:
        if self._writing:
            yield
            return
        with only_writer(self._folder()):
            self.refresh()  # what another process has written before it let go
            self._writing = True
            try:
                yield
            finally:
                self._writing = False

    def write_shard(self, number: int, data: Trajectories) -> dict[str, Any]:
        """Write chunk `number` and return its entry for `commit`. Any process may: the index stays as it is.

        A worker opens the store for itself. Raises McdiError when the chunk is finished already.
        """
        if number in self.numbers():
            raise McdiError(f"{self.where} holds chunk {number} already: shards are never changed")
        if not len(data):
            raise McdiError(f"chunk {number} holds no tasks: nothing was written")
        file = shard_file(number)
        tensors = {**data.tensors(), "targets": data.targets.to(STORAGE[self.meta.get("storage", "float32")])}
        content = write_tensors(self._folder() / file, tensors)
        return {"number": number, "file": file, "tasks": len(data), "bytes": len(content), "blake2b": checksum(content)}

    def commit(self, entry: Mapping[str, Any]) -> None:
        """Name a written shard in the index: from here on it exists."""
        with self._lock():
            if entry["number"] in self.numbers():
                raise McdiError(f"{self.where} holds chunk {entry['number']} already: shards are never changed")
            index = sealed_index(self.meta, [*self.shards, entry])
            write_bytes(self._folder() / "index.json", index_bytes(index))
            self._use(index)

    def append(self, data: Trajectories) -> None:
        """`write_shard` and `commit` under the number after the last."""
        with self._lock():
            self.commit(self.write_shard(max(self.numbers(), default=-1) + 1, data))

    def _verified(self, shard: Mapping[str, Any]) -> dict[str, Tensor]:
        tensors = shard_tensors(self.where, shard)
        found = layout(tensors)
        self._layout = self._layout or found
        odd = first_difference(found, self._layout)
        if odd is not None:
            name = within(self.where, shard["file"])
            raise McdiError(f"{name} has another type or shape of {odd!r} than the shards before it: {CURE}")
        return tensors

    def _not_empty(self) -> None:
        if not self.shards:
            raise McdiError(f"{self.where} holds no trajectories yet: run `mcdi prepare` first")

    def parts(self) -> Iterator[Trajectories]:
        """The shards one at a time, verified, without keeping them."""
        self._not_empty()
        for shard in self.shards:
            tensors = self._verified(shard)
            yield Trajectories.of({**tensors, "targets": tensors["targets"].float()})

    def read(self) -> Trajectories:
        """Everything, verified."""
        return Trajectories.cat(list(self.parts()))

    def verify(self) -> list[str]:
        """One sentence for every damaged shard; empty when all is good."""
        problems = []
        for shard in self.shards:
            try:
                self._verified(shard)
            except McdiError as error:
                problems.append(str(error))
        return problems

    def rows(self, index: Tensor) -> Trajectories:
        """The tasks at index (B,) int64, of 0..N-1, in its order. A shard is verified when it is first touched.

        Its targets then stay mapped, and its other columns in memory. Raises IndexError outside 0..N-1.
        """
        self._not_empty()
        at = torch.searchsorted(self._ends, index, right=True)
        shards = at.tolist()
        if shards and (max(shards) == len(self.shards) or bool((index < 0).any())):
            raise IndexError(f"rows {int(index.min())}..{int(index.max())} of {len(self)}")
        for shard in {*(shards or [0])} - self._targets.keys():
            self._touch(shard)
        dtype, shape = self._layout["targets"]
        size = shape.numel() * dtype.itemsize
        offsets = ((index - self._starts[at]) * size).tolist()
        # One copy, straight from the maps: a fancy index for every shard costs three times as much for a few rows each.
        data = bytearray().join([self._targets[s][o : o + size] for s, o in zip(shards, offsets, strict=True)])
        targets = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        small = {n: t.index_select(0, index) for n, t in self._small.items()}
        return Trajectories.of({**small, "targets": targets.reshape(len(index), *shape).float()})

    def _touch(self, at: int) -> None:
        shard = self.shards[at]
        tensors = self._held.get(shard["blake2b"])
        if tensors is None:
            tensors = self._held[shard["blake2b"]] = self._verified(shard)
        for name, tensor in tensors.items():
            if name == "targets":
                continue
            if name not in self._small:
                self._small[name] = tensor.new_empty((len(self), *tensor.shape[1:]))
            self._small[name][int(self._starts[at]) : int(self._ends[at])] = tensor
        self._targets[at] = tensors["targets"].flatten().view(torch.uint8).numpy().data
