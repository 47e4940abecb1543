"""Image backbones: small ones that are trained here on the training classes, and how any is made again."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.networks.backbones.pretrained import Pretrained, is_pretrained, rebuild
from mcdi.utils.random import step_generator
from mcdi.utils.training import cosine_rate, restore_training, training_state


class Conv4(nn.Sequential):
    """Four blocks of 64 3x3 filters, averaged over what is left of the image; (N, C, H, W) in [0, 1] -> (N, 64).
    Max-pooling stands before the normalisation, not after it: the same receptive fields at a quarter of the memory
    traffic, 2.5x faster on a CPU together with channels-last. An image needs a side of 2^blocks."""

    kind = "conv4"

    def __init__(self, channels: int = 1, width: int = 64, blocks: int = 4) -> None:
        layers: list[nn.Module] = []
        for b in range(blocks):
            convolution = nn.Conv2d(channels if b == 0 else width, width, 3, padding=1)
            layers += [convolution, nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.channels, self.features = channels, width


class Residual(nn.Module):
    """Two 3x3 convolutions with a 1x1 shortcut (1512.03385); `stride` halves the image."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first, second = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.body = nn.Sequential(first, nn.BatchNorm2d(outputs), nn.ReLU(), second, nn.BatchNorm2d(outputs))
        self.side = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.side(x))


