"""What does the folder of a saved generator hold? config.json and model.safetensors, of one method and one network."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.methods import WeightGenerator, make_method
from mcdi.utils.files import read_bytes, read_json, tensors_of

FORMAT = 2
CONFIG, MODEL = FILES = ("config.json", "model.safetensors")


def read_saved(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """config.json, and the tensors of the method and of the network. Raises McdiError for what is missing, damaged or of
    another version."""
    config: Any = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("format") != FORMAT or "method" not in config:
        cure = "it was saved by another version or program; train it again"
        raise McdiError(f"{folder}/{CONFIG} is not a generator of format {FORMAT}: {cure}")
    tensors, _ = tensors_of(read_bytes(folder / MODEL), f"{folder}/{MODEL}")
    if not all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point()):
        raise McdiError(f"{folder}/{MODEL} holds NaN or infinite weights: train again or restore the file")
    return config, {
        p: {n.removeprefix(p + "."): t for n, t in tensors.items() if n.startswith(p + ".")} for p in ("method", "network")
    }


@contextmanager
def belonging(folder: Path) -> Iterator[None]:
    """Whatever goes wrong while the two files are put together, as one sentence."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise McdiError(f"{folder}: {CONFIG} and {MODEL} do not belong together ({reason}): restore both") from error


def load_method(folder: Path) -> WeightGenerator:
    """The method of a saved generator, for whoever has its network at hand already."""
    config, parts = read_saved(folder)
    with belonging(folder):
        return make_method(config["method"], config["settings"]).restore(config, parts["method"])
