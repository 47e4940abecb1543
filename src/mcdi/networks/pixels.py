"""Networks that read small images and of which all weights are generated: the base class, and a two-layer perceptron."""

from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.networks.backbones.embedder import Embedder
from mcdi.networks.base import LastLayer
from mcdi.networks.batched import State
from mcdi.networks.last_layer import EndsInLinear
from mcdi.networks.registry import register_network
from mcdi.networks.support import class_means
from mcdi.types import Examples
from mcdi.weights import Unit


class PixelNetwork(EndsInLinear):
    """Base of networks on few pixels of which ALL weights are generated; the condition is every class's mean feature, or its
    mean image where there is no backbone.

    An embedded image is its pixels followed by the backbone's features: the network reads the pixels, the task embedding the
    features.
    """

    side, channels = 14, 1
    has_filters = True
    options: tuple[str, ...] = ("head",)

    def __init__(
        self, module: nn.Sequential, features: int, way: int, embedder: Embedder | None, unit: Unit, head: LastLayer
    ) -> None:
        super().__init__(module, embedder, unit=unit, classes=unit == "filter")
        self.features, self.way = features, way
        self.pixels = self.channels * self.side**2
        self.input_size = self.pixels + features
        self.condition_size = way * ((features or self.pixels) + 1)
        self.set_head(head)

    @classmethod
    def for_family(cls, settings: Any, **parts: Any) -> Self:
        given = {"head": settings.head} if hasattr(settings, "head") else {}  # not of every source
        return super().for_family(settings, **given, **parts)

    @classmethod
    def check_family(cls, settings: Any) -> None:
        super().check_family(settings)
        chooses = "pixels" in cls.options  # its size, and so its channels too
        side = getattr(settings, "pixels", cls.side) if chooses else cls.side
        if (settings.channels > 1 and not chooses) or settings.side % side:
            given = f"data = {settings.data!r}, side = {settings.side}; use linear-head"
            raise McdiError(f"{cls.kind} reads drawings of a side that is a multiple of {side}, not {given}")

    @property
    def set_shape(self) -> tuple[int, ...]:
        return self.channels, self.side, self.side

    def support_set(self, support: Examples, way: int) -> Tensor:
        return super().support_set(support._replace(x=support.x[..., : self.pixels]), way)

    def embed(self, x: Tensor) -> Tensor:
        if self.embedder is None:
            raise McdiError("this network reads pixels and features: it needs its image backbone")
        features = self.embedder(x)
        small = F.avg_pool2d(x.flatten(0, -4).float().to(features.device) / 255, x.shape[-1] // self.side)
        return torch.cat([small.reshape(*x.shape[:-3], self.pixels), features], -1)

    def condition(self, support: Examples, units: int) -> Tensor:
        if (way := self.classes(units)) != self.way:
            raise McdiError(f"this generator makes networks for {self.way} classes, not {way}")
        read = support.x[..., self.pixels :] if self.features else support.x
        mean, count = class_means(read, support.y, self.way)
        flat = torch.cat([mean, count.clamp(min=1).log()[..., None]], -1).flatten(1)
        return flat[:, None].expand(-1, units, -1)

    def standalone(self, state: State) -> nn.Module:
        """From images (N, channels, H, H) in [0, 1], of the side that the generator reads."""
        module = self.with_state(state)
        assert self.embedder is not None
        return nn.Sequential(nn.AvgPool2d(self.embedder.side // self.side), nn.Flatten(), module)

    def body_input(self, x: Tensor) -> Tensor:
        return x[..., : self.pixels]

    def forward(self, state: State, x: Tensor, keys: Tensor | None = None) -> Tensor:
        return super().forward(state, self.body_input(x), keys)

    def config(self) -> dict[str, Any]:
        return self._described(features=self.features, way=self.way, unit=self.space.unit, head=self.head)


@register_network("pixel-net", "images")
class PixelNet(PixelNetwork):
    """Two layers: 3,237 weights with 16 hidden units for 5 classes.

    head: how the last layer is made, see `EndsInLinear`.
    """

    def __init__(
        self,
        features: int,
        way: int,
        embedder: Embedder | None = None,
        *,
        hidden: int = 16,
        head: LastLayer = "generated",
        unit: Unit = "filter",
    ) -> None:
        module = nn.Sequential(nn.Linear(self.side**2, hidden), nn.ReLU(), nn.Linear(hidden, way))
        super().__init__(module, features, way, embedder, unit, head)
        self.hidden = hidden

    def config(self) -> dict[str, Any]:
        return {**super().config(), "hidden": self.hidden}
