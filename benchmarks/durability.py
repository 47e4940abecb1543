"""Durability of the trajectory store: how often it survives kills, and how many flipped bits it detects.

    python benchmarks/durability.py [--kills 100] [--flips 100] [--seed 0]

Kills: `prepare` runs in a process of its own that is killed with SIGKILL after a random time, and is started again on the
same folder, until it was killed `--kills` times; whenever it finishes, every file is compared with an uninterrupted run, and a
new folder is started. Between kills the store must open and verify. Flips: one random bit of a random shard is flipped,
`--flips` times; `verify` must report that file and no other, and `read` must raise an error that names it.
"""

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

from mcdi.errors import McdiError
from mcdi.experiments.run import provenance
from mcdi.tasks.curves import Sines
from mcdi.trajectories.prepare import Preparation, prepare
from mcdi.trajectories.store import TrajectoryStore

SETTINGS = Preparation(tasks=400, epochs=12, k=3, lr=0.03, chunk=8)


def start(family: Sines, folder: Path) -> int:
    """The process id of a fork that prepares; forking saves the start of Python, so that kills hit the work."""
    child = os.fork()
    if not child:
        try:
            prepare(family, folder, SETTINGS)
            os._exit(0)
        except BaseException:
            os._exit(1)
    return child


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix != ".lock"}


def kills(family: Sines, folder: Path, wanted: int, rng: random.Random) -> str:
    begin = time.perf_counter()
    prepare(family, folder / "whole", SETTINGS)
    whole, length = content(folder / "whole"), time.perf_counter() - begin
    killed = finished = equal = 0
    shards = set()
    at = folder / "killed"
    while killed < wanted or not finished:
        child = start(family, at)
        time.sleep(rng.uniform(0, 0.2 * length) if killed < wanted else 0)
        if killed < wanted:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            killed += 1
            if (at / "index.json").exists():
                store = TrajectoryStore.open(at)
                if damage := store.verify():
                    raise SystemExit(f"damaged by kill {killed}: {damage}")
                shards.add(len(store.shards))
        elif os.WEXITSTATUS(status):
            raise SystemExit(f"a resumed run failed after {killed} kills: {at}")
        else:
            finished += 1
            equal += content(at) == whole
            shutil.rmtree(at)
    return (
        f"{killed} kills, at {len(shards)} different numbers of finished shards: every one resumed; "
        f"{equal} of {finished} final stores equal the uninterrupted one byte for byte"
    )


def flips(family: Sines, folder: Path, wanted: int, rng: random.Random) -> str:
    prepare(family, folder / "flipped", SETTINGS)
    shards = sorted((folder / "flipped").glob("*.safetensors"))
    detected = 0
    for _ in range(wanted):
        path = rng.choice(shards)
        right = path.read_bytes()
        wrong = bytearray(right)
        bit = rng.randrange(8 * len(wrong))
        wrong[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(wrong))
        problems = TrajectoryStore.open(folder / "flipped").verify()
        try:
            TrajectoryStore.open(folder / "flipped").read()
            message = ""
        except McdiError as error:
            message = str(error)
        detected += len(problems) == 1 and path.name in problems[0] and path.name in message
        path.write_bytes(right)
    assert not TrajectoryStore.open(folder / "flipped").verify()
    return f"{detected} of {wanted} single-bit flips in shards detected and named, by verify and by read"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--flips", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console, rng, family = Console(width=150), random.Random(arguments.seed), Sines(shots=6, queries=20, hidden=6)
    console.print(f"durability, seed {arguments.seed}: {provenance()}")
    with tempfile.TemporaryDirectory() as folder:
        console.print(kills(family, Path(folder), arguments.kills, rng))
        console.print(flips(family, Path(folder), arguments.flips, rng))


if __name__ == "__main__":
    main()
