"""Durability of what is on disk: how often it survives kills, and how many flipped bits are noticed.

    python benchmarks/durability.py [--kills 200] [--flips 500] [--seed 0]

Kills: a job runs in a process of its own that is killed with SIGKILL after a random time, and is started again on the same
folder, until the jobs together were killed `--kills` times; whenever one finishes, every file is compared with those of an
uninterrupted one, and a new folder is started. Flips: one random bit of a random file of a run, with an exported sampler, is
flipped, `--flips` times; reading the run must raise an error that names the file. Logs, pages and tables are for people: a flip
there is counted apart.
"""

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
import tomllib
import zipfile
from collections import Counter
from collections.abc import Callable
from hashlib import md5
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import mcdi
from mcdi.errors import McdiError
from mcdi.experiments import run
from mcdi.experiments.recipe import Recipe, checked
from mcdi.experiments.report.page import write_report
from mcdi.experiments.report.results import rows
from mcdi.generator.export import Exported, export
from mcdi.tasks.curves import Sines
from mcdi.tasks.images import omniglot
from mcdi.trajectories.prepare import Preparation, prepare
from mcdi.trajectories.store import TrajectoryStore
from mcdi.utils.files import read_json
from mcdi.utils.workers import silent

STORE = Preparation(tasks=400, epochs=12, k=3, lr=0.03, chunk=8)
RECIPE = """
methods = ["prototypes", "adam", "mc-di"]
family = { way = 3, shots = [1], queries = 5, limit = 12, backbone_steps = 6, backbone_way = 4 }
evaluation = { tasks = 8, validation = 8 }
preparation = { tasks = 60, epochs = 12, chunk = 10 }
[generator]
options = { width = 16, depth = 1 }
training = { iterations = 24, learners = 2, tasks = 4, checkpoint_every = 4 }
[method.adam]
lrs = [0.03]
steps = [2, 4]
decays = [0.0]
tasks = 8
"""
FOR_PEOPLE = (".jsonl", ".html", ".md")
TIMED = ("fit_seconds", "latency_ms", "provenance")  # of a result, and as columns of the table
Job = Callable[[Path], object]


def recipe() -> Recipe:
    return checked({"name": "tiny", **tomllib.loads(RECIPE)}, "tiny")


def prepared(folder: Path) -> None:
    run.open_run(folder, recipe())
    run.prepare_run(folder, data=None, device="cpu", workers=1, progress=silent)


def trained(folder: Path, **parts: bool) -> None:
    run.train_and_evaluate(
        run.Jobs(folder, **parts), run.with_seeds(recipe(), recipe().methods, str), workers=1, progress=silent
    )


def whole(folder: Path) -> None:
    prepared(folder)
    trained(folder)
    run.finish(folder, progress=silent)
    write_report(folder)


def archives(folder: Path) -> None:
    """Files in the place of Omniglot's, and where its downloads come from."""
    folder.mkdir(parents=True)
    for part in omniglot.CHECKSUMS:
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
            archive.writestr(f"{part}/x", random.Random(part).randbytes(2**21))
        omniglot.CHECKSUMS[part] = md5((folder / f"{part}.zip").read_bytes(), usedforsecurity=False).hexdigest()
    omniglot.URL = folder.as_uri() + "/"


def download(folder: Path) -> None:
    for part in omniglot.CHECKSUMS:
        omniglot._download(part, folder)


def jobs(folder: Path) -> dict[str, Job]:
    """What is killed, by name; `folder` holds what they start from."""
    prepared(folder / "prepared")
    whole(folder / "whole")
    archives(folder / "archives")
    model = folder / "whole" / "methods" / "mc-di-0"

    def train(target: Path) -> None:
        if not target.exists():
            shutil.copytree(folder / "prepared", target.with_suffix(".new"), dirs_exist_ok=True)
            target.with_suffix(".new").rename(target)
        trained(target, score=False)

    def exported(target: Path) -> None:
        mcdi.load(model).save_pretrained(target)
        export(mcdi.load(target), target / "sampler.pt2", "torch", weights=target / "model.safetensors")

    family = Sines(shots=6, queries=20, hidden=6)
    store: Job = lambda target: prepare(family, target, STORE)  # noqa: E731
    return {"store": store, "prepare": prepared, "train": train, "run": whole, "export": exported, "download": download}


