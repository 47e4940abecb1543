"""Trajectories of N tasks in memory, and the protocol of all that methods are trained on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from mcdi.errors import McdiError


@dataclass(frozen=True, eq=False)
class Trajectories:
    """The recorded points of N tasks, in memory; weights are not standardised.
    Raises McdiError when a column does not have N rows, or has the name of a field.
    """

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
