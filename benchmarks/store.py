"""How fast is the trajectory store, beside the plain file that a careless program would use?

    python benchmarks/store.py

Makes a store in a temporary folder and prints megabytes of targets a second: appending shards beside plain writes of the
same bytes with fsync; random mini-batches through `rows` from verified, mapped shards beside a fancy index of numpy.memmap over
one flat file; everything through `read`, which verifies. Medians; the two sides take turns. One thread.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from mcdi.run import provenance
from mcdi.store import Trajectories, TrajectoryStore


def seconds(*calls: Callable[[], object], repeats: int) -> list[float]:
    """The median time of each call; they take turns, so that other work on the machine disturbs them alike."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, mine in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
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
    total = len(parts) * arguments.chunk

    for storage, dtype in (("float32", np.float32), ("bfloat16", np.uint16)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            store = TrajectoryStore.create(folder / "store", {"storage": storage})
            flat = np.memmap(folder / "flat", dtype, "w+", shape=(total, *shape))
            row = flat[0].nbytes / 1e6

            def show(what: str, rows: int, mine: float, plain: float | None, storage: str = storage, row: float = row) -> None:
                figures = ["", ""] if plain is None else [f"{rows * row / plain:.0f}", f"{plain / mine:.2f}"]
                table.add_row(storage, what, f"{rows * row / mine:.0f}", *figures)

            append, plain = [], []
            with store.writer():
                for number, part in enumerate(parts):
                    append += seconds(lambda part=part: store.append(part), repeats=1)
                    data = (folder / "store" / store.shards[number]["file"]).read_bytes()
                    plain += seconds(lambda number=number, data=data: write(folder / f"{number}.bin", data), repeats=1)
            show("append a shard", arguments.chunk, statistics.median(append), statistics.median(plain))

            at = 0
            for part in store.parts():
                stored = part.targets.numpy() if storage == "float32" else part.targets.bfloat16().view(torch.uint16).numpy()
                flat[at : at + len(part)] = stored
                at += len(part)
            flat.flush()
            flat = np.memmap(folder / "flat", dtype, "r", shape=(total, *shape))
            flat.max()  # both sides warm
            reader = TrajectoryStore.open(folder / "store")
            reader.rows(torch.arange(total))
            draw = torch.Generator().manual_seed(0)
            indices = [torch.randint(total, (arguments.batch,), generator=draw) for _ in range(400)]
            pairs = [seconds(lambda i=i: reader.rows(i), lambda i=i: np.array(flat[i.numpy()]), repeats=1) for i in indices]
            mine, plain_read = (statistics.median(side) for side in zip(*pairs, strict=True))
            show(f"{arguments.batch} random rows", arguments.batch, mine, plain_read)
            show("read everything, verified", total, *seconds(reader.read, repeats=3), None)
    Console().print(table)


if __name__ == "__main__":
    main()
