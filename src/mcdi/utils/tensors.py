"""What users pass as numbers, as plain tensors: of any library, type, memory layout and history."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcdi.errors import McdiError, explained


def tensor_of(values: Any, what: str) -> Tensor:
    """The numbers of a tensor, an array, a number, or of (nested) sequences of these: without a graph, dense.

    Args:
        values: of any real type, on any device.
        what: what errors call them.

    Raises:
        McdiError: no numbers, complex ones, or sequences of unequal shapes.
    """
    with explained(f"{what} cannot be read as numbers", "give a tensor, an array, or a list of equal shapes"):
        t = _tensor(values)
        if t.is_complex() or t.is_meta or t.is_nested:
            kind = "complex" if t.is_complex() else "of unequal shapes"
            raise TypeError("there is nothing on the meta device" if t.is_meta else f"they are {kind}")
        t = t.detach()
        t = t.to_dense() if t.layout is not torch.strided else t.dequantize() if t.is_quantized else t
        return t.clone() if t.is_inference() else t.as_subclass(Tensor)  # autograd takes no tensor of the inference mode


def _tensor(values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values
    if isinstance(values, Sequence) and _holds_tensors(values):
        return torch.stack([_tensor(value) for value in values])
    if np.ma.is_masked(values):
        raise TypeError("some are masked")
    array = np.asarray(values)
    array = np.asarray(array.tolist()) if array.dtype.kind == "O" else array
    if array.dtype.kind not in "biuf":
        raise TypeError(f"their type is {array.dtype}")
    kind = np.float64 if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, dtype=kind, order="C"))  # torch takes no negative strides


def _holds_tensors(values: Sequence[Any]) -> bool:
    while isinstance(values, Sequence) and not isinstance(values, str | bytes) and len(values):
        values = values[0]
    return isinstance(values, Tensor)


def numbers_of(values: Any, what: str) -> Tensor:
    """As `tensor_of`, in one of four types: bool, uint8, int64 for all other integers, float32 for all real numbers. Raises
    McdiError for NaN, and for numbers that float32 or int64 cannot hold."""
    t = tensor_of(values, what)
    if t.is_floating_point():
        t = t.float()
        if not finite(t):
            raise McdiError(f"{what} hold NaN or infinite values, or too large ones: clean them first")
    elif t.dtype is torch.uint64 and bool((t.view(torch.int64) < 0).any()):
        raise McdiError(f"{what} hold integers of 2**63 or more: give smaller ones")
    return t if t.dtype in (torch.bool, torch.uint8) or t.is_floating_point() else t.long()


def finite(t: Tensor) -> bool:
    """Whether all numbers of a real type are."""
    numbers = t.detach().float() if t.dtype.itemsize == 1 else t.detach()  # torch compares no numbers of 8 bits
    return not t.numel() or all(map(math.isfinite, numbers.aminmax()))  # NaN is both; 20 times faster than isfinite().all()


def labels_of(values: Any, what: str) -> Tensor:
    """Class indices, of any integer type or bool, as int64. Raises McdiError for real numbers."""
    t = numbers_of(values, what)
    if t.is_floating_point() and t.numel():
        raise McdiError(f"{what} must be integers 0, 1, .. for a classifier, not real numbers: convert them, as by y.long()")
    return t.long()


def pixels_of(values: Any, what: str) -> Tensor:
    """Images as uint8, by one rule for each type: integers of any width are 0..255, real numbers are 0..1, and so are bools.
    Raises McdiError for numbers outside of that: no value is ever clipped."""
    t = numbers_of(values, what)
    real = t.is_floating_point()
    if t.dtype is torch.uint8 or not t.numel():
        return t.to(torch.uint8)
    low, high = (float(v) for v in (t.float() if t.dtype is torch.bool else t).aminmax())
    if low < 0 or high > (1 if real else 255):
        rule = "real numbers are pixels in 0..1" if real else "integers are pixels in 0..255"
        raise McdiError(f"{what} run from {low:.9g} to {high:.9g}, but {rule}: scale them, or give uint8")
    return (t * 255).round().to(torch.uint8) if real or t.dtype is torch.bool else t.to(torch.uint8)
