"""A linear head with FiLM on the last normalisation of a frozen Conv-4."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.networks.backbones.embedder import Embedder, cl2n
from mcdi.networks.batched import State
from mcdi.networks.heads import Head, linear
from mcdi.networks.registry import register_network
from mcdi.networks.support import spreads
from mcdi.types import Examples


def film(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Mean over pixels of relu((1 + scale) x + shift), a scale and a shift a channel (FiLM, 1709.07871).

    x (..., S, P * C): P pixels, C channels in each; scale, shift (..., C) -> (..., S, C). What is active is looked up without
    a gradient, of which it has none: autograd then keeps two numbers a channel instead of several a pixel.
    """
    gain, shift = 1 + scale[..., None, :], shift[..., None, :]
    parts = x.split(scale.shape[-1], -1)
    total, count = torch.zeros_like(parts[0]), torch.zeros_like(parts[0])
    with torch.no_grad():
        for part in parts:
            active = (part * gain + shift > 0).to(x.dtype)
            total, count = total + active * part, count + active
    return (total * gain + count * shift) / len(parts)


class FilmClassifier(nn.Module):
    """A linear classifier on features that FiLM makes of activations: (S, P * C) -> (S, way)."""

    def __init__(self, features: int, way: int, mean: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(way, features)), nn.Parameter(torch.zeros(way))
        self.scale, self.shift = nn.Parameter(torch.zeros(features)), nn.Parameter(torch.zeros(features))
        self.mean: Tensor
        self.register_buffer("mean", mean)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(cl2n(film(x, self.scale, self.shift), self.mean), self.weight, self.bias)


@register_network("film-head", "images")
class FilmHead(Head):
    """A linear head, and the scale and shift of the last normalisation of the frozen Conv-4 in front of it.

    An embedded image is that normalisation's output, its P pixels one after another (P = 1 at side 28, 4 at side 32). The
    scale is generated as its difference from 1: theta_0 holds zeros, which change nothing, and weight decay pulls there.
    The normalisation's running statistics stay those of the backbone, as in 2003.00152 the rest of it does.

    The condition of a row is Head's on the frozen features; that of scale and shift describes every channel over the support
    set: the mean of the class means, their spread, the spread within classes, the fraction of active pixels and the mean
    activation (see support.append_unit_features). Raises McdiError for a backbone other than Conv-4.
    """

    statistics = 5  # numbers a channel in the condition of scale and shift

    def __init__(self, features: int, way: int, embedder: Embedder | None = None, pixels: int = 1) -> None:
        self.centre = torch.zeros(features)
        if embedder is not None:
            if embedder.backbone.kind != "conv4":
                raise McdiError(f"film-head adapts the last normalisation of conv4, not of {embedder.backbone.kind}: use conv4")
            self.centre, pixels = embedder.mean, (embedder.side // 2**4) ** 2
        module, statistics = FilmClassifier(features, way, self.centre), self.statistics * features
        super().__init__(module, features, way, embedder, shared="^(scale|shift)$", shared_statistics=statistics)
        self.pixels, self.input_size = pixels, pixels * features

    @classmethod
    def check_family(cls, settings: Any) -> None:
        super().check_family(settings)
        if settings.backbone != "conv4":
            given = f"backbone = {settings.backbone!r}"
            raise McdiError(f"film-head adapts the last normalisation of conv4, not of {given}; use linear-head or conv4")

    def embed(self, x: Tensor) -> Tensor:
        return x if self.embedder is None else self.embedder.activations(x)

    def _features(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """What the head reads: (B, S, P * C), (B, C), (B, C) -> (B, S, C), as `Embedder` makes features."""
        centre = self.centre if self.embedder is None else self.embedder.mean
        return cl2n(film(x, scale, shift), centre.to(x))

    def frozen_features(self, x: Tensor) -> Tensor:
        """The features of the backbone before FiLM changes them: (B, S, P * C) -> (B, S, C)."""
        nothing = x.new_zeros(x.shape[0], self.features)
        return self._features(x, nothing, nothing)

    condition_features = frozen_features

    def shared_condition(self, support: Examples, way: int) -> Tensor:
        """`statistics` numbers of every channel: (B, statistics * C)."""
        nothing = support.x.new_zeros(support.x.shape[0], self.features)
        seen = film(support.x, nothing, nothing)
        pixels = support.x.unflatten(-1, (self.pixels, self.features))
        active = (pixels > 0).to(seen.dtype).mean((1, 2))
        return torch.cat([*spreads(seen, support.y, way), active, pixels.mean((1, 2))], -1)

    def forward(self, state: State, x: Tensor, keys: Tensor | None = None) -> Tensor:
        return linear(state, self._features(x, state["scale"], state["shift"]))

    def config(self) -> dict[str, Any]:
        return self._described(features=self.features, way=self.way, pixels=self.pixels)
