"""The residual networks of torchvision (1512.03385), by its names, so that its checkpoints load without that package."""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

# Blocks of the four stages, and whether they are bottlenecks.
RESNETS: dict[str, tuple[tuple[int, int, int, int], bool]] = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class Block(nn.Module):
    """Two 3x3 convolutions, or a 3x3 one between two 1x1 (its stride in the middle, as in torchvision); the input is added."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        self.conv1 = _conv(inputs, width, 1) if bottleneck else _conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride) if bottleneck else _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        if bottleneck:
            self.conv3, self.bn3 = _conv(width, outputs, 1), nn.BatchNorm2d(outputs)
        self.bottleneck = bottleneck
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            h = self.bn3(self.conv3(F.relu(h)))
        return F.relu(h + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Normalised images (N, 3, H, W) -> (N, 512 or 2048), averaged over what is left of the image, without a classifier."""

    def __init__(self, name: str) -> None:
        super().__init__()
        blocks, bottleneck = RESNETS[name]
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for stage, count in enumerate(blocks):
            width, layers = 64 * 2**stage, []
            for number in range(count):
                layers.append(Block(inputs, width, 2 if stage and not number else 1, bottleneck))
                inputs = 4 * width if bottleneck else width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in (1, 2, 3, 4):
            h = self.get_submodule(f"layer{stage}")(h)
        return h.mean((2, 3))
