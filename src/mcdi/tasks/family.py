"""What is a task, what is a family of tasks, and which network is adapted to each?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from mcdi.tasks.downstream import Network

SPLITS = ("train", "val", "test")


class Examples(NamedTuple):
    """Examples of B tasks: x (B, S, ...), y (B, S): class indices (int64) or real targets. S examples each."""

    x: Tensor
    y: Tensor

    def to(self, device: torch.device | str) -> "Examples":
        return Examples(self.x.to(device), self.y.to(device))


class TaskBatch(NamedTuple):
    """B tasks, rebuilt exactly from (split, seeds, draw). Methods see `support`; only evaluation reads `query`."""

    support: Examples
    query: Examples
    mask: Tensor  # (B, U) bool: which units exist
    seeds: Tensor  # (B,) int64

    def to(self, device: torch.device | str) -> "TaskBatch":
        return TaskBatch(self.support.to(device), self.query.to(device), self.mask.to(device), self.seeds.to(device))


class TaskFamily(Protocol):
    """What is learned: many tasks over one downstream network. Every method of it is pure: same in, same out."""

    name: str

    @property
    def downstream(self) -> "Network": ...

    @property
    def shots(self) -> tuple[int, ...]:
        """The numbers of examples (a class) that support sets are drawn with."""
        ...

    def sample(self, split: str, seeds: Sequence[int], *, draw: int = 0, shots: int | None = None) -> TaskBatch:
        """The tasks named by (split, seeds); another `draw` picks other examples of the same tasks."""
        ...

    def training_data(self, split: str, seeds: Sequence[int]) -> Examples:
        """Everything known of these tasks: what weight preparation optimises on."""
        ...

    def columns(self, split: str, seeds: Sequence[int]) -> dict[str, Tensor]:
        """What a store keeps to tell these tasks by, (B, ...) each: their classes, say."""
        ...


def uniform(split: str, seeds: Sequence[int], *parts: int, count: int) -> NDArray[np.float64]:
    """(B, count) numbers in [0, 1) decided by (split, seed, parts) alone, so that a task is the same in every batch.

    SplitMix64 as a counter-based generator: one vectorised pass instead of a generator object a task (100x faster).
    """
    with np.errstate(over="ignore"):
        key = np.full(len(seeds), SPLITS.index(split) + 1, dtype=np.uint64)
        columns = [np.asarray(seeds, dtype=np.int64), *(np.full(len(seeds), p, dtype=np.int64) for p in parts)]
        for column in columns:
            key = _mix(key * np.uint64(0x9E3779B97F4A7C15) + column.astype(np.uint64))
        counter = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return (_mix(key[:, None] + counter) >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