class ResNet8(nn.Sequential):
    """A 3x3 convolution and three residual blocks of 32, 64 and 128 filters, averaged; (N, C, H, W) in [0, 1] -> (N, 128)."""

    kind = "resnet8"

    def __init__(self, channels: int = 3) -> None:
        widths = (32, 64, 128)
        stem = [nn.Conv2d(channels, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
        inputs = (widths[0], *widths)
        blocks = [Residual(inputs[b], width, 1 if b == 0 else 2) for b, width in enumerate(widths)]
        super().__init__(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.channels, self.features = channels, widths[-1]


class NoBackbone(nn.Module):
    """For networks that read pixels alone: no features, (N, C, H, W) -> (N, 0)."""

    kind, features = "none", 0

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("device", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), 0)


SHOTS, QUERIES = 1, 5  # of a class in an episode
Backbone = Conv4 | ResNet8 | NoBackbone | Pretrained
Objective = Literal["prototypes", "classes", "both"]
BACKBONES: dict[str, type[Conv4 | ResNet8 | NoBackbone]] = {b.kind: b for b in (Conv4, ResNet8, NoBackbone)}


def make_backbone(config: Mapping[str, Any]) -> Backbone:
    """An untrained backbone, from `Embedder.config`."""
    name = config["backbone"]
    if is_pretrained(name):
        return rebuild(name, config["model"])
    if name not in BACKBONES:
        raise McdiError(f"unknown backbone {name!r}: this version knows {', '.join(BACKBONES)}")
    return BACKBONES[name](config["channels"])


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random affine view of each image (N, C, H, W): up to 10 degrees, 15 % scale, 20 % shear, 10 % shift. Colour
    images are also mirrored and changed in brightness and contrast; theirs is reflected at the border, not black."""
    r = torch.rand(6, len(images), generator=generator, device=generator.device) * 2 - 1
    angle, shear, scale_x, scale_y = r[0] * math.radians(10), 0.2 * r[1], 1 + 0.15 * r[2], 1 + 0.15 * r[3]
    top = torch.stack([angle.cos() * scale_x, shear - angle.sin(), 0.1 * r[4]], -1)
    bottom = torch.stack([angle.sin(), angle.cos() * scale_y, 0.1 * r[5]], -1)
    colour = images.shape[1] > 1
    if colour:
        mirrored, bright, contrast = torch.rand(3, len(images), generator=generator, device=generator.device)
        top = top * torch.where(mirrored < 0.5, 1.0, -1.0)[:, None]
    grid = F.affine_grid(torch.stack([top, bottom], 1), list(images.shape), align_corners=False)
    if not colour:
        return F.grid_sample(images, grid, align_corners=False)
    views = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    mean = views.mean((1, 2, 3), keepdim=True)
    scale, shift = (0.7 + 0.6 * contrast)[:, None, None, None], (0.4 * bright - 0.2)[:, None, None, None]
    return ((views - mean) * scale + mean + shift).clamp(0, 1)


def prototypical_loss(features: Tensor, shots: int) -> Tensor:
    """Cross-entropy of queries over squared distances to class means (Prototypical Networks, 1703.05175, eq. 2).
    features (way, shots + queries, F); the first `shots` examples of every class make its prototype."""
    way, _, size = features.shape
    queries = features[:, shots:]
    distance = torch.cdist(queries.reshape(-1, size), features[:, :shots].mean(1)) ** 2
    return F.cross_entropy(-distance, torch.arange(way, device=features.device).repeat_interleave(queries.shape[1]))


class BackboneLoss(nn.Module):
    """The loss of a backbone: "prototypes", the ProtoNet loss of an episode; "classes", the cross-entropy of a linear
    classifier of all training classes, discarded afterwards (1904.04232); "both", their sum."""

    def __init__(self, objective: Objective, features: int, classes: int, shots: int) -> None:
        super().__init__()
        self.objective, self.shots = objective, shots
        self.linear = None if objective == "prototypes" else nn.utils.skip_init(nn.Linear, features, classes)
        for p in self.parameters():
            nn.init.zeros_(p)  # draws nothing: the seed decides the backbone alone

    def forward(self, features: Tensor, classes: Tensor) -> Tensor:
        """features (way, shots + queries, F) of the classes (way,)."""
        loss = features.new_zeros(())
        if self.objective != "classes":
            loss = loss + prototypical_loss(features, self.shots)
        if self.linear is not None:
            labels = classes.to(features.device).repeat_interleave(features.shape[1])
            loss = loss + F.cross_entropy(self.linear(features).flatten(0, 1), labels)
        return loss


def train_adamw(
    trained: nn.Module,
    loss: Callable[[int], Tensor],
    steps: int,
    *,
    lr: float,
    weight_decay: float,
    fused: bool | None = None,
    start: tuple[int, dict[str, Tensor]] | None = None,
    checkpoint: Callable[[int, dict[str, Tensor]], object] | None = None,
    checkpoint_every: int = 200,
) -> Iterator[float]:
    """Train a module in place by AdamW under a one-cycle rate; yields the loss of every step.

    Args:
        loss: of a step, which alone decides it, so that a resumed run ends with the same weights.
        start: (steps done, state) that `checkpoint` was given in a stopped run.
        checkpoint: called every `checkpoint_every` steps, and after the last.
    """
    optimiser = torch.optim.AdamW(trained.parameters(), lr=lr, weight_decay=weight_decay, fused=fused)
    if start is not None:
        restore_training(trained.state_dict(), optimiser, start[1])
    for step in range(start[0] if start else 0, steps):
        optimiser.param_groups[0]["lr"] = cosine_rate(step, steps, lr, warmup=0.1, floor=1e-6)
        value = loss(step)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        yield float(value.detach())
        if checkpoint is not None and ((step + 1) % checkpoint_every == 0 or step + 1 == steps):
            checkpoint(step + 1, training_state(trained.state_dict(), optimiser))


def train_backbone(
    model: Backbone, images: Tensor, *, steps: int, seed: int, objective: Objective = "prototypes", way: int = 60, **resume: Any
) -> Iterator[float]:
    """Train `model` in place with a `BackboneLoss`; yields the loss of every step. (seed, step) decides an episode.

    Args:
        images: (C, M, channels, H, W), uint8.
        way: classes of a step, which sees SHOTS + QUERIES images of each, or all there are.
        resume: `start`, `checkpoint` and `checkpoint_every` of `train_adamw`.
    """
    device = next(model.parameters()).device
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    way, seen = min(way, len(images)), min(SHOTS + QUERIES, images.shape[1])
    criterion = BackboneLoss(objective, model.features, len(images), SHOTS).to(device)

    def episode(step: int) -> Tensor:
        model.train()
        generator = step_generator(seed, step)
        classes = torch.randperm(len(images), generator=generator)[:way]
        picks = torch.rand(way, images.shape[1], generator=generator).argsort(1)[:, :seen]
        batch = images[classes[:, None], picks].flatten(0, 1).float() / 255
        batch = augmented(batch, generator).to(device).contiguous(memory_format=torch.channels_last)
        loss: Tensor = criterion(model(batch).reshape(way, seen, -1), classes)
        return loss

    both = nn.ModuleDict({"model": model, "loss": criterion})
    return train_adamw(both, episode, steps, lr=4e-3, weight_decay=5e-4, fused=True, **resume)
