"""Speed and memory of preparing the trajectories of many tasks, against a loop over the tasks.

    python benchmarks/preparation.py [--device cuda]

Four networks, all of whose weights are trained: a linear head on 64 features, 100 examples a task; a three-layer MLP
(64-64-64-5), 25 and 100 examples; Conv-4 with 64 channels, 25 images of 28 x 28; Conv-4 with 8 filters, 25 images of
14 x 14. 5 classes, 60 full-batch Adam steps, 3 snapshots. Prints

1. tasks a second, side by side in one run: a plain PyTorch loop over tasks (a module, torch.optim.Adam, backward, step),
   the same through `higher` if it is installed (pip install higher), `trajectories` with one thread, and `prepare` with one
   worker a core, including the store. On a CPU the loops run with one thread and with all, and the faster one counts. Also
   GFLOP/s as a percentage of a large matrix product on one thread, and where the loop's time goes;
2. where all networks are measured, peak memory above that of the interpreter, and time, while the tasks grow tenfold under
   one budget.

Contenders take turns; medians over `--rounds`. Start-up of workers is timed separately. Data are a pool of Gaussian examples:
values do not change the arithmetic.
"""

import argparse
import copy
import importlib.util
import itertools
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mcdi.experiments.evaluate import peak_rate
from mcdi.experiments.run import provenance
from mcdi.networks.base import Network
from mcdi.networks.conv_net import ConvNet
from mcdi.networks.linear_head import LinearHead
from mcdi.trajectories.prepare import Preparation, prepare, tile_size, trajectories
from mcdi.types import Examples, TaskBatch

EPOCHS, K, LR, POOL = 60, 3, 0.01, 64


class Pool:
    """Tasks drawn from a pool of Gaussian examples."""

    def __init__(self, name: str, downstream: Network, shape: Sequence[int], examples: int, way: int = 5) -> None:
        self.name, self.downstream, self.shots, self.way = name, downstream, (1,), way
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(POOL, examples, *shape, generator=g)
        self.y = torch.randint(way, (POOL, examples), generator=g)

    def training_data(self, split: str, seeds: Sequence[int]) -> Examples:
        rows = torch.as_tensor(seeds) % POOL
        return Examples(self.x[rows], self.y[rows])

    def sample(self, split: str, seeds: Sequence[int], *, draw: int = 0, shots: int | None = None) -> TaskBatch:
        data = self.training_data(split, seeds)
        few = Examples(data.x[:, : self.way], data.y[:, : self.way])
        units = self.downstream.space.units(self.way)
        return TaskBatch(few, few, torch.ones(len(few.y), units, dtype=torch.bool), torch.as_tensor(seeds))

    def columns(self, split: str, seeds: Sequence[int]) -> dict[str, Tensor]:
        return {}


def mlp(*widths: int) -> nn.Module:
    layers = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def conv4(channels: int = 64, way: int = 5) -> nn.Module:
    blocks = [
        nn.Sequential(nn.Conv2d(c, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2))
        for c in (1, channels, channels, channels)
    ]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(channels, way))


CASES: dict[str, Callable[[], Pool]] = {
    "head": lambda: Pool("linear head", LinearHead(64, 5), (64,), 100),
    "deep": lambda: Pool("3-layer MLP", Network(mlp(64, 64, 64, 5)), (64,), 25),
    "deep on more": lambda: Pool("the same, 100 examples", Network(mlp(64, 64, 64, 5)), (64,), 100),
    "conv": lambda: Pool("Conv-4", Network(conv4()), (1, 28, 28), 25),
    "small conv": lambda: Pool("Conv-4, 8 filters, 14 pixels", ConvNet(0, 5), (196,), 25),
    "wide": lambda: Pool("MLP of 203,530 weights", Network(mlp(784, 256, 10)), (784,), 25, way=10),
}
# A chunk of `prepare` and how many there are, and the tasks of a loop: so that every contender takes seconds.
SIZES = {"head": (500, 40, 10), "deep": (500, 16, 6), "deep on more": (250, 16, 6), "conv": (1, 8, 1), "small conv": (64, 8, 4)}
GROWTH = {"head": (0.1, 5000), "wide": (0.25, 40)}  # budget in GiB, fewest tasks
SPEEDS = ("plain loop", "higher", "batched, 1 thread", "prepare, all cores", "1 thread: / plain", "all cores: / plain")
COLUMNS = ("network", *SPEEDS, "/ higher", "of peak: plain", "of peak: batched", "start-up (s)")
GROWTH_COLUMNS = ("network", "tasks", "budget (MiB)", "peak (MiB)", "seconds", "exponent of time")


