"""Networks that denoise weights, by name: all map (x (B, U, D), t (B,), cond (B, U, C), mask (B, U)) -> (B, U, D)."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.methods.mcdi.filters import FilterTransformer
from mcdi.methods.mcdi.layers import Block, Residual, SetAttentionBlock, attend, perceptron_of, time_features, zero_linear


class MLP(nn.Module):
    """Residual perceptron over the weights as one vector: it serves one number of units."""

    any_units = False

    def __init__(self, size: int, cond_size: int, units: int, *, width: int = 256, depth: int = 3) -> None:
        super().__init__()
        self.width, self.shape = width, (units, size)
        self.time, self.condition = perceptron_of(width, width), perceptron_of(cond_size * units, width)
        self.first, self.last = nn.Linear(size * units, width), zero_linear(width, size * units)
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


class UnitTransformer(nn.Module):
    """A token a unit. Equivariant to the order of units, unless `ordered` gives each its own embedding (chunks, layers)."""

    def __init__(
        self, size: int, cond_size: int, units: int, *, width: int = 128, depth: int = 3, heads: int = 4, ordered: bool = False
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width = {width} is no multiple of heads = {heads}")
        self.width, self.heads, self.any_units = width, heads, not ordered
        self.weights, self.condition = nn.Linear(size, width), nn.Linear(cond_size, width)
        self.order = nn.Parameter(torch.randn(units, width) * 0.02) if ordered else None
        self.time = perceptron_of(width, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), zero_linear(width, size)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor, mask: Tensor) -> Tensor:
        h = self.weights(x) + self.condition(cond)
        if self.order is not None:
            h = h + self.order
        time = self.time(time_features(t, self.width))
        for block in self.blocks:
            h = block(h, time, mask)
        return self.head(self.norm(h))


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
        self.time = perceptron_of(width, width)
        self.blocks = nn.ModuleList(Residual(width) for _ in range(depth))
        self.last = zero_linear(width, count)

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
    "filters": FilterTransformer,
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