def content(folder: Path) -> dict[str, Any]:
    """All files but those that hold times; of results and of the table what is no time."""
    found: dict[str, Any] = {}
    for path in (p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix not in FOR_PEOPLE):
        name = str(path.relative_to(folder))
        if path.name == "training.json" or path.parent.name == "results":
            found[name] = {n: v for n, v in read_json(path).items() if n not in TIMED}
        elif path.name == "table.json":
            found[name] = [{n: v for n, v in row.items() if n not in TIMED} for row in read_json(path)["rows"]]
        elif path.name in ("sampler.pt2", "sampler.json"):  # torch numbers what it traces in one process
            found[name] = {n: v for n, v in Exported.load(folder).metadata.items() if n not in ("program", "difference")}
        else:
            found[name] = path.read_bytes()
    return found


def start(job: Job, folder: Path) -> int:
    """The process id of a fork that works; forking saves the start of Python, so that kills hit the work."""
    child = os.fork()
    if not child:
        try:
            job(folder)
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(1)
    return child


def kills(job: Job, folder: Path, wanted: int, rng: random.Random) -> tuple[int, int, int]:
    """(kills, finished, of these equal to the uninterrupted one byte for byte)."""
    begin = time.perf_counter()
    os.waitpid(start(job, folder / "never-killed"), 0)
    expected, length = content(folder / "never-killed"), time.perf_counter() - begin
    killed = finished = equal = 0
    at = folder / "killed"
    while killed < wanted or not finished:
        child = start(job, at)
        time.sleep(rng.uniform(0, 0.4 * length) if killed < wanted else 0)
        if killed < wanted:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            killed += 1
        elif os.WEXITSTATUS(status):
            raise SystemExit(f"a resumed job failed after {killed} kills: {at}")
        else:
            finished += 1
            found = content(at)
            equal += found == expected
            if found != expected:
                names = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
                print(f"differs after kills: {', '.join(names)}", flush=True)
            shutil.rmtree(at)
    return killed, finished, equal


def read_all(folder: Path) -> None:
    """Read every file of a run that something depends on."""
    context = run.Context(folder)
    assert len(context.family.downstream.space.spec)
    for store in ("trajectories", "reference"):
        TrajectoryStore.open(folder / store).read()
    for model in sorted((folder / "methods").iterdir()):
        mcdi.load(model)
        read_json(model / "training.json")
    Exported.load(folder / "methods" / "mc-di-0")
    rows(folder)
    for name in ("landscape.json", "novelty.json", "table.json"):
        if (folder / name).exists():
            read_json(folder / name)


def flips(folder: Path, wanted: int, rng: random.Random) -> dict[str, Counter[str]]:
    """{kind of file: how many flips were "noticed", "for people" or "missed"}."""
    read_all(folder)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    seen: dict[str, Counter[str]] = {}
    for _ in range(wanted):
        path = rng.choice(files)
        right = path.read_bytes()
        wrong, bit = bytearray(right), rng.randrange(8 * len(right))
        wrong[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(wrong))
        try:
            read_all(folder)
            outcome = "for people" if path.suffix in FOR_PEOPLE else "missed"
        except McdiError as error:
            outcome = "noticed" if path.name in str(error) else "missed"
        finally:
            path.write_bytes(right)
        seen.setdefault(path.suffix, Counter())[outcome] += 1
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--flips", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console, rng = Console(width=150), random.Random(arguments.seed)
    console.print(f"durability, seed {arguments.seed}: {json.dumps(run.provenance())}")
    with tempfile.TemporaryDirectory() as name:
        work = jobs(Path(name) / "from")
        table = Table("job", "kills", "finished", "equal byte for byte", title="SIGKILL at random moments")
        for job, call in work.items():
            killed = kills(call, Path(name) / job, -(-arguments.kills // len(work)), rng)
            table.add_row(job, *map(str, killed))
        console.print(table)
        model = Path(name) / "from" / "whole" / "methods" / "mc-di-0"
        export(mcdi.load(model), model / "sampler.pt2", "torch", weights=model / "model.safetensors")
        table = Table("files", "flips", "noticed, with the file's name", "for people", "missed", title="flipped bits")
        for suffix, seen in sorted(flips(Path(name) / "from" / "whole", arguments.flips, rng).items()):
            table.add_row(suffix, str(seen.total()), *(str(seen[n]) for n in ("noticed", "for people", "missed")))
        console.print(table)


if __name__ == "__main__":
    main()
