"""Which networks denoise weights as one vector? And what all denoisers have: the time in numbers, a residual block."""

import itertools
import math

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from mcdi.errors import McdiError


def time_features(t: Tensor, size: int, horizon: float = 1000.0) -> Tensor:
    """(B,) times in [0, 1] -> (B, size) sines and cosines of geometrically spaced frequencies."""
    frequency = torch.exp(torch.arange(size // 2, device=t.device) * (-math.log(horizon) / (size // 2 - 1)))
    angle = t[:, None] * horizon * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


class Flat(nn.Module):
    """Base of the networks that see the weights as one vector and know a fixed number of units."""

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
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.context = nn.Linear(width, width)

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        return h + self.down(F.silu(self.up(self.norm(h) + self.context(context))))


class MLP(Flat):
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


class Conv1d(nn.Module):
    """Group-normalised 1-D convolution block with a residual, shifted by the context."""

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(inputs, outputs, 5, padding=2), nn.Conv1d(outputs, outputs, 5, padding=2)
        self.norm1, self.norm2 = nn.GroupNorm(4, outputs), nn.GroupNorm(4, outputs)
        self.context, self.match = nn.Linear(width, outputs), nn.Conv1d(inputs, outputs, 1)

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        y = F.silu(self.norm1(self.one(h)) + self.context(context)[..., None])
        return self.match(h) + F.silu(self.norm2(self.two(y)))


class UNet1d(Flat):
    """1-D U-Net over the flat weight vector, as in the paper's line of work (p-diff, D2NWG): `depth` halvings."""

    def __init__(
        self, size: int, condition_size: int, units: int, *, width: int = 64, depth: int = 3, channels: int = 16
    ) -> None:
        super().__init__(size, condition_size, units, width)
        levels = [channels * 2**j for j in range(depth + 1)]
        self.depth = depth
        self.first, self.last = nn.Conv1d(1, channels, 5, padding=2), nn.Conv1d(channels, 1, 5, padding=2)
        self.down = nn.ModuleList(Conv1d(a, b, width) for a, b in itertools.pairwise(levels))
        self.middle = Conv1d(levels[-1], levels[-1], width)
        self.up = nn.ModuleList(Conv1d(2 * b, a, width) for a, b in itertools.pairwise(levels))
        # Weights are not translation invariant: a position and a global map tell the convolutions where they are.
        self.place = nn.Linear(width, size * units)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor, mask: Tensor) -> Tensor:
        flat, context = self.flatten(x), self.context(t, cond)
        place = self.place(context)
        padding = -flat.shape[1] % 2**self.depth
        h = self.first(F.pad(flat + place, (0, padding))[:, None])
        kept = []
        for block in self.down:
            h = block(h, context)
            kept.append(h)
            h = F.avg_pool1d(h, 2)
        h = self.middle(h, context)
        for block, skip in zip(reversed(self.up), reversed(kept), strict=True):
            h = block(torch.cat([h.repeat_interleave(2, -1), skip], 1), context)
        return (self.last(h)[:, 0, : flat.shape[1]] + place).reshape(x.shape)
