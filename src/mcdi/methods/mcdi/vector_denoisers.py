"""Denoisers that see the weights as one vector, and what all denoisers use: time features, a residual block."""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mcdi.errors import McdiError


def time_features(t: Tensor, size: int, horizon: float = 1000.0) -> Tensor:
    """(B,) times in [0, 1] -> (B, size) sines and cosines of geometrically spaced frequencies."""
    frequency = torch.exp(torch.arange(size // 2, device=t.device) * (-math.log(horizon) / (size // 2 - 1)))
    angle = t[:, None] * horizon * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


class VectorDenoiser(nn.Module):
    """Base of the networks that see the weights as one vector and know a fixed number of units."""

    any_units = False

    def __init__(self, size: int, condition_size: int, units: int, width: int) -> None:
        super().__init__()
        self.width, self.shape = width, (units, size)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Sequential(nn.Linear(condition_size * units, width), nn.SiLU(), nn.Linear(width, width))

    def context(self, t: Tensor, cond: Tensor) -> Tensor:
        return self.time(time_features(t, self.width)) + self.condition(cond.flatten(1))

    def flatten(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise McdiError(
                f"this denoiser was made for weights of shape {self.shape}, not {tuple(x.shape[1:])}: use transformer"
            )
        return x.flatten(1)


class Residual(nn.Module):
    """Pre-norm perceptron with a residual, shifted by the context."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.context = nn.Linear(width, width)

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        return h + self.down(F.silu(self.up(self.norm(h) + self.context(context))))


class MLP(VectorDenoiser):
    """Residual perceptron over the flat vector."""

    def __init__(self, size: int, condition_size: int, units: int, *, width: int = 256, depth: int = 3) -> None:
        super().__init__(size, condition_size, units, width)
        self.first, self.last = nn.Linear(size * units, width), nn.Linear(width, size * units)
        self.blocks = nn.ModuleList(Residual(width) for _ in range(depth))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor, mask: Tensor) -> Tensor:
        flat, context = self.flatten(x), self.context(t, cond)
        h = self.first(flat) + context
        for block in self.blocks:
            h = block(h, context)
        return self.last(h).reshape(x.shape)
