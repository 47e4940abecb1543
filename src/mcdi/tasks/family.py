"""The protocol of a family of tasks, which preparation, training and evaluation use."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from mcdi.networks.base import Network
from mcdi.types import Examples, TaskBatch


class TaskFamily(Protocol):
    """Many tasks over one downstream network. Every method is pure: the same arguments give the same tasks."""

    name: str

    @property
    def downstream(self) -> Network: ...

    @property
    def shots(self) -> tuple[int, ...]:
        """The numbers of examples (a class) that support sets are drawn with."""

    def sample(self, split: str, seeds: Sequence[int], *, draw: int = 0, shots: int | None = None) -> TaskBatch:
        """The tasks named by (split, seeds); another `draw` picks other examples of the same tasks."""

    def training_data(self, split: str, seeds: Sequence[int]) -> Examples:
        """All training data of these tasks, which weight preparation optimises on."""

    def columns(self, split: str, seeds: Sequence[int]) -> dict[str, Tensor]:
        """What a store keeps to identify these tasks, (B, ...) each, such as their classes."""
