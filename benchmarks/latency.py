"""Milliseconds to generate a head against fine-tuning it, measured in turn in one run.

    python benchmarks/latency.py runs/glyphs

Prints, for batches of 1 and 256 tasks, milliseconds to the weights by Mc-Di with 20, 5, 2 and 1 denoising steps and by
the tuned Adam on the support set, and the ratio. One thread; features of the support set are given.
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
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    family = load_family(read_run(arguments.run).family, arguments.run)
    generators = {n: load(arguments.run / "methods" / f"{n}-0", arguments.device) for n in ("mc-di", "adam")}
    table = Table(title=f"{provenance()['hardware']}, one thread, {arguments.device}")
    for column in ("batch", "method", "ms", "ms a task", "Adam / this"):
        table.add_column(column, justify="right")
    for batch in (1, 256):
        support = family.sample("test", range(batch)).support
        rows = {"adam": milliseconds(lambda support=support: generators["adam"].generate(support), 15)}
        for steps in (20, 5, 2, 1):
            call = lambda support=support, steps=steps: generators["mc-di"].generate(support, steps=steps)  # noqa: E731
            rows[f"mc-di, {steps} steps"] = milliseconds(call, 15)
        for name, ms in rows.items():
            table.add_row(str(batch), name, f"{ms:.2f}", f"{ms / batch:.3f}", f"{rows['adam'] / ms:.1f}x")
    Console().print(table)


if __name__ == "__main__":
    main()
