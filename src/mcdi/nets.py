"""Which networks denoise weights? All have one face, f(x (B, U, D), t (B,), cond (B, U, C), mask (B, U)) -> (B, U, D)."""

import itertools
import math
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


class CrossTransformer(UnitTransformer):
    """A token a unit that also attends to every single support example, with a sign for those of its own class.

    The condition of a unit is its summary (`summary` numbers) and its examples, `size` numbers each: a feature vector
    and 1, or zeros where there is none. Equivariant to the order of classes and of examples (2103.03206 reads sets so).
    """

    def __init__(
        self, size: int, condition_size: int, units: int, *, summary: int, width: int = 128, depth: int = 3, heads: int = 4
    ) -> None:
        super().__init__(size, summary, units, width=width, depth=depth, heads=heads)
        self.size, self.examples, self.summary = size, (condition_size - summary) // size, summary
        if self.examples < 1 or condition_size != summary + self.examples * size:
            raise ValueError("it reads single examples, which this condition does not hold: set condition = 'examples'")
        self.embed = nn.Linear(size, width)
        self.own = nn.Parameter(torch.zeros(depth, heads))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.reads = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.keys = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.outs = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.heads = heads

    def forward(self, x: Tensor, t: Tensor, cond: Tensor, mask: Tensor) -> Tensor:
        b, u, _ = x.shape
        single = cond[..., self.summary :].reshape(b, u * self.examples, self.size)
        there = (single[..., -1] > 0.5)[:, None, None]  # (b, 1, 1, u E)
        mine = torch.eye(u, device=x.device).repeat_interleave(self.examples, 1)
        examples = F.silu(self.embed(single))
        h = self.weights(x) + self.condition(cond[..., : self.summary])
        time = self.time(time_features(t, self.width))
        parts = zip(self.blocks, self.norms, self.reads, self.keys, self.outs, self.own, strict=True)
        for block, norm, read, key, out, own in parts:
            q = read(norm(h)).reshape(b, u, self.heads, -1).transpose(1, 2)
            k, v = key(examples).reshape(b, -1, 2, self.heads, q.shape[-1]).permute(2, 0, 3, 1, 4)
            logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + own[:, None, None] * mine
            seen = logits.masked_fill(~there, -1e9).softmax(-1) @ v
            h = block(h + out(seen.transpose(1, 2).reshape(b, u, -1)), time, mask)
        return self.head(self.norm(h))


class Span(nn.Module):
    """Weights as a sum of vectors that are at hand: directions in the condition, those of the other units, and x_t's own.

    Only their lengths and angles decide how much of each, so that it is equivariant to rotations of (standardised) weight space
    and to the order of units: it has no directions of its own to learn from training tasks, whose kinds may be few.
    condition_size is a multiple of `size`, a direction after the other (`HeadPrior.directions`); any size will do later.
    """

    def __init__(self, size: int, condition_size: int, units: int, *, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        if condition_size % size:
            raise ValueError(f"its condition is directions of {size} numbers each, not {condition_size}: set around = 'heads'")
        self.width = width
        count = 2 * (condition_size // size + 1)
        self.inputs = nn.Linear(count + count * (count - 1) // 2, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Residual(width) for _ in range(depth))
        self.last = nn.Linear(width, count)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor, mask: Tensor) -> Tensor:
        own = torch.cat([x[..., None, :], cond.unflatten(-1, (-1, x.shape[-1]))], -2)
        there = mask[..., None, None].to(x.dtype)
        others = (own * there).sum(1, keepdim=True) - own * there
        vectors = torch.cat([own, others / (there.sum(1, keepdim=True) - 1).clamp(min=1)], -2)  # (B, U, count, D)
        length = (vectors.square().mean(-1, keepdim=True) + 1e-4).sqrt()  # x may be all zeros
        vectors = vectors / length
        i, j = torch.triu_indices(vectors.shape[-2], vectors.shape[-2], offset=1, device=x.device)
        angles = (vectors @ vectors.transpose(-1, -2) / x.shape[-1])[..., i, j]
        h = F.silu(self.inputs(torch.cat([length[..., 0].log(), angles], -1)))
        time = self.time(time_features(t, self.width))[:, None]
        for block in self.blocks:
            h = block(h, time)
        return torch.einsum("bun,bund->bud", self.last(h), vectors)


DENOISERS: dict[str, type[nn.Module]] = {
    "transformer": UnitTransformer,
    "cross": CrossTransformer,
    "span": Span,
    "mlp": MLP,
    "unet": UNet1d,
}


def make_denoiser(kind: str, size: int, condition_size: int, units: int, **options: Any) -> nn.Module:
    """A denoiser by name. Raises McdiError for an unknown name or option."""
    if kind not in DENOISERS:
        raise McdiError(f"unknown denoiser {kind!r}: choose {', '.join(DENOISERS)}")
    try:
        return DENOISERS[kind](size, condition_size, units, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise McdiError(f"denoiser {kind!r} does not take these options: {error}") from error
