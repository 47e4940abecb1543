"""The files of a store, and the checks that detect every change of one. A shard is a safetensors file of N tasks;
index.json names the shards with their checksums, and contains its own checksum."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file
from torch import Tensor

from mcdi.errors import McdiError, explained
from mcdi.utils.checksums import checksum
from mcdi.utils.files import read_bytes
from mcdi.utils.tensors import finite
from mcdi.utils.urls import read_url

FORMAT = 2
STORAGE = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CURE = "restore it from a copy, or delete the store and prepare again"


def index_bytes(index: Mapping[str, Any]) -> bytes:
    """JSON with one shard in a line, joined by hand because json's indenting is slow for thousands of shards. Keys keep
    their order: that of the parameters in meta["space"] is the order of the numbers in a unit."""

    def text(value: Any) -> str:
        return "[\n" + ",\n".join(map(json.dumps, value)) + "\n]" if isinstance(value, list) else json.dumps(value)

    return ("{\n" + ",\n".join(f"{json.dumps(n)}: {text(v)}" for n, v in index.items()) + "\n}\n").encode()


def sealed_index(meta: Mapping[str, Any], shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of index.json with its own checksum; shards in the order of their numbers."""
    content = {"format": FORMAT, "meta": dict(meta), "shards": sorted(shards, key=lambda shard: int(shard["number"]))}
    return {**content, "blake2b": checksum(index_bytes(content))}


def _checked_index(data: bytes, name: str) -> dict[str, Any]:
    with explained(f"{name} cannot be read as JSON", CURE, ValueError):
        index = json.loads(data.decode())
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise McdiError(f"{name} is not a trajectory index of format {FORMAT}: it is damaged or of another version; {CURE}")
    # Byte for byte what `index_bytes` writes: a flip that keeps the meaning (1e-05, 1E-05) is detected too.
    content = {n: v for n, v in index.items() if n != "blake2b"}
    if index_bytes({**content, "blake2b": checksum(index_bytes(content))}) != data:
        raise McdiError(f"{name} does not match its own checksum: {CURE}")
    return index


def first_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """The alphabetically first key at which two mappings differ."""
    return min((n for n in {*a, *b} if a.get(n) != b.get(n)), default=None)


def shard_file(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def layout(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """Type and shape of one task's row of every tensor, which are the same in all shards of a store."""
    return {n: (t.dtype, t.shape[1:]) for n, t in tensors.items()}


def within(location: str | Path, file: str) -> str | Path:
    """The path or URL of a file of a store."""
    return f"{location.rstrip('/')}/{file}" if isinstance(location, str) else location / file


def _read(name: str | Path) -> bytes:
    return read_url(name) if isinstance(name, str) else read_bytes(name)


def read_index(location: str | Path) -> dict[str, Any]:
    """The index of the store in a folder or at a URL. Raises McdiError when it is missing or damaged."""
    name = within(location, "index.json")
    return _checked_index(_read(name), str(name))


def shard_bytes(location: str | Path, shard: Mapping[str, Any]) -> bytes:
    """The verified content of a shard. Raises McdiError when it is missing or changed."""
    name = within(location, shard["file"])
    if isinstance(name, Path) and not name.exists():
        raise McdiError(f"{name} is missing: {CURE}")
    data = _read(name)
    if checksum(data) != shard["blake2b"]:
        raise McdiError(f"{name} does not match its checksum: {CURE}")
    return data


def shard_tensors(location: str | Path, shard: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a verified shard as stored: a memory map of a file, or a copy of the bytes at a URL. Raises
    McdiError when the shard is missing, changed, or holds NaN or infinite weights."""
    name, data = within(location, shard["file"]), shard_bytes(location, shard)
    tensors = load(data) if isinstance(name, str) else load_file(name)
    if not finite(tensors["targets"]):
        raise McdiError(f"{name} holds NaN or infinite weights: prepare again with a lower learning rate")
    return tensors
