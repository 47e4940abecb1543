"""A generated network as a C header: its weights, and a forward pass in C99 that needs nothing but the standard library."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from jinja2 import Environment, PackageLoader
from torch import Tensor

from mcdi import __version__
from mcdi.generator.plain import Operation

SWAP = "swap = x, x = y, y = swap;"


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (outputs, ...) as 8-bit integers and the scale of every output: weight ~ integers * scale."""
    scale = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
    return (weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).round().to(torch.int8), scale


def c_header(steps: Sequence[Operation], classes: Sequence[str], *, int8: bool = False) -> str:
    """The header of a network.

    Args:
        steps: of `plain.operations`.
        classes: their names.
        int8: weights of convolutions and linear layers as 8-bit integers.
    """
    shape = steps[0].inputs
    writer = _Writer(int8)
    calls = [writer.call(step) for step in steps]
    names = [json.dumps(name, ensure_ascii=False)[1:-1] for name in classes]
    facts = {"classes": names, "channels": shape[0], "side": shape[1], "int8": int8, "version": __version__}
    template = Environment(
        loader=PackageLoader("mcdi.generator"), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    ).get_template("network.h")
    largest = max(torch.Size(size).numel() for size in (shape, *(step.shape for step in steps)))
    used = {step.kind for step in steps}
    return template.render(**facts, arrays=writer.arrays, calls=calls, used=used, largest=largest, numbers=writer.numbers)


class _Writer:
    """Makes the call of every operation, and collects the arrays that it names; `x` holds what the last one made."""

    def __init__(self, int8: bool) -> None:
        self.int8, self.numbers = int8, 0
        self.arrays: list[dict[str, Any]] = []

    def call(self, step: Operation) -> str:
        size = torch.Size(step.inputs).numel()
        if step.kind == "rectify":
            return f"for (int i = 0; i < {size}; i++) x[i] = x[i] > 0 ? x[i] : 0;"
        if step.kind == "normalise":
            arrays = f"{self._array(step.weight)}, {self._array(step.bias)}, {step.eps!r}f"
            return f"mcdi_normalise(x, {step.inputs[0]}, {size // step.inputs[0]}, {step.sizes['groups']}, {arrays});"
        inputs, sizes = ", ".join(map(str, step.inputs)), list(step.sizes.values())
        if step.kind == "pool":
            arguments = [inputs, *sizes]
        elif step.kind == "convolve":
            arguments = [inputs, self._weights(step), step.shape[0], *sizes, *step.shape[1:]]
        else:
            arguments = [size, self._weights(step), step.shape[0]]
        return f"mcdi_{step.kind}(x, {', '.join(map(str, arguments))}, y); {SWAP}"

    def _weights(self, step: Operation) -> str:
        """Names of the arrays of a weight, of its scales and of a bias."""
        assert step.weight is not None
        if not self.int8:
            return f"{self._array(step.weight)}, 0, {self._array(step.bias)}"
        integers, scale = rounded(step.weight)
        return f"{self._array(integers, 'int8_t')}, {self._array(scale)}, {self._array(step.bias)}"

    def _array(self, values: Tensor | None, kind: str = "float") -> str:
        if values is None:
            return "0"
        name = f"mcdi_array_{len(self.arrays)}"
        flat = values.flatten().tolist()
        shown = [f"{v:.9g}f" if "." in f"{v:.9g}" or "e" in f"{v:.9g}" else f"{v:.9g}.0f" for v in flat]
        self.arrays.append({"name": name, "type": kind, "elements": shown if kind == "float" else [str(v) for v in flat]})
        self.numbers += len(flat)
        return name
