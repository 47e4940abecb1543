"""Classifiers that are no generated heads, beside `photos`, on the features of a run: and how much more examples would bring.

    python benchmarks/photo_classifiers.py RUN [--targets cifar10 pets] [--shots 1 5] [--tasks 200] [--more 50]

RUN: a folder of `mcdi run photos`, for whose targets `mcdi transfer` has read images. On 5-way tasks of every target: the head
of `photos`, ridge regression, k-nearest neighbours by cosine, distribution calibration (2101.06395: each example draws further
ones from the statistics of the two nearest training classes, then logistic regression), and, as an upper limit, scikit-learn's
logistic regression with --more further images of every class. Settings are tuned on the run's validation classes.

Prints accuracy (95 % interval over tasks) and the paired difference to `photos`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

import mcdi
from mcdi.experiments.run import load_family, provenance, read_run
from mcdi.experiments.statistics import interval
from mcdi.tasks.episodes import FewShot
from mcdi.types import Examples, TaskBatch
from mcdi.utils.files import read_tensors

WAY, QUERIES, TUNING = 5, 15, 15
NEIGHBOURS = (1, 3, 5)
PENALTIES = (0.001, 0.01, 0.1)  # scikit-learn's C: features have the length sqrt(F)
DISPERSIONS = (0.0, 0.3, 1.0)  # alpha of distribution calibration, in units of the mean variance of a training class
NEAREST, DRAWN = 2, 50  # training classes of an example; examples that it and those of its class draw together

Predict = Callable[[Examples, Tensor, float], np.ndarray]  # support set, queries, the tuned setting -> labels


def neighbours(support: Examples, queries: Tensor, count: float) -> np.ndarray:
    few = min(int(count), int((support.y[0] == 0).sum()))
    model = KNeighborsClassifier(few, metric="cosine", weights="distance")
    return model.fit(support.x[0], support.y[0]).predict(queries)


def logistic(support: Examples, queries: Tensor, penalty: float) -> np.ndarray:
    return LogisticRegression(C=penalty, max_iter=1000).fit(support.x[0], support.y[0]).predict(queries)


class DistributionCalibration:
    """Yang et al., 2101.06395, algorithm 1, without Tukey's transform, which needs features that are not negative.

    Args:
        classes: features of training classes (C, n, F).
    """

    def __init__(self, classes: Tensor) -> None:
        self.means = classes.mean(1)
        self.residuals = (classes - self.means[:, None]) / (
            classes.shape[1] - 1
        ) ** 0.5  # a normal draw of them has the covariance
        self.variance = float(self.residuals.square().sum(1).mean())

    def __call__(self, support: Examples, queries: Tensor, dispersion: float) -> np.ndarray:
        g = torch.Generator().manual_seed(0)
        x, y = support.x[0], support.y[0]
        draws = DRAWN // int((y == 0).sum())
        drawn = []
        for own, near in zip(x, torch.cdist(x, self.means).topk(NEAREST, largest=False).indices, strict=True):
            mean = (self.means[near].sum(0) + own) / (NEAREST + 1)
            basis = self.residuals[near].flatten(0, 1) / NEAREST**0.5
            noise = torch.randn(draws, len(basis), generator=g) @ basis
            dispersed = torch.randn(draws, x.shape[1], generator=g) * (dispersion * self.variance) ** 0.5
            drawn.append(mean + noise + dispersed)
        model = LogisticRegression(max_iter=1000)
        model.fit(torch.cat([x, *drawn]), torch.cat([y, y.repeat_interleave(draws)]))
        return model.predict(queries)


def few_of(batch: TaskBatch, shots: int) -> Examples:
    """The first examples of every class of support sets, whose classes lie one after the other."""
    x, y = (part.unflatten(1, (WAY, -1))[:, :, :shots].flatten(1, 2) for part in batch.support)
    return Examples(x, y)


def accuracy(predict: Predict, batch: TaskBatch, shots: int, value: float) -> float:
    labels = predict(few_of(batch, shots), batch.query.x[0], value)
    return float((labels == batch.query.y[0].numpy()).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--targets", nargs="+", help="names (default: all that the run has)")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--more", type=int, default=50)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    family: Any = load_family(read_run(arguments.run).family, arguments.run)
    net = family.downstream
    ridge = mcdi.load(arguments.run / "methods/linear-probe-0")
    generators = {"photos": mcdi.load("photos"), "ridge regression": ridge}
    tuned: dict[str, tuple[Predict, tuple[float, ...]]] = {
        "k-nearest neighbours": (neighbours, NEIGHBOURS),
        "distribution calibration": (DistributionCalibration(family.examples["train"]), DISPERSIONS),
        f"logistic regression, {arguments.more} more images a class": (logistic, PENALTIES),
    }
    files = {path.stem: path for path in sorted((arguments.run / "targets").glob("*.safetensors"))}
    results: dict[tuple[str, int, str], list[float]] = {}
    chosen = {}

    def tasks_of(name: str, examples: Tensor) -> FewShot:
        """Tasks with as many examples as the largest support set needs."""
        most = max(arguments.shots) + arguments.more
        if most + QUERIES > examples.shape[1]:
            raise SystemExit(f"{name} has {examples.shape[1]} images a class, and {most + QUERIES} are needed: lower --more")
        return FewShot(name, net, {"test": examples}, way=WAY, shots=[most], queries=QUERIES)

    validation = tasks_of("validation", family.examples["val"])
    for shots in arguments.shots:
        for name, (predict, grid) in tuned.items():
            print(f"tuning {name}, {shots} shots", flush=True)
            seen = shots + arguments.more if "more" in name else shots
            batches = [validation.sample("test", [seed]) for seed in range(TUNING)]
            scores = [np.mean([accuracy(predict, batch, seen, value) for batch in batches]) for value in grid]
            chosen[name, shots] = grid[int(np.argmax(scores))]
    for target in arguments.targets or files:
        tasks = tasks_of(target, read_tensors(files[target])[0]["features"])
        for seed in track(range(arguments.tasks), target):
            batch = tasks.sample("test", [seed])
            for shots in arguments.shots:
                support = few_of(batch, shots)
                for name, generator in generators.items():
                    weights = generator.method.generate(net, support, batch.mask, seed=0)
                    score = float(net.score(weights, batch.query, batch.mask))
                    results.setdefault((target, shots, name), []).append(score)
                for name, (predict, _) in tuned.items():
                    seen = shots + arguments.more if "more" in name else shots
                    score = accuracy(predict, batch, seen, chosen[name, shots])
                    results.setdefault((target, shots, name), []).append(score)
    made = provenance()
    table = Table(title=f"{arguments.tasks} tasks of 5 classes; {made['hardware']}, {made['date']}, commit {made['commit']}")
    for column in ("target", "shots", "classifier", "accuracy (%)", "minus photos"):
        table.add_column(column, justify="left" if column in ("target", "classifier") else "right")
    for (target, shots, name), values in results.items():
        own, difference = (interval(torch.tensor(v)) for v in (values, np.subtract(values, results[target, shots, "photos"])))
        text = [f"{100 * e['mean']:{sign}.1f} ± {100 * e['ci95']:.1f}" for e, sign in ((own, ""), (difference, "+"))]
        table.add_row(target, str(shots), name, text[0], "" if name == "photos" else text[1])
    Console(width=110).print(table)
    Console(width=110).print("chosen on validation classes:", {f"{n}, {s} shots": v for (n, s), v in chosen.items()})


if __name__ == "__main__":
    main()
