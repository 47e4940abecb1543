"""Where the milliseconds of a generation go: matrix products at this machine's peak, and what is taken.

    python benchmarks/latency_budget.py runs/glyphs/methods/mc-di-0 photos texts symbols

Prints, for generators (folders or ready-made ones), numbers of classes and batches of tasks with 5 examples a class: the
operations of matrix products and convolutions, the milliseconds they take at the rate of a product of two 1024 x 1024 matrices,
the milliseconds from features (or pixels) and labels to named weights, and how many times that is more; beside it the same as
an ONNX export, where the method can be exported. One thread. Solutions of linear systems and eigenvalues are not counted.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from mcdi import Generator, load
from mcdi.errors import McdiError
from mcdi.experiments.evaluate import milliseconds, peak_rate
from mcdi.experiments.run import provenance
from mcdi.generator.export import Exported, export, random_examples

SHOTS = 5


def exported_sampler(generator: Generator) -> Exported | None:
    """An ONNX export, where the method and its network have one."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.suppress(McdiError):
        export(generator, Path(scratch) / "sampler.onnx", "onnx")
        return Exported.load(Path(scratch) / "sampler.onnx")
    return None


def rows(name: str, ways: Sequence[int], batches: Sequence[int], repeats: int, rate: float) -> Iterator[list[str]]:
    """The lines of one generator."""
    generator = load(name)
    exported = exported_sampler(generator)
    for way in ways if generator.any_way else [generator.network.way]:
        for batch in batches:
            support = random_examples(batch, way, SHOTS, generator.network.input_size)
            with FlopCounterMode(display=False) as counted:
                generator.generate(support)
            flops = counted.get_total_flops()
            rounds = repeats if batch * way <= 100 else max(3, repeats // 10)
            floor = 1000 * flops / rate
            taken = milliseconds(partial(generator.generate, support), rounds)
            graph = "" if exported is None else f"{milliseconds(partial(exported.generate, support), rounds):.2f}"
            figures = f"{flops / 1e6:.2f}", f"{floor:.3f}", f"{taken:.2f}", f"{taken / floor:.1f}"
            yield [f"{name} ({generator.name})", f"{way}", f"{batch}", *figures, graph]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--ways", type=int, nargs="+", default=[5, 100])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--repeats", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rate = peak_rate()
    machine = provenance()
    table = Table(title=f"{machine['hardware']}, one thread, {rate / 1e9:.1f} GFLOP/s, {machine['commit']}, {machine['date']}")
    for column in ("generator", "classes", "tasks", "MFLOP", "at peak (ms)", "taken (ms)", "times", "ONNX (ms)"):
        table.add_column(column, justify="right")
    for name in arguments.models:
        for row in rows(name, arguments.ways, arguments.batches, arguments.repeats, rate):
            table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
