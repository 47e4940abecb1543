"""Conversion of untrusted requests to tensors; every limit is checked before the work that it bounds."""

import base64
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.generator.api import Generator
from mcdi.serve.limits import Limits
from mcdi.serve.models import inputs_of
from mcdi.serve.wire import Inputs, Label, Task
from mcdi.tasks.images.class_images import Shape
from mcdi.tasks.images.files import opened, read_image, scale_down

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
SCALED = 4  # times the pixels of other files may a JPEG have: progressive ones are kept whole until they are scaled down
LONGEST_NAME = 200  # characters of a label
LONGEST_NUMBER = 10**LONGEST_NAME
MAX_VALUE = 1e6  # of a feature or label; sums of squares of larger ones overflow float32


class SupportSet(NamedTuple):
    """x: a tensor (S, ...), or S texts; y (S,); classes in the order of the rows, none for a regression."""

    x: Any
    y: Tensor
    classes: tuple[Label, ...]


def decode_support(task: Task, generator: Generator, limits: Limits) -> SupportSet:
    """The support set of a task. Raises McdiError if it does not fit the model or the limits."""
    x = decode_inputs(task.support, "support", generator, limits)
    if len(x) != len(task.labels):
        raise McdiError(f"support holds {len(x)} examples and labels {len(task.labels)}: give one label per example")
    if generator.network.regression:
        if any(isinstance(v, str) for v in task.labels):
            raise McdiError("labels of a regression must be numbers, not names")
        bounded = [float(min(max(v, -2 * MAX_VALUE), 2 * MAX_VALUE)) for v in task.labels]  # integers may exceed any float
        return SupportSet(x, _real([bounded], "labels")[0], ())
    if {type(v) for v in task.labels} not in ({int}, {str}):
        raise McdiError("labels of a classifier must be all integers or all names")
    classes: tuple[Label, ...] = tuple(sorted(set(task.labels)))
    if not 2 <= len(classes) <= limits.classes:
        raise McdiError(f"labels contain {len(classes)} classes: give 2 to {limits.classes}")
    if any(abs(c) >= LONGEST_NUMBER if isinstance(c, int) else len(c) > LONGEST_NAME for c in classes):
        raise McdiError(f"one of the labels has more than {LONGEST_NAME} characters: shorten it")
    index = {c: i for i, c in enumerate(classes)}
    return SupportSet(x, torch.tensor([index[v] for v in task.labels]), classes)


def decode_inputs(inputs: Inputs, where: str, generator: Generator, limits: Limits) -> Any:
    """Images (S, *shape) uint8, features (S, F), or a tuple of texts. Raises McdiError, see `decode_support`."""
    sent = {n: v for n, v in inputs if v is not None}
    if len(sent) != 1:
        raise McdiError(f"{where} holds {' and '.join(sent) or 'nothing'}: send exactly one of images, features and texts")
    ((kind, values),) = sent.items()
    reads: dict[str, Any] = dict(zip(("images", "features", "texts"), inputs_of(generator), strict=True))
    if not reads[kind]:
        raise McdiError(f"this model reads {' or '.join(n for n, does in reads.items() if does)}, not {kind}")
    if not 1 <= len(values) <= limits.examples:
        raise McdiError(f"{where} holds {len(values)} examples: give 1 to {limits.examples}")
    if kind == "texts":
        texts = tuple((v,) if isinstance(v, str) else tuple(v) for v in values)
        if len({len(v) for v in texts}) > 1:
            raise McdiError(f"{where} mixes single sentences and pairs: send one kind")
        if any(len(s) > limits.text for v in texts for s in v):
            raise McdiError(f"{where} holds a sentence of more than {limits.text} characters: shorten it")
        return texts
    if kind == "images":
        return _images(values, where, reads[kind], limits)
    widths = {len(row) for row in values}
    if widths != {reads[kind]}:
        sizes = ", ".join(map(str, sorted(widths)[:3]))
        raise McdiError(f"{where}: features have {sizes} numbers, this model reads {reads[kind]}")
    return _real(values, where).reshape(len(values), *generator.network.feature_shape)


def _real(rows: list[list[float]], where: str) -> Tensor:
    values = torch.tensor(rows, dtype=torch.float64)
    if not bool((values.abs() <= MAX_VALUE).all()):
        raise McdiError(f"{where} holds numbers above {MAX_VALUE:.0e}: scale them")
    return values.float()


def _images(values: list[str], where: str, shape: Shape, limits: Limits) -> Tensor:
    files, total = [], 0
    for number, value in enumerate(values):
        name = f"{where}.images[{number}]"
        try:
            data = base64.b64decode(value.partition(",")[2] if value.startswith("data:") else value, validate=True)
        except ValueError as error:
            raise McdiError(f"{name} is not base64: encode the image file") from error
        total += _pixels(data, shape, name, limits)
        if total > limits.all_pixels:
            raise McdiError(f"{where}: all images together have more than {limits.all_pixels} pixels: send smaller ones")
        files.append((name, data))
    return torch.stack([_read(data, shape, name) for name, data in files])


def _pixels(data: bytes, shape: Shape, name: str, limits: Limits) -> int:
    """The number of pixels that will be decoded, from the header: of a large JPEG a fraction."""
    try:
        with opened(memoryview(data), FORMATS) as file:
            width, height = file.size
            scale_down(file, shape[-1])
            decoded = file.size[0] * file.size[1]
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise McdiError(f"{name} is not an image file: send {', '.join(FORMATS)}") from error
    if decoded > limits.pixels or width * height > SCALED * limits.pixels:
        most = f"send at most {limits.pixels} that must be decoded, and a JPEG of {SCALED} times as many"
        raise McdiError(f"{name} has {width} x {height} pixels: {most}")
    return decoded


def _read(data: bytes, shape: Shape, name: str) -> Tensor:
    try:
        return read_image(memoryview(data), shape, name)
    except McdiError:
        raise
    except Exception as error:
        raise McdiError(f"{name} cannot be decoded: the image file is damaged") from error
