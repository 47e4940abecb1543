"""The folder of a saved generator: config.json and model.safetensors, which hold one method and one network."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from mcdi.errors import McdiError, explained
from mcdi.methods import WeightGenerator, make_method
from mcdi.networks.base import Network
from mcdi.networks.registry import build
from mcdi.utils.files import read_bytes, read_json, tensors_of, write_json, write_tensors

FORMAT = 3
CONFIG, MODEL = FILES = ("config.json", "model.safetensors")


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """config.json, and the tensors {"method": {name: tensor}, "network": {name: tensor}}. Raises McdiError for a file that is
    missing, damaged or of another format."""
    path, config = folder / CONFIG, read_json(folder / CONFIG)
    saved = config.get("format") if isinstance(config, dict) else None
    if isinstance(saved, int) and saved != FORMAT:
        cure = "train it again with `mcdi run`" if saved < FORMAT else "install the newer mcdi that saved it"
        raise McdiError(f"{path} is a generator of format {saved}, and this version of mcdi reads format {FORMAT}: {cure}")
    if saved != FORMAT or "method" not in config:
        raise McdiError(f"{path} does not describe a generator of format {FORMAT}: restore it, or train the generator again")
    tensors, _ = tensors_of(read_bytes(folder / MODEL), f"{folder}/{MODEL}")
    if not all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point()):
        raise McdiError(f"{folder}/{MODEL} holds NaN or infinite weights: train again or restore the file")
    return config, {
        p: {n.removeprefix(p + "."): t for n, t in tensors.items() if n.startswith(p + ".")} for p in ("method", "network")
    }


def _belonging(folder: Path) -> AbstractContextManager[None]:
    """One McdiError for any failure to build the generator from its two files."""
    kinds = KeyError, TypeError, AttributeError, RuntimeError, SafetensorError
    return explained(f"{folder}: {CONFIG} and {MODEL} do not belong together", "restore both", *kinds)


def save(folder: Path, name: str, method: WeightGenerator, network: Network) -> None:
    """Write model.safetensors and then config.json, each in one step."""
    parts = {"method": method.state(), "network": network.state()}
    write_tensors(folder / MODEL, {f"{part}.{n}": t for part, state in parts.items() for n, t in state.items()})
    write_json(folder / CONFIG, {"format": FORMAT, "method": name, "network": network.config(), **method.config()})


def load_saved(folder: Path, **code: Any) -> tuple[str, WeightGenerator, Network]:
    """The name of the method, the method and its network. code: of the user's own network, see `registry.build`."""
    config, parts = _read(folder)
    with _belonging(folder):
        network = build(config["network"], parts["network"], **code)
        method = _method(config, parts)
    if config.get("space", network.space.config()) != network.space.config():
        raise McdiError(f"{folder}: the generator was trained for other weights than its network has: restore config.json")
    return config["method"], method, network


def load_method(folder: Path) -> WeightGenerator:
    """The method of a saved generator, without its network."""
    config, parts = _read(folder)
    with _belonging(folder):
        return _method(config, parts)


def _method(config: dict[str, Any], parts: dict[str, dict[str, Tensor]]) -> WeightGenerator:
    return make_method(config["method"], config["settings"]).restore(config, parts["method"])
