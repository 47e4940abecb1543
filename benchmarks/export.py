"""Milliseconds of generation: the generator itself, its exports and torch.compile.

    python benchmarks/export.py runs/glyphs/methods/mc-di-0

Prints, for batches of 1 and 64 tasks with 5 examples per class, milliseconds from features and labels to named weights: the
generator itself, its ONNX export in onnxruntime, its torch.export program, and torch.compile if there is a C++ compiler. One
thread. All check their inputs except torch.compile.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mcdi import load
from mcdi.experiments.evaluate import milliseconds
from mcdi.experiments.run import provenance
from mcdi.generator.export import FILES, Exported, Sampler, export


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int, default=None, help="denoising steps, without noise (default: as trained)")
    parser.add_argument("--repeats", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator = load(arguments.model)
    options: dict[str, Any] = {} if arguments.steps is None else {"steps": arguments.steps, "temperature": 0.0}
    sampler, readers = Sampler(generator, **options).eval(), {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind, name in FILES.items():
            export(generator, Path(scratch) / name, kind, **options)
            readers[kind] = Exported.load(Path(scratch) / name)
    compiled = torch.compile(sampler, dynamic=False)
    machine = provenance()
    table = Table(
        title=f"{machine['hardware']}, one thread, {machine['commit']}, {machine['date']}; {sampler.metadata()['steps']} steps"
    )
    for column in ("batch", "runtime", "ms", "ms per task"):
        table.add_column(column, justify="right")
    for batch in (1, 64):
        feeds = sampler.random_inputs(batch, generator.network.way, 5, seed=0)
        support = feeds["x"], feeds["y"]
        calls: dict[str, Callable[[], Any]] = {
            "plain": lambda support=support: generator.generate(support, **options),
            "onnxruntime": lambda support=support: readers["onnx"].generate(support),
            "torch.export": lambda support=support: readers["torch"].generate(support),
            "torch.compile": lambda feeds=feeds: compiled(**feeds),
        }
        for name, call in calls.items():
            try:
                with torch.no_grad():
                    ms = milliseconds(call, arguments.repeats)
            except Exception as error:  # torch.compile needs a compiler and raises many kinds
                table.add_row(str(batch), name, type(error).__name__, "")
                continue
            table.add_row(str(batch), name, f"{ms:.2f}", f"{ms / batch:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
