"""The frozen Embedder around a backbone: images to features of one length."""

import itertools
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mcdi.networks.backbones.pretrained import Pretrained
from mcdi.networks.backbones.vision import Backbone, Conv4, make_backbone
from mcdi.networks.batched import exclusive
from mcdi.networks.discriminant import Metric


@torch.no_grad()
def compute_features(model: nn.Module, images: Tensor) -> Tensor:
    """Frozen features of uint8 images (..., channels, H, W) -> (..., F), in evaluation mode. Weights are brought into
    channels-last order, which files do not keep: without it images of one channel are convolved five times slower on a
    CPU. There, few images at once stay in cache."""
    with exclusive(model):  # no thread computes with weights that another one is bringing into order
        model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    device = next(itertools.chain(model.parameters(), model.buffers())).device
    flat, few = images.flatten(0, -4), 32 if device.type == "cpu" else 512
    out = [model((part.to(device).float() / 255).contiguous(memory_format=torch.channels_last)) for part in flat.split(few)]
    return torch.cat(out).flatten(1).unflatten(0, images.shape[:-3])


def cl2n(features: Tensor, mean: Tensor) -> Tensor:
    """Features (..., F) centred and brought to length sqrt(F) (CL2N, 1911.04623)."""
    return F.normalize(features - mean, dim=-1) * features.shape[-1] ** 0.5


class Embedder(nn.Module):
    """A frozen backbone for square images of one size; its features are centred on the training classes and of equal
    length. Without the common length Adam spends its steps on the many features that are nearly always 0, and heads of
    training classes generalise worse to unseen ones: regression of them is 1 to 2 points behind nearest prototypes.
    embedding: a second Embedder of the same images, by whose features tasks are embedded: they stand behind the
    others. metric_axes: of a further map that knows how classes differ (`discriminant.Metric`); 0 for none."""

    bf16 = False  # whether networks compute in bfloat16; features stay float32

    def __init__(
        self, backbone: Backbone, side: int = 28, embedding: "Embedder | None" = None, *, metric_axes: int = 0
    ) -> None:
        super().__init__()
        self.backbone, self.side, self.embedding = backbone, side, embedding
        self.mean = nn.Buffer(torch.zeros(backbone.features))
        self.metric_axes = metric_axes
        if metric_axes:
            self.axes, self.gains = nn.Buffer(torch.zeros(backbone.features, metric_axes)), nn.Buffer(torch.zeros(metric_axes))
            self.centre = nn.Buffer(torch.zeros(backbone.features))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Embedder":
        """An untrained one that `config()` described. Raises McdiError for a backbone that this version does not know."""
        embedding = cls.from_config(config["embedding"]) if "embedding" in config else None
        return cls(make_backbone(config), config["side"], embedding, metric_axes=config.get("metric_axes", 0))

    def config(self) -> dict[str, Any]:
        more: dict[str, Any] = {"model": self.backbone.described} if isinstance(self.backbone, Pretrained) else {}
        more |= {} if self.embedding is None else {"embedding": self.embedding.config()}
        more |= {"metric_axes": self.metric_axes} if self.metric_axes else {}
        return {"backbone": self.backbone.kind, "channels": self.backbone.channels, "side": self.side, **more}

    def _packaged(self) -> tuple[str, ...]:
        """How the names of tensors begin that an installed package holds."""
        own = ("backbone.",) if getattr(self.backbone, "packaged", False) else ()
        return own if self.embedding is None else (*own, *(f"embedding.{name}" for name in self.embedding._packaged()))

    def saved(self) -> dict[str, Tensor]:
        """The tensors that a file must hold."""
        return {n: t for n, t in self.state_dict().items() if not n.startswith(self._packaged())}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Take the tensors of `saved`. Raises RuntimeError where they are those of another network."""
        missing, unexpected = self.load_state_dict(saved, strict=False)
        if wrong := [*unexpected, *(n for n in missing if not n.startswith(self._packaged()))]:
            raise RuntimeError(f"missing or unexpected: {', '.join(wrong)}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: (channels, side, side)."""
        return self.backbone.channels, self.side, self.side

    def in_bf16(self) -> None:
        """Compute in bfloat16 from now on; saved weights stay as they are."""
        self.bf16 = True
        if self.embedding is not None:
            self.embedding.in_bf16()

    def fit(self, features: Tensor) -> Tensor:
        """Set the mean from the backbone's features (..., F) of the training classes; returns them standardised."""
        self.mean.copy_(features.flatten(0, -2).mean(0))
        return cl2n(features, self.mean)

    @property
    def metric(self) -> Metric | None:
        """The map behind the common length, where there is one. As long as it is not set, it only centres by zero."""
        return Metric(self.axes, self.gains, self.centre) if self.metric_axes else None

    def set_metric(self, metric: Metric) -> None:
        """Take the numbers of `metric`, which has `metric_axes` axes."""
        for own, given in zip((self.axes, self.gains, self.centre), metric, strict=True):
            own.copy_(given)

    def activations(self, images: Tensor) -> Tensor:
        """Outputs of Conv4's last normalisation: uint8 images (..., channels, side, side) -> (..., P * F), pixel after
        pixel. Their ReLU, averaged over the P pixels, is the backbone's feature."""
        assert isinstance(self.backbone, Conv4)
        after = 3  # ReLU, average, flatten
        flat = self._features(nn.Sequential(*list(self.backbone)[:-after], nn.Flatten(2)), images)
        return flat.unflatten(-1, (self.backbone.features, -1)).transpose(-1, -2).flatten(-2)

    def backbone_features(self, images: Tensor) -> Tensor:
        """Without the embedding: uint8 images (..., channels, side, side) -> (..., F)."""
        return self.standardised(self._features(self.backbone, images))

    def standardised(self, features: Tensor) -> Tensor:
        """Outputs of the backbone (..., F) as heads read them."""
        features = cl2n(features, self.mean)
        return features if self.metric is None else self.metric(features)

    def _features(self, network: nn.Module, images: Tensor) -> Tensor:
        with torch.autocast(self.mean.device.type, torch.bfloat16, enabled=self.bf16):
            return compute_features(network, images).float()

    def forward(self, images: Tensor) -> Tensor:
        """-> (..., F), or (..., F + E) with those of the embedding."""
        features = self.backbone_features(images)
        return features if self.embedding is None else torch.cat([features, self.embedding(images)], -1)


class Classifier(nn.Module):
    """A backbone and a head on its features in one: images (N, channels, side, side) in [0, 1] -> (N, classes)."""

    def __init__(self, embedder: Embedder, head: nn.Module) -> None:
        super().__init__()
        self.embedder, self.head = embedder, head

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embedder.standardised(self.embedder.backbone(images)))
        return logits
