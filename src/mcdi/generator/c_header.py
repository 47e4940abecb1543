"""A generated network as a C header: its weights, and a forward pass in C99 that needs nothing but the standard library."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from jinja2 import Environment, PackageLoader
from torch import Tensor, nn

from mcdi import __version__
from mcdi.errors import McdiError
from mcdi.networks.grouped import layers_of

SWAP = "swap = x, x = y, y = swap;"


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (outputs, ...) as 8-bit integers and the scale of every output: weight ~ integers * scale."""
    scale = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
    return (weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).round().to(torch.int8), scale


def c_header(module: nn.Sequential, shape: Sequence[int], classes: Sequence[str], *, int8: bool = False) -> str:
    """The header of a network of convolutions, group norms, pools, ReLU and linear layers.

    Args:
        module: (N, channels, side, side) in [0, 1] -> (N, classes), in evaluation mode.
        shape: of one image, (channels, side, side).
        classes: their names.
        int8: weights of convolutions and linear layers as 8-bit integers.

    Raises:
        McdiError: a layer that the header has no code for.
    """
    writer = _Writer(tuple(shape), int8)
    for _, layer in layers_of(module):
        writer.add(layer)
    names = [json.dumps(name, ensure_ascii=False)[1:-1] for name in classes]
    facts = {"classes": names, "channels": shape[0], "side": shape[1], "int8": int8, "version": __version__}
    template = Environment(
        loader=PackageLoader("mcdi.generator"), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    ).get_template("network.h")
    return template.render(
        **facts, arrays=writer.arrays, calls=writer.calls, used=writer.used, largest=writer.largest, numbers=writer.numbers
    )


class _Writer:
    """Collects arrays and calls, layer after layer; `x` holds what the last one made."""

    def __init__(self, shape: tuple[int, ...], int8: bool) -> None:
        self.shape, self.int8 = shape, int8
        self.arrays: list[dict[str, Any]] = []
        self.calls: list[str] = []
        self.used: set[str] = set()
        self.largest, self.numbers = torch.Size(shape).numel(), 0

    def add(self, layer: nn.Module) -> None:
        if isinstance(layer, (nn.Flatten, nn.Unflatten, nn.Identity)):
            self.shape = tuple(layer.unflattened_size) if isinstance(layer, nn.Unflatten) else self.shape
        elif isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros":
            self._convolution(layer)
        elif isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)) and layer.kernel_size == layer.stride and layer.padding == 0:
            self._pool(int(layer.kernel_size), isinstance(layer, nn.MaxPool2d))  # type: ignore[arg-type]
        elif isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)) and self.shape[1] == self.shape[2]:
            self._pool(self.shape[1], False)
        elif isinstance(layer, nn.GroupNorm) and layer.affine:
            size = self._size() // self.shape[0]
            arrays = f"{self._array(layer.weight)}, {self._array(layer.bias)}, {layer.eps!r}f"
            self._call("normalise", f"x, {self.shape[0]}, {size}, {layer.num_groups}, {arrays}", swaps=False)
        elif type(layer) is nn.ReLU:
            self.calls.append(f"for (int i = 0; i < {self._size()}; i++) x[i] = x[i] > 0 ? x[i] : 0;")
        elif isinstance(layer, nn.Linear):
            weights = f"{self._weights(layer.weight)}, {self._array(layer.bias)}"
            outputs, inputs = layer.weight.shape  # a task may have other classes than the template
            self._call("multiply", f"x, {inputs}, {weights}, {outputs}, y")
            self.shape = (outputs,)
        else:
            raise McdiError(f"a C header has no code for {layer}: write the network as .onnx, .pt2 or .safetensors")
        self.largest = max(self.largest, self._size())

    def _convolution(self, layer: nn.Conv2d) -> None:
        (k, other), stride, padding = layer.kernel_size, layer.stride, layer.padding
        if k != other or stride[0] != stride[1] or isinstance(padding, str) or padding[0] != padding[1]:
            raise McdiError(f"a C header has no code for {layer}: write the network as .onnx, .pt2 or .safetensors")
        _, h, w = self.shape
        out = tuple((size + 2 * int(padding[0]) - k) // stride[0] + 1 for size in (h, w))
        sizes = f"{layer.out_channels}, {k}, {stride[0]}, {padding[0]}, {out[0]}, {out[1]}"
        weights = f"{self._weights(layer.weight)}, {self._array(layer.bias)}"
        self._call("convolve", f"x, {layer.in_channels}, {h}, {w}, {weights}, {sizes}, y")
        self.shape = (layer.out_channels, *out)

    def _pool(self, k: int, maximum: bool) -> None:
        c, h, w = self.shape
        self._call("pool", f"x, {c}, {h}, {w}, {k}, {int(maximum)}, y")
        self.shape = (c, h // k, w // k)

    def _call(self, function: str, arguments: str, *, swaps: bool = True) -> None:
        self.used.add(function)
        self.calls.append(f"mcdi_{function}({arguments});" + (f" {SWAP}" if swaps else ""))

    def _size(self) -> int:
        return torch.Size(self.shape).numel()

    def _weights(self, weight: Tensor) -> str:
        """Names of the arrays of a weight and of its scales."""
        if not self.int8:
            return f"{self._array(weight)}, 0"
        integers, scale = rounded(weight.detach())
        return f"{self._array(integers, 'int8_t')}, {self._array(scale)}"

    def _array(self, values: Tensor | None, kind: str = "float") -> str:
        if values is None:
            return "0"
        name = f"mcdi_array_{len(self.arrays)}"
        flat = values.detach().flatten().tolist()
        shown = [f"{v:.9g}f" if "." in f"{v:.9g}" or "e" in f"{v:.9g}" else f"{v:.9g}.0f" for v in flat]
        self.arrays.append({"name": name, "type": kind, "elements": shown if kind == "float" else [str(v) for v in flat]})
        self.numbers += len(flat)
        return name
