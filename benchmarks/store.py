"""Speed of the trajectory store against plain files.

    python benchmarks/store.py

Writes a store to a temporary folder and prints megabytes of stored targets a second. Append: a shard, against a plain write
of the same bytes, both with fsync (a shard needs two, one for the index). Random rows: mini-batches of all columns with `rows`
from verified and mapped shards, against only the targets with a fancy index of numpy.memmap on one flat file. Read: everything,
verified. Medians; the two take turns, each on its own rows. One thread.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save
from torch import Tensor

from mcdi.experiments.run import provenance
from mcdi.trajectories.store import Trajectories, TrajectoryStore


def seconds(*calls: Callable[[Any], object], arguments: Sequence[Iterable[Any]]) -> list[float]:
    """The median time of each call over its arguments; they take turns, so that other processes affect both."""
    times: list[list[float]] = [[] for _ in calls]
    for round_ in zip(*arguments, strict=True):
        for call, argument, mine in zip(calls, round_, times, strict=True):
            start = time.perf_counter()
            call(argument)
            mine.append(time.perf_counter() - start)
    return [statistics.median(mine) for mine in times]


def tasks(n: int, first: int, k: int, units: int, numbers: int) -> Trajectories:
    return Trajectories(
        torch.randn(n, k, units, numbers, generator=torch.Generator().manual_seed(first)),
        torch.ones(n, units, dtype=torch.bool),
        torch.arange(first, first + n),
        torch.rand(n, k),
        torch.rand(n, k),
        torch.arange(1, k + 1).repeat(n, 1),
    )


def write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def measure(folder: Path, storage: str, parts: list[Trajectories], batch: int) -> Iterator[tuple[str, ...]]:
    """Rows of the table: what, MB/s, MB/s of plain files, ratio."""
    total, chunk, shape = sum(map(len, parts)), len(parts[0]), parts[0].targets.shape[1:]
    dtype = np.float32 if storage == "float32" else np.uint16
    task = shape.numel() * np.dtype(dtype).itemsize / 1e6

    def row(what: str, megabytes: float, mine: float, plain: float | None = None) -> tuple[str, ...]:
        plain_figures = ("", "") if plain is None else (f"{megabytes / plain:.0f}", f"{plain / mine:.2f}")
        return what, f"{megabytes / mine:.0f}", *plain_figures

    store = TrajectoryStore.create(folder / "store", {"storage": storage})
    flat = np.memmap(folder / "flat", dtype, "w+", shape=(total, *shape))
    contents = (save({**part.tensors(), "targets": part.targets.to(getattr(torch, storage))}) for part in parts)
    with store.writer():
        times = seconds(store.append, lambda data: write(folder / "plain", data), arguments=[parts, contents])
    yield row("append a shard", chunk * task, *times)
    for number, part in enumerate(store.parts()):
        stored = part.targets.numpy() if storage == "float32" else part.targets.bfloat16().view(torch.uint16).numpy()
        flat[number * chunk : number * chunk + len(part)] = stored
    flat.flush()
    flat = np.memmap(folder / "flat", dtype, "r", shape=(total, *shape))
    store.rows(torch.arange(total))
    flat.max()  # both are in the page cache now
    draw = torch.Generator().manual_seed(0)
    batches = [[torch.randint(total, (batch,), generator=draw) for _ in range(500)] for _ in range(2)]  # one list for each

    def plain_rows(index: Tensor) -> Tensor:
        return torch.from_numpy(flat[index.numpy()]).view(getattr(torch, storage)).float()

    times = seconds(store.rows, plain_rows, arguments=batches)
    yield row(f"{batch} random rows", batch * task, *times)
    yield row("read everything, verified", total * task, *seconds(lambda _: store.read(), arguments=[range(5)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--chunk", type=int, default=500, help="tasks a shard")
    parser.add_argument("--batch", type=int, default=256, help="rows of a mini-batch")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shape = (3, 5, 65)
    table = Table(title=f"{arguments.tasks} tasks x {shape}, {arguments.chunk} a shard, {provenance()['hardware']}, one thread")
    for column in ("storage", "what", "MB/s", "plain files, MB/s", "ratio"):
        table.add_column(column, justify="right")
    parts = [tasks(arguments.chunk, first, *shape) for first in range(0, arguments.tasks, arguments.chunk)]
    for storage in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as name:
            for row in measure(Path(name), storage, parts, arguments.batch):
                table.add_row(storage, *row)
    Console().print(table)


if __name__ == "__main__":
    main()
