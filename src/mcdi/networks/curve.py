"""A small network R -> R of which all weights are generated, for curves."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from mcdi.networks.base import Network
from mcdi.networks.batched import State
from mcdi.networks.registry import register_network
from mcdi.types import Examples


@register_network("curve", "points")
class Curve(Network):
    """All weights of a small network R -> R; the condition is a kernel estimate of the curve on a fixed grid."""

    example_shape, regression = (1,), True
    grid, bandwidth = 24, 0.35

    def __init__(self, hidden: int = 24, low: float = -3.0, high: float = 3.0) -> None:
        super().__init__(nn.Sequential(nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, 1)), None, unit="whole")
        self.hidden, self.low, self.high = hidden, low, high
        self.input_size = self.way = 1
        self.condition_size = 2 * self.grid

    @classmethod
    def for_family(cls, settings: Any, **parts: Any) -> Self:
        return cls(**parts)

    def _start(self, name: str, p: Tensor, generator: torch.Generator) -> Tensor:
        start = super()._start(name, p, generator)
        return start * 2 if name.startswith("0.") else start  # kinks all over the interval, not only at 0

    def condition(self, support: Examples, units: int) -> Tensor:
        grid = torch.linspace(self.low, self.high, self.grid, device=support.x.device)
        kernel = torch.exp(-0.5 * ((grid[None, :, None] - support.x[..., 0][:, None]) / self.bandwidth) ** 2)
        density = kernel.sum(-1)
        value = (kernel * support.y[:, None]).sum(-1) / (density + 0.1)
        return torch.cat([value, density.log1p()], -1)[:, None].expand(-1, units, -1)

    def forward(self, state: State, x: Tensor, keys: Tensor | None = None) -> Tensor:
        return super().forward(state, x, keys)[..., 0]

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "hidden": self.hidden, "low": self.low, "high": self.high}
