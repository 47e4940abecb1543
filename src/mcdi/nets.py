"""Which networks denoise weights? All have one face, f(x (B, U, D), t (B,), cond (B, U, C), mask (B, U)) -> (B, U, D)."""

import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from mcdi.errors import McdiError


def time_features(t: Tensor, size: int, horizon: float = 1000.0) -> Tensor:
    """(B,) times in [0, 1] -> (B, size) sines and cosines of geometrically spaced frequencies."""
    frequency = torch.exp(torch.arange(size // 2, device=t.device) * (-math.log(horizon) / (size // 2 - 1)))
    angle = t[:, None] * horizon * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


class Block(nn.Module):
    """Pre-norm attention over units and a two-layer perceptron, both scaled and shifted by the time (adaLN, 2212.09748)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, elementwise_affine=False), nn.LayerNorm(width, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.modulate = nn.Linear(width, 4 * width)

    def forward(self, h: Tensor, time: Tensor, mask: Tensor) -> Tensor:
        scale1, shift1, scale2, shift2 = self.modulate(time)[:, None].chunk(4, -1)
        b, u, w = h.shape
        q, k, v = self.qkv(self.norm1(h) * (1 + scale1) + shift1).reshape(b, u, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # Written out: units are few (5 to 100), and unlike the fused kernel this runs under vmap on every device.
        attention = (q @ k.transpose(-1, -2) / math.sqrt(w // self.heads)).masked_fill(~mask[:, None, None], -1e9).softmax(-1)
        h = h + self.out((attention @ v).transpose(1, 2).reshape(b, u, w))
        return h + self.down(F.silu(self.up(self.norm2(h) * (1 + scale2) + shift2)))


class UnitTransformer(nn.Module):
    """A token a unit. Equivariant to the order of units, unless `ordered` gives each its own embedding (chunks, layers)."""

    def __init__(
        self,
        size: int,
        condition_size: int,
        units: int,
        *,
        width: int = 128,
        depth: int = 3,
        heads: int = 4,
        ordered: bool = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width = {width} is no multiple of heads = {heads}")
        self.width = width
        self.weights, self.condition = nn.Linear(size, width), nn.Linear(condition_size, width)
        self.order = nn.Parameter(torch.randn(units, width) * 0.02) if ordered else None
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, size)
        nn.init.zeros_(self.head.weight)  # begins at what it is added to
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor, mask: Tensor) -> Tensor:
        h = self.weights(x) + self.condition(cond)
        if self.order is not None:
            h = h + self.order
        time = self.time(time_features(t, self.width))
        for block in self.blocks:
            h = block(h, time, mask)
        return self.head(self.norm(h))


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


DENOISERS: dict[str, type[nn.Module]] = {"transformer": UnitTransformer, "mlp": MLP, "unet": UNet1d}


class LinearPrior(nn.Module):
    """z ~ N(A [cond, mean of cond over units, 1], s^2): the least-squares map from condition to standardised weights.

    Solved once in closed form, then fixed. A denoiser that starts from its posterior mean given x_t (`forward`) learns
    only what the linear map does not know. It pays where weights are nearly linear in the condition (heads on features:
    far fewer iterations) and costs where they are not (whole networks: leave it out with prior = false).
    """

    def __init__(self, size: int, condition_size: int, units: int) -> None:
        super().__init__()
        self.matrix: Tensor
        self.variance: Tensor
        self.register_buffer("matrix", torch.zeros(units, 2 * condition_size + 1, size))
        self.register_buffer("variance", torch.ones(units, size))

    def _inputs(self, cond: Tensor, mask: Tensor) -> Tensor:
        weight = mask[..., None].to(cond.dtype)
        mean = (cond * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        return torch.cat([cond, mean.expand_as(cond), torch.ones_like(cond[..., :1])], -1)

    def fit(self, parts: Iterable[tuple[Tensor, Tensor, Tensor]], ridge: float = 1e-3) -> None:
        """Ridge regression on all (z (N, U, D), cond (N, U, C), mask (N, U)); a map a unit, the first for all U - units + 1
        exchangeable ones.

        Only sums over the parts are kept: gram (inputs x inputs), right (inputs x D), square (D), a unit each.
        """
        units, size, outputs = self.matrix.shape
        gram, right = torch.zeros(units, size, size).double(), torch.zeros(units, size, outputs).double()
        square, count = torch.zeros(units, outputs).double(), torch.zeros(units)
        for z, cond, mask in parts:
            inputs = self._inputs(cond, mask)
            for u in range(units):
                rows = z.shape[1] - units + 1
                chosen = slice(rows) if u == 0 else slice(rows + u - 1, rows + u)
                a, y = (part[:, chosen][mask[:, chosen]].double() for part in (inputs, z))
                gram[u] += a.T @ a
                right[u] += a.T @ y
                square[u] += y.square().sum(0)
                count[u] += len(a)
        gram, right, square = gram / count[:, None, None], right / count[:, None, None], square / count[:, None]
        found = torch.linalg.solve(gram + ridge * torch.eye(size, dtype=gram.dtype), right)
        error = square - 2 * (found * right).sum(1) + (found * (gram @ found)).sum(1)  # mean of (y - found a)^2
        self.matrix.copy_(found)
        self.variance.copy_(error.clamp(min=1e-4))

    def forward(self, x: Tensor, bar: Tensor, cond: Tensor, mask: Tensor) -> Tensor:
        """E[z | x, cond] for x = sqrt(bar) z + sqrt(1 - bar) eps: the Wiener filter around the linear map; bar (B, 1, 1)."""
        rows = x.shape[1] - len(self.matrix) + 1
        matrix, variance = (torch.cat([p[:1].expand(rows, *p.shape[1:]), p[1:]]) for p in (self.matrix, self.variance))
        guess = torch.einsum("bui,uid->bud", self._inputs(cond, mask), matrix)
        return (guess * (1 - bar) + variance * bar.sqrt() * x) / (variance * bar + 1 - bar)


def make_denoiser(kind: str, size: int, condition_size: int, units: int, **options: Any) -> nn.Module:
    """A denoiser by name. Raises McdiError for an unknown name or option."""
    if kind not in DENOISERS:
        raise McdiError(f"unknown denoiser {kind!r}: choose {', '.join(DENOISERS)}")
    try:
        return DENOISERS[kind](size, condition_size, units, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise McdiError(f"denoiser {kind!r} does not take these options: {error}") from error
