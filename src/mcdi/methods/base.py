"""What is a method? Anything that, given tasks, returns weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from torch import Tensor

from mcdi.networks.base import Network
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.store import Stored
from mcdi.types import Examples

T = TypeVar("T")
# Called after every step of long work with (steps done, steps in all, figures such as the loss).
Log = Callable[[int, int, dict[str, float]], None]


def silent(done: int, total: int, figures: dict[str, float]) -> None:
    """A Log that keeps nothing."""


def for_shots(chosen: Mapping[str, T], net: Network, support: Examples, mask: Tensor) -> T:
    """What was chosen for so many examples a class, {shots: ..}; a shot number never tuned for takes the nearest."""
    shots = support.y.shape[1] // net.classes(mask.shape[1])
    return chosen[min(chosen, key=lambda n: abs(int(n) - shots))]


class WeightGenerator(Protocol):
    """Every method and every baseline; to evaluation, tables and serving they are the same thing."""

    gradient_free: bool

    def fit(self, family: TaskFamily, data: Stored | None, *, seed: int, log: Log = silent, folder: Path | None = None) -> Self:
        """Meta-train (or tune) on training tasks and validation tasks; `folder` keeps checkpoints to resume from."""
        ...

    def generate(self, net: Network, support: Examples, mask: Tensor, *, seed: int) -> Tensor:
        """Support sets of B tasks, (B, S, ...) -> weights (B, U, D) on the natural scale."""
        ...

    def config(self) -> dict[str, Any]: ...
    def state(self) -> dict[str, Tensor]: ...
    def restore(self, config: dict[str, Any], state: dict[str, Tensor]) -> Self: ...
