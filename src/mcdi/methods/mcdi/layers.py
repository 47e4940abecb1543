"""What denoisers are made of: time features, perceptrons, and blocks of attention that run under vmap."""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def time_features(t: Tensor, size: int, horizon: float = 1000.0) -> Tensor:
    """(B,) times in [0, 1] -> (B, size) sines and cosines of geometrically spaced frequencies."""
    frequency = torch.exp(torch.arange(size // 2, device=t.device) * (-math.log(horizon) / (size // 2 - 1)))
    angle = t[:, None] * horizon * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


def perceptron_of(inputs: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
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


def attend(q: Tensor, k: Tensor, v: Tensor, exists: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Attention of queries (B, heads, Q, w) to the keys and values (B, heads, K, w) that exist (B, 1, 1, K): (B, Q, heads * w).

    Written out: units are few (5 to 100), and unlike the fused kernel this runs under vmap on every device.
    """
    heads = q.shape[:2]
    bias = (bias + ~exists * -1e9).expand(*heads, -1, -1).flatten(0, 1)
    q, k, v = (part.flatten(0, 1) for part in (q, k, v))
    logits = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=1 / math.sqrt(q.shape[-1]))
    return torch.bmm(logits.softmax(-1), v).unflatten(0, heads).transpose(1, 2).flatten(2)


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

    def forward(self, h: Tensor, time: Tensor, mask: Tensor, bias: Tensor | float = 0.0) -> Tensor:
        scale1, shift1, scale2, shift2 = self.modulate(time)[:, None].chunk(4, -1)
        h = h + self.attended(self.norm1(h) * (1 + scale1) + shift1, mask[:, None, None], bias)
        return h + self.perceptron(self.norm2(h) * (1 + scale2) + shift2)


class SetAttentionBlock(AttentionBlock):
    """Pre-norm self-attention of examples, a learnt bias for those of one class, and a perceptron (SAB of 1810.00825)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.same_class = nn.Parameter(torch.zeros(heads))

    def forward(self, h: Tensor, exists: Tensor, same: Tensor) -> Tensor:
        h = h + self.attended(self.norm1(h), exists, self.same_class[:, None, None] * same)
        return h + self.perceptron(self.norm2(h))
