"""How are trajectories kept on disk so that a kill at any moment loses nothing that was finished?

A store is a folder: append-only shards (`shard-00000.safetensors`) and an `index.json` that names them with their
checksums and is replaced in one rename after each shard. A shard that the index does not name does not exist.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.files import read_json, read_tensors, write_json, write_tensors

FORMAT = 1


class Trajectories(NamedTuple):
    """N trajectories: what preparation found, on the natural scale, float32."""

    targets: Tensor  # (N, k, U, D) local targets theta_d .. theta_kd
    mask: Tensor  # (N, U) bool
    seeds: Tensor  # (N,) int64: with the split they rebuild the task
    scores: Tensor  # (N, k) score on the task's held-out query set at every target
    losses: Tensor  # (N, k) training loss there


class TrajectoryStore:
    """A folder of trajectories that can be appended to, stopped at any moment, and opened again."""

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.folder, self.index = folder, index

    @classmethod
    def create(cls, folder: Path, meta: Mapping[str, Any]) -> "TrajectoryStore":
        """A new store, or the one already there if it was made with the same `meta` (else McdiError)."""
        meta = json.loads(json.dumps(meta))
        if (folder / "index.json").exists():
            store = cls.open(folder)
            differs = [n for n in {*meta, *store.meta} if meta.get(n) != store.meta.get(n)]
            if differs:
                name = sorted(differs)[0]
                raise McdiError(
                    f"{folder} holds trajectories made with {name} = {store.meta.get(name)!r}, not {meta.get(name)!r}: "
                    "delete that folder or choose another --out"
                )
            return store
        write_json(folder / "index.json", {"format": FORMAT, "meta": meta, "shards": []})
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> "TrajectoryStore":
        index = read_json(folder / "index.json")
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            raise McdiError(f"{folder}/index.json is not a trajectory index of format {FORMAT}: it is from another version")
        return cls(folder, index)

    @property
    def meta(self) -> dict[str, Any]:
        return dict(self.index["meta"])

    def __len__(self) -> int:
        return sum(shard["tasks"] for shard in self.index["shards"])

    def append(self, data: Trajectories) -> None:
        name = f"shard-{len(self.index['shards']):05d}.safetensors"
        content = write_tensors(self.folder / name, data._asdict())
        entry = {"file": name, "tasks": len(data.seeds), "blake2b": hashlib.blake2b(content, digest_size=16).hexdigest()}
        self.index = {**self.index, "shards": [*self.index["shards"], entry]}
        write_json(self.folder / "index.json", self.index)

    def read(self) -> Trajectories:
        """Everything, verified. Raises McdiError naming a shard that is missing, changed, or holds NaN or infinity."""
        parts = []
        for shard in self.index["shards"]:
            path = self.folder / shard["file"]
            if not path.exists():
                raise McdiError(f"{path} is missing: restore it, or delete the store and prepare again")
            if hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() != shard["blake2b"]:
                raise McdiError(f"{path} does not match its checksum: restore it, or delete the store and prepare again")
            part = Trajectories(**read_tensors(path)[0])
            if not bool(torch.isfinite(part.targets).all()):
                raise McdiError(f"{path} holds NaN or infinite weights: prepare again with a lower learning rate")
            parts.append(part)
        if not parts:
            raise McdiError(f"{self.folder} holds no trajectories yet: run `mcdi prepare` first")
        return Trajectories(*(torch.cat(column) for column in zip(*parts, strict=True)))
