"""Milliseconds of generation: plain, exported and compiled, measured in turn in one run.

    python benchmarks/export.py runs/glyphs/methods/mc-di-0

Prints, for batches of 1 and 64 tasks of 5 examples a class, milliseconds from features and labels to named weights by the
generator itself, its export to ONNX under onnxruntime, its torch.export program and torch.compile, if a C++ compiler is
installed. One thread; all but torch.compile check their inputs.
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
    made = provenance()
    table = Table(
        title=f"{made['hardware']}, one thread, {made['commit']}, {made['date']}; {sampler.described()['steps']} steps"
    )
    for column in ("batch", "runtime", "ms", "ms a task"):
        table.add_column(column, justify="right")
    for batch in (1, 64):
        feeds = sampler.drawn(batch, generator.network.way, 5, seed=0)
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
            except Exception as error:  # torch.compile needs a compiler and raises many kinds of errors
                table.add_row(str(batch), name, type(error).__name__, "")
                continue
            table.add_row(str(batch), name, f"{ms:.2f}", f"{ms / batch:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
