"""Merging and copying of finished stores, and the weights of one of their tasks."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.trajectories.shards import first_difference, index_bytes, layout, sealed_index, shard_bytes, shard_file, within
from mcdi.trajectories.store import TrajectoryStore
from mcdi.utils.files import only_writer, write_bytes
from mcdi.utils.urls import url_exists, url_or_path, write_url
from mcdi.weights import WeightSpace


def merge(sources: Sequence[str | Path], destination: Path) -> TrajectoryStore:
    """Merge stores into a new one: all tasks of `sources`, in that order. Everything is verified before anything is
    written. Raises McdiError when `destination` exists, when the metas differ in more than `tasks`, when two stores
    contain the same seed, or when a source is damaged."""
    if destination.exists():
        raise McdiError(f"{destination} exists already: choose another --out, or delete it")
    stores = [TrajectoryStore.open(source) for source in sources]
    owner: dict[int, str | Path] = {}
    rows: dict[str, tuple[torch.dtype, torch.Size]] = {}
    meta = stores[0].meta
    for store in stores:
        first = stores[0].location
        if name := first_difference({**store.meta, "tasks": None}, {**meta, "tasks": None}):
            made = f"{store.location} was made with {name} = {store.meta.get(name)!r}, {first} with {meta.get(name)!r}"
            raise McdiError(f"{made}: only stores of the same settings can be merged")
        for part in store.parts():
            rows = rows or layout(part.tensors())
            if name := first_difference(layout(part.tensors()), rows):
                raise McdiError(f"{store.location} has another type or shape of {name!r} than {first}: merge others")
            for seed in part.seeds.tolist():
                if seed in owner:
                    raise McdiError(f"seed {seed} is in {owner[seed]} and in {store.location}: merge stores of different seeds")
                owner[seed] = store.location
    entries: list[dict[str, Any]] = []
    with only_writer(destination):
        for number, (source, shard) in enumerate((s, shard) for s in stores for shard in s.shards):
            entries.append({**shard, "number": number, "file": shard_file(number)})
            write_bytes(destination / shard_file(number), shard_bytes(source.location, shard))
        meta = {**meta, "tasks": len(owner)} if "tasks" in meta else meta
        write_bytes(destination / "index.json", index_bytes(sealed_index(meta, entries)))
    return TrajectoryStore.open(destination)


def export(source: str | Path, destination: str | Path) -> None:
    """Copy a store to a folder or to any URL that fsspec writes; every shard is verified, the index is written last.
    Raises McdiError when `destination` holds a store or cannot be written, or when `source` is damaged."""
    store, target = TrajectoryStore.open(source), url_or_path(destination)
    last = within(target, "index.json")
    if url_exists(last) if isinstance(last, str) else last.exists():
        raise McdiError(f"{destination} holds a store already: choose another destination, or delete it")
    files = ((shard["file"], shard_bytes(store.location, shard)) for shard in store.shards)
    for file, data in chain(files, [("index.json", index_bytes(store.index))]):
        path = within(target, file)
        write_url(path, data) if isinstance(path, str) else write_bytes(path, data)


def weights_of(store: TrajectoryStore, seed: int, target: int | None = None) -> dict[str, Tensor]:
    """The weights of one task under their names, as load_state_dict takes them. target: i of theta_{i d}, 1..k (None:
    k, the last). Raises McdiError when no task has that seed or that target, or the store has no names of
    parameters."""
    if "space" not in store.meta:
        raise McdiError(f"{store.location} has no names of parameters: use a store made by `mcdi prepare`")
    space = WeightSpace.from_config(store.meta["space"])
    for part in store.parts():
        for row in (part.seeds == seed).nonzero()[:, 0].tolist():
            k = part.targets.shape[1]
            chosen = k if target is None else target
            if not 1 <= chosen <= k:
                raise McdiError(f"target = {target} names no local target: choose 1..{k}")
            units = part.targets[row, chosen - 1]
            if space.unit == "row":  # a task may have fewer rows than the store: the others are padding
                units = units[part.mask[row]]
            return {n: w[0].clone() for n, w in space.unpack(units[None]).items()}
    raise McdiError(f"{store.location} has no task with seed {seed}: `mcdi store info` shows the first and the last")