def begin(family: Pool, seed: int, device: str) -> tuple[Tensor, Tensor, nn.Module, torch.optim.Optimizer]:
    """Data, module and optimiser of one task."""
    data = family.training_data("train", [seed]).to(device)
    module = copy.deepcopy(family.downstream.module).requires_grad_().train().to(device)
    return data.x[0], data.y[0], module, torch.optim.Adam(module.parameters(), lr=LR)


def plain(family: Pool, seed: int, device: str) -> list[Tensor]:
    """One task in the common way."""
    x, y, module, optimiser = begin(family, seed, device)
    kept = []
    for epoch in range(1, EPOCHS + 1):
        optimiser.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimiser.step()
        if epoch % (EPOCHS // K) == 0:
            kept.append(nn.utils.parameters_to_vector(module.parameters()).detach().clone())
    return kept


def through_higher(family: Pool, seed: int, device: str) -> list[Tensor]:
    """One task through `higher`, the library for inner loops from before torch.func."""
    import higher

    x, y, module, optimiser = begin(family, seed, device)
    kept = []
    with higher.innerloop_ctx(module, optimiser, track_higher_grads=False) as (net, steps):
        for epoch in range(1, EPOCHS + 1):
            steps.step(F.cross_entropy(net(x), y))
            if epoch % (EPOCHS // K) == 0:
                kept.append(nn.utils.parameters_to_vector(net.parameters()).detach().clone())
    return kept


def rate(call: Callable[[], object], tasks: int, device: str, threads: int) -> float:
    """Tasks a second."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return tasks / (time.perf_counter() - start)


def flops(family: Pool) -> float:
    """Floating-point operations of one task's optimisation, as torch counts them: products and convolutions."""
    x, y, module, _ = begin(family, 0, "cpu")
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(module(x), y).backward()
    return EPOCHS * counter.get_total_flops()


def profile(family: Pool) -> str:
    """Where the plain loop's time goes, one thread, by operator."""
    torch.set_num_threads(1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        plain(family, 0, "cpu")
    own = {e.key: e.self_cpu_time_total for e in seen.key_averages()}
    total = sum(own.values())
    largest = sorted(own.items(), key=lambda pair: -pair[1])[:7]
    return ", ".join(f"{name.removeprefix('aten::')} {100 * t / total:.0f} %" for name, t in largest)


def prepared(family: Pool, settings: Preparation, workers: int, device: str) -> tuple[float, float]:
    """Tasks a second of `prepare` once every worker has made a shard, and the seconds before the first shard."""
    moments: list[tuple[float, int]] = []

    def note(what: str, done: int, total: int, figures: dict[str, float]) -> None:
        moments.append((time.perf_counter(), done))

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        prepare(family, Path(folder) / "store", settings, workers=workers, device=device, progress=note)
    (begin, before), (end, after) = moments[workers], moments[-1]  # the first call reports an empty store
    return (after - before) / (end - begin), moments[1][0] - start


def speed(case: str, rounds: int, device: str) -> list[str]:
    """A row of the table of speeds."""
    family, cores, (chunk, shards, loop_tasks) = CASES[case](), os.cpu_count() or 1, SIZES[case]
    workers = cores if device == "cpu" else 1
    settings = Preparation(tasks=chunk * shards, epochs=EPOCHS, k=K, lr=LR, chunk=chunk, memory=1.0)
    at_once = tile_size(family, "train", settings, device)
    loops = {"plain": plain} | ({"higher": through_higher} if importlib.util.find_spec("higher") else {})
    contenders: dict[str, tuple[Callable[[], object], int, int]] = {}
    for name, loop in loops.items():
        call = partial(lambda loop: [loop(family, n, device) for n in range(loop_tasks)], loop)
        contenders |= {f"{name} {threads}": (call, loop_tasks, threads) for threads in {1, cores}}
    batched_tasks = min(chunk, max(1, at_once))
    call = partial(trajectories, family, "train", range(batched_tasks), settings, device, at_once=at_once)
    contenders["batched"] = (call, batched_tasks, 1)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, (call, tasks, threads) in contenders.items():
            rates[name].append(rate(call, tasks, device, threads))
    median = {name: statistics.median(r[1:]) for name, r in rates.items()}  # the first round warms up
    best = {name: max(median[n] for n in median if n.startswith(name)) for name in loops}
    many, started = prepared(family, settings, workers, device)

    def of_peak(tasks_a_second: float) -> str:
        torch.set_num_threads(1)
        return f"{100 * tasks_a_second * flops(family) / peak_rate():.0f} %" if device == "cpu" else ""

    one, batched = median["plain 1"], median["batched"]
    higher, gain = "not installed", ""
    if "higher" in best:
        higher, gain = f"{best['higher']:.3g}", f"{many / best['higher']:.1f}x"
    speeds = [f"{best['plain']:.3g}", higher, f"{batched:.4g}", f"{many:.4g}"]
    ratios = [f"{batched / one:.1f}x", f"{many / best['plain']:.1f}x", gain]
    return [family.name, *speeds, *ratios, of_peak(one), of_peak(batched), f"{started:.1f}"]


def peak_memory() -> float:
    """Peak memory of this process in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the memory of the parent at the fork
        return float(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # in bytes on macOS


def grow(name: str, factor: int) -> None:
    """Run in its own process: prepare, and print the added peak memory (MiB) and the seconds."""
    budget, fewest = GROWTH[name]
    torch.set_num_threads(1)
    family = CASES[name]()
    prepared_before = Preparation(tasks=1, epochs=K, k=K)
    with tempfile.TemporaryDirectory() as folder:
        prepare(family, Path(folder) / "first", prepared_before)
        base = peak_memory()
        settings = replace(prepared_before, tasks=fewest * factor, epochs=EPOCHS, memory=budget)
        start = time.perf_counter()
        prepare(family, Path(folder) / "store", settings)
        seconds = time.perf_counter() - start
    print(peak_memory() - base, seconds)


def growth(name: str) -> list[list[str]]:
    (budget, fewest), rows = GROWTH[name], []
    for factor in (1, 2, 5, 10):
        command = [sys.executable, __file__, "--grow", name, str(factor)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows.append((fewest * factor, *map(float, printed.split())))
    logs = torch.tensor([[math.log(n), math.log(s)] for n, _, s in rows])
    centred = logs - logs.mean(0)
    exponent = float((centred[:, 0] * centred[:, 1]).sum() / centred[:, 0].square().sum())
    shown = [[CASES[name]().name, f"{n:,}", f"{budget * 1024:.0f}", f"{mib:.0f}", f"{s:.1f}", ""] for n, mib, s in rows]
    shown[-1][-1] = f"{exponent:.3f}"
    return shown


def table_of(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column == "network" else "right")
    for row in rows:
        table.add_row(*row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=SIZES, help="default: all, and then the growth of memory")
    parser.add_argument("--grow", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.grow:
        grow(arguments.grow[0], int(arguments.grow[1]))
        return
    console = Console(width=170)
    console.print(f"preparation: {provenance()}")
    torch.set_num_threads(1)
    console.print(f"a matrix product reaches {peak_rate() / 1e9:.1f} GFLOP/s on one thread")
    rows = (speed(case, arguments.rounds, arguments.device) for case in arguments.networks or SIZES)
    console.print(table_of(f"tasks a second, {EPOCHS} Adam steps each; {arguments.device}", COLUMNS, rows))
    if arguments.device != "cpu" or arguments.networks:
        return
    console.print(f"the plain loop's time on Conv-4, one thread: {profile(CASES['conv']())}")
    rows = (row for name in GROWTH for row in growth(name))
    console.print(table_of("one worker while the tasks grow tenfold", GROWTH_COLUMNS, rows))


if __name__ == "__main__":
    main()
