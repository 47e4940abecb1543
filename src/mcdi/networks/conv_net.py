"""All weights of a small convolutional network (Conv-4) on few pixels, its last layer generated or in closed form."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from mcdi.networks.backbones.embedder import Embedder
from mcdi.networks.base import LastLayer
from mcdi.networks.pixels import PixelNetwork
from mcdi.networks.registry import register_network
from mcdi.weights import Unit


@register_network("conv-net", "images")
class ConvNet(PixelNetwork):
    """Four 3x3 convolutions with group norms, which keep no running statistics: 1,941 weights with 8 filters for 5 classes.

    14 pixels can be halved to 7 and to 3; the last two blocks keep 3, where a filter still sees neighbours.

    Args:
        features, way, embedder: of the backbone, 0 and "none" where there is none; and classes.
        filters: of each layer.
        side, channels: pixels of a side that it reads, a divisor of the images' side; 1 or 3.
        head: how the last layer is made, see `EndsInLinear`.
        unit: of the weight space.
    """

    groups, blocks, smallest = 2, 4, 6  # halved as long as `smallest` pixels are left to halve
    options = ("filters", "pixels", *PixelNetwork.options)

    def __init__(
        self,
        features: int,
        way: int,
        embedder: Embedder | None = None,
        *,
        filters: int = 8,
        side: int = 14,
        channels: int = 1,
        head: LastLayer = "generated",
        unit: Unit = "filter",
    ) -> None:
        self.filters, self.side, self.channels = filters, side, channels
        layers: list[nn.Module] = [nn.Unflatten(-1, (channels, side, side))]
        left = side
        for b in range(self.blocks):
            layers.append(nn.Conv2d(channels if b == 0 else filters, filters, 3, padding=1))
            if left >= self.smallest:
                layers.append(nn.MaxPool2d(2))
                left //= 2
            layers += [nn.GroupNorm(self.groups, filters), nn.ReLU()]
        module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(filters, way))
        super().__init__(module, features, way, embedder, unit, head)

    @classmethod
    def for_family(cls, settings: Any, **parts: Any) -> Self:
        names = {"filters": "filters", "pixels": "side", "channels": "channels"}
        given = {name: getattr(settings, key) for key, name in names.items() if hasattr(settings, key)}
        return super().for_family(settings, **given, **parts)

    def _start(self, name: str, p: Tensor, generator: torch.Generator) -> Tensor:
        # A normalisation starts at one and zero, where it stands; a drawn scale would turn half of the channels over.
        norm = isinstance(self.module.get_submodule(name.rpartition(".")[0]), nn.GroupNorm)
        return p if norm else super()._start(name, p, generator)

    def config(self) -> dict[str, Any]:
        sizes = {"filters": self.filters, "side": self.side, "channels": self.channels}
        return {**super().config(), **sizes}
