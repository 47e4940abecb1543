"""All weights of a small convolutional network (Conv-4) on 14 x 14 pixels."""

import torch
from torch import Tensor, nn

from mcdi.networks.backbones.vision import Embedder
from mcdi.networks.pixels import PixelNetwork
from mcdi.networks.registry import register_network
from mcdi.weights import Unit


@register_network("conv-net", "images")
class ConvNet(PixelNetwork):
    """Four 3x3 convolutions of 8 channels with group norms, which keep no running statistics. 1,941 weights for 5 classes.

    14 pixels can be halved to 7 and to 3; the last two blocks keep 3, where a filter still sees neighbours.
    """

    width, groups, halvings, blocks = 8, 2, 2, 4

    def __init__(self, features: int, way: int, embedder: Embedder | None = None, unit: Unit = "whole") -> None:
        layers: list[nn.Module] = [nn.Unflatten(-1, (1, self.side, self.side))]
        for b in range(self.blocks):
            layers.append(nn.Conv2d(1 if b == 0 else self.width, self.width, 3, padding=1))
            layers += [nn.MaxPool2d(2)] if b < self.halvings else []
            layers += [nn.GroupNorm(self.groups, self.width), nn.ReLU()]
        module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.width, way))
        super().__init__(module, features, way, embedder, unit)

    def _start(self, name: str, p: Tensor, generator: torch.Generator) -> Tensor:
        # A normalisation starts at one and zero, where it stands; a drawn scale would turn half of the channels over.
        norm = isinstance(self.module.get_submodule(name.rpartition(".")[0]), nn.GroupNorm)
        return p if norm else super()._start(name, p, generator)
