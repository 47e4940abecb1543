"""A generated network as a list of plain operations, which a few lines of C or JavaScript run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.generator.api import Generator, Weights
from mcdi.networks.grouped import knows, layers_of

Kind = Literal["convolve", "pool", "normalise", "rectify", "multiply"]


@dataclass(frozen=True)
class Operation:
    """A step from numbers (channels, height, width), or (outputs,), to others of `shape`.

    convolve: sizes kernel, stride, padding; a weight (outputs, inputs, kernel, kernel) and maybe a bias; zeros around images.
    pool: sizes kernel, maximum (1, or 0: the mean of kernel x kernel numbers).
    normalise: a group norm: groups; weight, bias.
    rectify: max(x, 0).
    multiply: a weight (outputs, inputs) and maybe a bias.
    """

    kind: Kind
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    sizes: dict[str, int] = field(default_factory=dict)
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 0.0


def operations(module: nn.Module, shape: Sequence[int]) -> list[Operation]:
    """The operations of a network of convolutions, group norms, pools, ReLU and linear layers.

    Args:
        module: in evaluation mode; maps images (N, channels, side, side).
        shape: of one image, (channels, side, side).

    Raises:
        McdiError: a layer that is none of them, or a network of anything but images.
    """
    if not isinstance(module, nn.Sequential) or len(shape) != 3:
        raise McdiError("this is no network of images in plain layers: write it as .onnx, .pt2 or .safetensors")
    done: list[Operation] = []
    size = tuple(shape)
    for _, layer in layers_of(module):
        if isinstance(layer, nn.Unflatten) and knows(layer):
            size = tuple(layer.unflattened_size)
        elif not (isinstance(layer, (nn.Flatten, nn.Identity)) and knows(layer)):
            done.append(_operation(layer, size))
            size = done[-1].shape
    return done


def plain_network(generator: Generator, weights: Weights) -> list[Operation]:
    """The operations of the network of one task, weights {name: (*shape)}. Raises McdiError where the network needs its
    backbone, and as `operations` does."""
    return operations(generator.network.standalone({n: w.cpu() for n, w in weights.items()}).eval(), generator.image_shape)


def _operation(layer: nn.Module, inputs: tuple[int, ...]) -> Operation:
    made: Operation | None = None
    if not knows(layer):
        pass
    elif isinstance(layer, nn.Conv2d):
        made = _convolution(layer, inputs)
    elif isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
        square = isinstance(layer.kernel_size, int) and layer.kernel_size == layer.stride
        usual = square and layer.padding == 0 and not layer.ceil_mode
        if usual and getattr(layer, "dilation", 1) == 1 and getattr(layer, "divisor_override", None) is None:
            made = _pool(int(layer.kernel_size), inputs, maximum=isinstance(layer, nn.MaxPool2d))  # type: ignore[arg-type]
    elif isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)) and inputs[1] == inputs[2]:
        made = _pool(inputs[1], inputs, maximum=False)
    elif isinstance(layer, nn.GroupNorm) and layer.affine:
        groups = {"groups": layer.num_groups}
        made = Operation("normalise", inputs, inputs, groups, layer.weight.detach(), layer.bias.detach(), layer.eps)
    elif isinstance(layer, nn.ReLU):
        made = Operation("rectify", inputs, inputs)
    elif isinstance(layer, nn.Linear) and layer.weight.shape[1] == prod(inputs):
        outputs = layer.weight.shape[:1]  # a task may have other classes than the template
        made = Operation("multiply", inputs, tuple(outputs), {}, layer.weight.detach(), _detached(layer.bias))
    if made is None:
        raise McdiError(f"there is no plain code for {layer}: write the network as .onnx, .pt2 or .safetensors")
    return made


def _convolution(layer: nn.Conv2d, inputs: tuple[int, ...]) -> Operation | None:
    """None for a convolution that is not square, or has groups, dilation or other padding than zeros."""
    (k, other), stride, padding = layer.kernel_size, layer.stride, layer.padding
    square = k == other and stride[0] == stride[1] and not isinstance(padding, str) and padding[0] == padding[1]
    if not square or layer.groups != 1 or layer.dilation != (1, 1) or layer.padding_mode != "zeros":
        return None
    sizes = {"kernel": k, "stride": stride[0], "padding": int(padding[0])}
    sides = [(side + 2 * sizes["padding"] - k) // stride[0] + 1 for side in inputs[1:]]
    shape = (layer.out_channels, *sides)
    return Operation("convolve", inputs, shape, sizes, layer.weight.detach(), _detached(layer.bias))


def _pool(k: int, inputs: tuple[int, ...], *, maximum: bool) -> Operation:
    shape = (inputs[0], *(side // k for side in inputs[1:]))
    return Operation("pool", inputs, shape, {"kernel": k, "maximum": int(maximum)})


def _detached(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.detach()
