"""Accuracy and speed of bfloat16 in the backbone, the generator or both, on a run's unseen tasks.

    python benchmarks/precision.py runs/glyphs
    python benchmarks/precision.py runs/natural --data FILE

Images of the test classes go through the backbone in float32 and, as `mcdi serve --bf16` does, under autocast to bfloat16;
the generator, the first trained mc-di of the run, generates from these features in float32 and under autocast. Queries are
answered from features of the same precision. Differences are paired over tasks.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mcdi import Generator, load
from mcdi.errors import McdiError
from mcdi.experiments.evaluate import milliseconds
from mcdi.experiments.run import provenance, read_run
from mcdi.experiments.statistics import interval
from mcdi.tasks.episodes import FewShot
from mcdi.tasks.images.features import READERS
from mcdi.types import Examples

IMAGES, BATCH = 25, 64  # of a 5-way 5-shot request; tasks at once


def packed(generator: Generator, support: Examples) -> Tensor:
    """Weights of support sets, in the precision at hand: `generate` would leave autocast."""
    mask = torch.ones(len(support.y), generator.network.way, dtype=torch.bool)
    return generator.sample_packed(support, mask, generator.sampling()).weights


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tasks", type=int, default=600)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe, models = read_run(arguments.run), sorted(arguments.run.glob("**/mc-di-*/config.json"))
    if not models:
        raise McdiError(f"{arguments.run} holds no trained mc-di: mcdi run {recipe.name}")
    generator = load(models[0].parent)
    embedder, net = generator.network.embedder, generator.network
    if embedder is None:
        raise McdiError(f"{models[0].parent} reads no images")
    pixels = READERS[recipe.family.data](recipe.family, arguments.data, arguments.run)["test"].pixels
    few, made = pixels.flatten(0, 1)[:IMAGES], provenance()
    title = f"{recipe.name}: {made['hardware']}, one thread, {made['commit']}, {made['date']}; {arguments.tasks} unseen tasks"
    table = Table(title=title)
    shots = recipe.family.shots
    for column in ("backbone", "generator", f"{IMAGES} images, ms", "1 task, ms", f"{BATCH} tasks, ms"):
        table.add_column(column, justify="right")
    for n in shots:
        table.add_column(f"{n} shots, %", justify="right")
        table.add_column("minus float32", justify="right")
    first: dict[int, Tensor] = {}
    for name in ("float32", "bfloat16"):
        if name == "bfloat16":
            embedder.in_bf16()
        features = {"test": net.embed(pixels)}
        family = FewShot(recipe.name, net, features, way=recipe.family.way, shots=shots, queries=recipe.family.queries)
        reading = milliseconds(lambda: net.embed(few))
        for kind in ("float32", "bfloat16"):
            with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bfloat16"):
                values = [name, kind, f"{reading:.2f}"]
                for tasks in (1, BATCH):
                    support = family.sample("test", range(tasks), shots=shots[-1]).support
                    values.append(f"{milliseconds(partial(packed, generator, support)):.2f}")
                for n in shots:
                    batch = family.sample("test", range(arguments.tasks), shots=n)
                    weights = packed(generator, batch.support).float()
                    with torch.autocast("cpu", enabled=False):
                        correct = (net.predict(weights, batch.query.x).argmax(-1) == batch.query.y).float().mean(1)
                    gap = interval(correct - first.setdefault(n, correct))
                    values += [f"{100 * float(correct.mean()):.2f}", f"{100 * gap['mean']:+.3f} ± {100 * gap['ci95']:.3f}"]
            table.add_row(*values)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
