"""Accuracy and time of fine-tuning all weights on the support set, against a generated head and prototypes.

    python benchmarks/full_fine_tuning.py RUN MODEL --data FILE [--tasks 100] [--tuning 15]

RUN: a prepared run of a recipe of colour images (natural), MODEL: a trained generator of it (RUN/methods/mc-di-0, or one under
RUN/studies/models), --data: its images. Every task starts from the run's backbone and a head of zeros; Adam on all images of
the support set; its rate and number of steps are chosen on validation tasks for every shot number. Batch norm keeps its
statistics. Prints accuracy (95 % interval over tasks) and milliseconds of one thread for the same test tasks, images in and
queries answered, for fine-tuning, the generated head (features included) and prototypes.
"""

import argparse
import copy
import time
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mcdi.experiments.run import load_family, provenance, read_run
from mcdi.experiments.statistics import interval
from mcdi.generator.api import load
from mcdi.networks.backbones.embedder import Embedder, cl2n
from mcdi.networks.support import class_means, prototype_rows
from mcdi.tasks.episodes import FewShot
from mcdi.tasks.images.photos import natural_images
from mcdi.types import TaskBatch

RATES, STEPS = (1e-4, 3e-4, 1e-3, 3e-3), (5, 10, 20, 50)


class Whole(nn.Module):
    """Pixels in [0, 1] -> logits, by a backbone and a head that are both trained."""

    def __init__(self, embedder: Embedder, way: int) -> None:
        super().__init__()
        self.backbone, self.mean = copy.deepcopy(embedder.backbone).eval(), embedder.mean
        self.head = nn.Linear(self.backbone.features, way)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(cl2n(self.backbone(x), self.mean))


def one(batch: TaskBatch, b: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Support and query of one task, pixels in [0, 1]."""
    (x, y), (asked, answer) = batch.support, batch.query
    return x[b].float() / 255, y[b], asked[b].float() / 255, answer[b]


def scores_along(embedder: Embedder, way: int, batch: TaskBatch, b: int, rate: float, steps: tuple[int, ...]) -> list[float]:
    """The accuracy on the queries after each of these numbers of steps."""
    x, y, asked, answer = one(batch, b)
    net, scores = Whole(embedder, way), []
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    for step in range(1, max(steps) + 1):
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimiser.step()
        if step in steps:
            with torch.no_grad():
                scores.append(float((net(asked).argmax(-1) == answer).float().mean()))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--tuning", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = read_run(arguments.run).family
    family, generator = load_family(settings, arguments.run), load(arguments.model)
    classes = natural_images(arguments.data, size=settings.side, limit=settings.limit, examples=settings.examples)
    # The same tasks, as images: they depend only on the numbers of classes and examples.
    counts = {"way": settings.way, "shots": settings.shots, "queries": settings.queries}
    images = FewShot(settings.data, family.downstream, {n: b.pixels for n, b in classes.items()}, **counts)
    embedder, way = family.downstream.embedder, settings.way
    assert isinstance(embedder, Embedder) and embedder.embedding is None and not family.downstream.centred
    made = provenance()
    table = Table(
        title=f"{arguments.tasks} test tasks; {made['hardware']}, one thread, {made['date']}, commit {made['commit']}"
    )
    for column in ("shots", "weights", "chosen", "accuracy (%)", "ms"):
        table.add_column(column, justify="right" if column != "weights" else "left")
    for shots in settings.shots:
        val, test = (images.sample(s, range(n), shots=shots) for s, n in (("val", arguments.tuning), ("test", arguments.tasks)))
        merit = {
            rate: torch.tensor([scores_along(embedder, way, val, b, rate, STEPS) for b in range(arguments.tuning)]).mean(0)
            for rate in RATES
        }
        rate = max(merit, key=lambda r: float(merit[r].max()))
        steps = STEPS[int(merit[rate].argmax())]
        start = time.perf_counter()
        tuned = [scores_along(embedder, way, test, b, rate, (steps,))[0] for b in range(arguments.tasks)]
        answers = {"fine-tuning, all": (f"{rate:g}, {steps} steps", tuned, time.perf_counter() - start)}
        for name in (generator.name, "prototypes"):
            correct, start = [], time.perf_counter()
            for b in range(arguments.tasks):
                x, y = test.support.x[b], test.support.y[b]
                if name == "prototypes":
                    means, _ = class_means(embedder(x)[None], y[None], way)
                    rows = prototype_rows(means)[0]
                    weights = {"weight": rows[:, :-1], "bias": rows[:, -1]}
                else:
                    weights = generator.generate((x, y))
                logits = F.linear(embedder(test.query.x[b]), weights["weight"], weights["bias"])
                correct.append(float((logits.argmax(-1) == test.query.y[b]).float().mean()))
            answers[name] = ("", correct, time.perf_counter() - start)
        for name, (chosen, correct, seconds) in answers.items():
            figures = interval(torch.tensor(correct))
            accuracy = f"{100 * figures['mean']:.2f} ± {100 * figures['ci95']:.2f}"
            table.add_row(str(shots), name, chosen, accuracy, f"{1000 * seconds / arguments.tasks:.3g}")
    Console().print(table)


if __name__ == "__main__":
    main()
