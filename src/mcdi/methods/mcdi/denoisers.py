"""Networks that denoise weights, by name: all map (x (B, U, D), t (B,), cond (B, U, C), mask (B, U)) -> (B, U, D)."""

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mcdi.errors import McdiError


def time_features(t: Tensor, size: int, horizon: float = 1000.0) -> Tensor:
    """(B,) times in [0, 1] -> (B, size) sines and cosines of geometrically spaced frequencies."""
    frequency = torch.exp(torch.arange(size // 2, device=t.device) * (-math.log(horizon) / (size // 2 - 1)))
    angle = t[:, None] * horizon * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


def _perceptron(inputs: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A last layer that begins at zero, so that a denoiser begins at what its output is added to."""
    last = nn.Linear(inputs, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return last


class Residual(nn.Module):
    """Pre-norm perceptron with a residual, shifted by the context."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.context = nn.Linear(width, width)

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        return h + self.down(F.silu(self.up(self.norm(h) + self.context(context))))


class MLP(nn.Module):
    """Residual perceptron over the weights as one vector: it serves one number of units."""

    any_units = False

    def __init__(self, size: int, cond_size: int, units: int, *, width: int = 256, depth: int = 3) -> None:
        super().__init__()
        self.width, self.shape = width, (units, size)
        self.time, self.condition = _perceptron(width, width), _perceptron(cond_size * units, width)
        self.first, self.last = nn.Linear(size * units, width), _zero_linear(width, size * units)
        self.blocks = nn.ModuleList(Residual(width) for _ in range(depth))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor, mask: Tensor) -> Tensor:
        shape = tuple(x.shape[1:])
        if shape != self.shape:
            raise McdiError(f"this denoiser was made for weights of shape {self.shape}, not {shape}: use transformer")
        context = self.time(time_features(t, self.width)) + self.condition(cond.flatten(1))
        h = self.first(x.flatten(1)) + context
        for block in self.blocks:
            h = block(h, context)
        return self.last(h).reshape(x.shape)


def attend(q: Tensor, k: Tensor, v: Tensor, exists: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Attention of queries (B, heads, Q, w) to the keys and values (B, heads, K, w) that exist (B, 1, 1, K): (B, Q, heads * w).

    Written out: units are few (5 to 100), and unlike the fused kernel this runs under vmap on every device.
    """
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
    return (logits.masked_fill(~exists, -1e9).softmax(-1) @ v).transpose(1, 2).flatten(2)


class AttentionBlock(nn.Module):
    """The layers of a block of self-attention and a two-layer perceptron; `forward` puts them together."""

    def __init__(self, width: int, heads: int, *, affine: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=affine) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def attended(self, h: Tensor, exists: Tensor, bias: Tensor | float = 0.0) -> Tensor:
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(attend(q, k, v, exists, bias))

    def perceptron(self, h: Tensor) -> Tensor:
        return self.down(F.silu(self.up(h)))


class Block(AttentionBlock):
    """Pre-norm attention over units and a perceptron, both scaled and shifted by the time (adaLN, 2212.09748)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, affine=False)
        self.modulate = nn.Linear(width, 4 * width)

    def forward(self, h: Tensor, time: Tensor, mask: Tensor) -> Tensor:
        scale1, shift1, scale2, shift2 = self.modulate(time)[:, None].chunk(4, -1)
        h = h + self.attended(self.norm1(h) * (1 + scale1) + shift1, mask[:, None, None])
        return h + self.perceptron(self.norm2(h) * (1 + scale2) + shift2)


class UnitTransformer(nn.Module):
    """A token a unit. Equivariant to the order of units, unless `ordered` gives each its own embedding (chunks, layers)."""

    def __init__(
        self, size: int, cond_size: int, units: int, *, width: int = 128, depth: int = 3, heads: int = 4, ordered: bool = False
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width = {width} is no multiple of heads = {heads}")
        self.width, self.heads = width, heads
        self.weights, self.condition = nn.Linear(size, width), nn.Linear(cond_size, width)
        self.order = nn.Parameter(torch.randn(units, width) * 0.02) if ordered else None
        self.time = _perceptron(width, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), _zero_linear(width, size)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor, mask: Tensor) -> Tensor:
        h = self.weights(x) + self.condition(cond)
        if self.order is not None:
            h = h + self.order
        time = self.time(time_features(t, self.width))
        for block in self.blocks:
            h = block(h, time, mask)
        return self.head(self.norm(h))


class SetAttentionBlock(AttentionBlock):
    """Pre-norm self-attention of examples, a learnt bias for those of one class, and a perceptron (SAB of 1810.00825)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.same_class = nn.Parameter(torch.zeros(heads))

    def forward(self, h: Tensor, exists: Tensor, same: Tensor) -> Tensor:
        h = h + self.attended(self.norm1(h), exists, self.same_class[:, None, None] * same)
        return h + self.perceptron(self.norm2(h))


class CrossTransformer(UnitTransformer):
    """A token a unit that also attends to every single support example, with a learnt bias for those of its own class.

    The condition of a unit is its summary (`summary` numbers) and its `examples`, of equal size: a feature vector and 1, or
    zeros where there is none, of a unit that is no class say. Equivariant to the order of classes and of examples (2103.03206
    reads sets so). set_attention_layers: blocks in which examples attend to each other first, as in the Set Transformer
    (1810.00825), whose seeds are the units here.
    """

    def __init__(
        self, size: int, cond_size: int, units: int, *, summary: int, examples: int, set_attention_layers: int = 0, **sizes: Any
    ) -> None:
        super().__init__(size, summary, units, **sizes)
        width, heads, depth = self.width, self.heads, len(self.blocks)
        if examples < 1 or (cond_size - summary) % examples:
            raise ValueError("it reads single examples, which this condition does not hold: set condition = 'examples'")
        self.size, self.examples, self.summary = (cond_size - summary) // examples, examples, summary
        self.embed = nn.Linear(self.size, width)
        self.set_attention = nn.ModuleList(SetAttentionBlock(width, heads) for _ in range(set_attention_layers))
        self.same_class = nn.Parameter(torch.zeros(depth, heads))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.reads = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.keys = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.outs = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor, mask: Tensor) -> Tensor:
        b, u, _ = x.shape
        single = cond[..., self.summary :].reshape(b, u * self.examples, self.size)
        exists = (single[..., -1] > 0.5)[:, None, None]  # (b, 1, 1, u E)
        own_class = torch.eye(u, device=x.device).repeat_interleave(self.examples, 1)
        examples = F.silu(self.embed(single))
        for layer in self.set_attention:
            examples = layer(examples, exists, own_class.transpose(0, 1) @ own_class)
        h = self.weights(x) + self.condition(cond[..., : self.summary])
        time = self.time(time_features(t, self.width))
        parts = zip(self.blocks, self.norms, self.reads, self.keys, self.outs, self.same_class, strict=True)
        for block, norm, read, key, out, same_class in parts:
            q = read(norm(h)).reshape(b, u, self.heads, -1).transpose(1, 2)
            k, v = key(examples).reshape(b, -1, 2, self.heads, q.shape[-1]).permute(2, 0, 3, 1, 4)
            h = block(h + out(attend(q, k, v, exists, same_class[:, None, None] * own_class)), time, mask)
        return self.head(self.norm(h))


class HeadCombiner(nn.Module):
    """Weights as a sum of given vectors: the closed-form heads in the condition, their mean over the other units, and x_t.

    Only their lengths and angles decide how much of each, so that it is equivariant to rotations of (standardised) weight space
    and to the order of units: it has no directions of its own to learn from training tasks, whose kinds may be few.
    cond_size is a multiple of `size`, a direction after the other (`HeadPrior.directions`); any size will do later.
    """

    def __init__(self, size: int, cond_size: int, units: int, *, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        if cond_size % size:
            raise ValueError(f"its condition is heads of {size} numbers each, not {cond_size}: set prior_input = 'heads'")
        self.width = width
        count = 2 * (cond_size // size + 1)
        self.inputs = nn.Linear(count + count * (count - 1) // 2, width)
        self.time = _perceptron(width, width)
        self.blocks = nn.ModuleList(Residual(width) for _ in range(depth))
        self.last = _zero_linear(width, count)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor, mask: Tensor) -> Tensor:
        own = torch.cat([x[..., None, :], cond.unflatten(-1, (-1, x.shape[-1]))], -2)
        exists = mask[..., None, None].to(x.dtype)
        others = (own * exists).sum(1, keepdim=True) - own * exists
        vectors = torch.cat([own, others / (exists.sum(1, keepdim=True) - 1).clamp(min=1)], -2)  # (B, U, count, D)
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
    "head-combiner": HeadCombiner,
    "mlp": MLP,
}


def make_denoiser(kind: str, size: int, condition_size: int, units: int, **options: Any) -> nn.Module:
    """A denoiser by name. Raises McdiError for an unknown name or option."""
    if kind not in DENOISERS:
        raise McdiError(f"unknown denoiser {kind!r}: choose {', '.join(DENOISERS)}")
    try:
        return DENOISERS[kind](size, condition_size, units, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise McdiError(f"denoiser {kind!r} does not take these options: {error}") from error
