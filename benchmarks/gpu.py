"""Generators on a GPU: the same weights as on the CPU, what bfloat16 loses, milliseconds and tasks a second.

    python benchmarks/gpu.py [--device cuda] [--models photos symbols DIR]

Support sets of 5 classes of 5 examples: random features, or letters where networks read drawings. Prints, for every generator,
the largest difference between the weights of the two devices, relative to the largest number of a parameter; how often
predictions change when the generator computes in bfloat16; and milliseconds for 1 and for many tasks on both devices. It exits
with 1 if a difference is above 1e-4. The GPU's products are float32, not TF32. A few minutes on one GPU.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mcdi import Generator, load
from mcdi.experiments.evaluate import milliseconds
from mcdi.experiments.run import provenance
from mcdi.generator.export import random_examples
from mcdi.tasks.episodes import FewShot
from mcdi.tasks.images.glyphs import glyph_images
from mcdi.types import Examples

WAY, SHOTS, QUERIES, MANY = 5, 5, 10, 256  # queries of a class
LIMIT = 1e-4  # of the difference between devices


def tasks_of(generator: Generator) -> tuple[Examples, Tensor]:
    """Support sets and queries of MANY tasks, on the CPU: letters of the embedded data for networks that read drawings, random
    features whose classes are a little apart for heads."""
    net = generator.network
    if net.space.unit != "row":
        drawings = net.embed(glyph_images(0, limit=60)["test"].pixels)
        letters = FewShot("letters", net, {"test": drawings}, way=WAY, shots=(SHOTS,), queries=QUERIES)
        batch = letters.sample("test", range(MANY))
        return batch.support, batch.query.x
    examples, support = random_examples(MANY, WAY, SHOTS + QUERIES, net.input_size), WAY * SHOTS
    return Examples(examples.x[:, :support], examples.y[:, :support]), examples.x[:, support:]


def finished(call: Callable[[], Any], device: str) -> None:
    """A call with the device's own work done."""
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest, relative to the largest number of a parameter."""
    pairs = ((ours[n], theirs[n].cpu()) for n in ours)
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs)


@torch.no_grad()
def changed(generator: Generator, device: str, support: Examples, queries: Tensor) -> float:
    """The part of predictions that change when weights are generated in bfloat16."""
    net = generator.network
    placed, x = Examples(*(part.to(device) for part in support)), queries.to(device)
    mask = torch.ones(len(x), net.space.units(WAY), dtype=torch.bool, device=device)
    answers = []
    for low in (False, True):
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=low):
            weights = generator.sample_packed(placed, mask, generator.sampling()).weights.float()
        answers.append(net.predict(weights, x).argmax(-1))
    return float((answers[0] != answers[1]).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=["photos", "texts", "symbols"], help="folders, or ready-made generators")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device, made = arguments.device, provenance()
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    table = Table(title=f"{name}, beside {made['hardware']}; {made['commit']}, {made['date']}, torch {made['torch']}")
    for column in ("generator", "difference", "changed by bfloat16", "tasks", "CPU (ms)", "device (ms)", "device, tasks / s"):
        table.add_column(column, justify="right")
    worst = 0.0
    for model in arguments.models:
        cpu, other = load(model), load(model, device)
        support, queries = tasks_of(cpu)
        few = Examples(*(part[:8] for part in support))
        far = difference(cpu.generate(few, seed=0), other.generate(few, seed=0))
        worst, lost = max(worst, far), changed(other, device, support, queries)
        for tasks in (1, MANY):
            some = Examples(*(part[:tasks] for part in support))
            placed = Examples(*(part.to(device) for part in some))
            ours = milliseconds(partial(cpu.generate, some), 3)
            theirs = milliseconds(partial(finished, partial(other.generate, placed), device), 10)
            figures = f"{tasks}", f"{ours:.2f}", f"{theirs:.2f}", f"{1000 * tasks / theirs:.0f}"
            table.add_row(*((model, f"{far:.1e}", f"{100 * lost:.2f} %") if tasks == 1 else ("", "", "")), *figures)
    Console(width=120).print(table)
    if worst > LIMIT:
        sys.exit(f"error: weights differ by {worst:.1e} between the devices, more than {LIMIT:.0e}")


if __name__ == "__main__":
    main()
