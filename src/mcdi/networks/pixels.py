"""Networks that read small images and of which all weights are generated: the base class, and a two-layer perceptron."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.networks.backbones.vision import Embedder
from mcdi.networks.base import Network
from mcdi.networks.batched import State
from mcdi.networks.registry import register_network
from mcdi.networks.support import class_means
from mcdi.types import Examples
from mcdi.weights import Unit


class PixelNetwork(Network):
    """Base of networks on 14 x 14 pixels of which ALL weights are generated; the condition is every class's mean feature.

    An embedded image is its 196 pixels followed by the backbone's features: the network reads the pixels, the task
    embedding the features.
    """

    side = 14
    pixels = side**2

    def __init__(self, module: nn.Module, features: int, way: int, embedder: Embedder | None, unit: Unit) -> None:
        super().__init__(module, embedder, unit=unit)
        self.features, self.way = features, way
        self.input_size = self.pixels + features
        self.condition_size = way * (features + 1)

    @classmethod
    def check_family(cls, settings: Any) -> None:
        super().check_family(settings)
        if settings.channels > 1 or settings.side % cls.side:
            given = f"data = {settings.data!r}, side = {settings.side}; use linear-head"
            raise McdiError(f"{cls.kind} reads drawings of a side that is a multiple of {cls.side}, not {given}")

    def embed(self, x: Tensor) -> Tensor:
        if self.embedder is None:
            raise McdiError("this network reads pixels and features: it needs its image backbone")
        features = self.embedder(x)
        small = F.avg_pool2d(x.flatten(0, -4).float().to(features.device) / 255, x.shape[-1] // self.side)
        return torch.cat([small.reshape(*x.shape[:-3], self.pixels), features], -1)

    def condition(self, support: Examples, units: int) -> Tensor:
        mean, count = class_means(support.x[..., self.pixels :], support.y, self.way)
        flat = torch.cat([mean, count.clamp(min=1).log()[..., None]], -1).flatten(1)
        return flat[:, None].expand(-1, units, -1)

    def forward(self, state: State, x: Tensor, keys: Tensor | None = None) -> Tensor:
        return super().forward(state, x[..., : self.pixels], keys)

    def config(self) -> dict[str, Any]:
        return self._described(features=self.features, way=self.way, unit=self.space.unit)


@register_network("pixel-net", "images")
class PixelNet(PixelNetwork):
    """Two layers, generated as one unit."""

    def __init__(
        self, features: int, way: int, embedder: Embedder | None = None, hidden: int = 16, unit: Unit = "whole"
    ) -> None:
        module = nn.Sequential(nn.Linear(self.pixels, hidden), nn.ReLU(), nn.Linear(hidden, way))
        super().__init__(module, features, way, embedder, unit)
        self.hidden = hidden

    def config(self) -> dict[str, Any]:
        return {**super().config(), "hidden": self.hidden}
