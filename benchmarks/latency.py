"""Milliseconds to generate weights against fine-tuning them, measured in turn in one run.

    python benchmarks/latency.py runs/glyphs
    python benchmarks/latency.py runs/glyphs-conv4 --batches 1 64 --shots 5

Prints, for batches of tasks, milliseconds to the weights by Mc-Di with 20, 5, 2 and 1 denoising steps, by the tuned Adam on
the support set, and by MAML and a shared body where the run has them, and Adam's time in units of each. One thread; features
(or pixels) of the support set are given.
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mcdi import load
from mcdi.experiments.evaluate import milliseconds
from mcdi.experiments.run import load_family, provenance, read_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shots", type=int, help="default: the run's first")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 256])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    family = load_family(read_run(arguments.run).family, arguments.run)
    folders = {n: arguments.run / "methods" / f"{n}-0" for n in ("mc-di", "adam", "maml", "protonet")}
    generators = {n: load(f, arguments.device) for n, f in folders.items() if f.is_dir() or n in ("mc-di", "adam")}
    table = Table(title=f"{provenance()['hardware']}, one thread, {arguments.device}")
    for column in ("batch", "method", "ms", "ms a task", "Adam / this"):
        table.add_column(column, justify="right")
    for batch in arguments.batches:
        support = family.sample("test", range(batch), shots=arguments.shots).support
        rows = {
            name: milliseconds(lambda support=support, made=made: made.generate(support), 15)
            for name, made in generators.items()
            if name != "mc-di"
        }
        for steps in (20, 5, 2, 1):
            call = lambda support=support, steps=steps: generators["mc-di"].generate(support, steps=steps)  # noqa: E731
            rows[f"mc-di, {steps} steps"] = milliseconds(call, 15)
        for name, ms in rows.items():
            table.add_row(str(batch), name, f"{ms:.2f}", f"{ms / batch:.3f}", f"{rows['adam'] / ms:.1f}x")
    Console().print(table)


if __name__ == "__main__":
    main()
