"""Accuracy of heads that need no meta-training, which a trained generator has to exceed.

    python benchmarks/closed_form.py runs/glyphs

Prints, on 1500 VALIDATION tasks of a run's family, the accuracy of nearest prototypes, of the least-squares classifier of
the support set, and of the linear map from the condition to the head (the generator's prior) with the least-squares
rows in the condition and without them, and the fraction of the variance of theta_M that the map explains.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mcdi.experiments.run import load_family, provenance, read_run
from mcdi.methods.mcdi.prior import LinearPrior
from mcdi.networks.linear_head import LinearHead
from mcdi.networks.support import least_squares_rows
from mcdi.trajectories.store import TrajectoryStore
from mcdi.types import TaskBatch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--tasks", type=int, default=1500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    family = load_family(read_run(arguments.run).family, arguments.run)
    net = family.downstream
    if type(net) is not LinearHead:
        parser.error("this compares heads on features: give the run of a recipe with network = 'linear-head'")
    if net.embedding_size:
        parser.error("this reads class means of the backbone from the condition: give the run of a recipe without embedding")
    stored = TrajectoryStore.open(arguments.run / "trajectories").read()
    space = net.space.fitted([(stored.targets[:, -1], stored.mask)])
    z = space.standardise(stored.targets[:, -1])
    training = [family.sample("train", stored.seeds.tolist(), shots=shots) for shots in family.shots]
    validation = {shots: family.sample("val", range(arguments.tasks), shots=shots) for shots in family.shots}
    table = Table(title=f"{arguments.tasks} validation tasks, {provenance()['hardware']}, {provenance()['date']}")
    for column in ("weights", *(f"{shots}-shot (%)" for shots in family.shots), "R^2"):
        table.add_column(column, justify="right")

    def show(name: str, weights: Callable[[TaskBatch], Tensor], explained: float | None = None) -> None:
        scores = [100 * float(net.score(weights(b), b.query, b.mask).mean()) for b in validation.values()]
        table.add_row(name, *(f"{score:.2f}" for score in scores), "" if explained is None else f"{explained:.3f}")

    def prototypes(batch: TaskBatch) -> Tensor:
        mean = net.condition(batch.support, net.way)[..., : net.features]
        return torch.cat([2 * mean, -mean.square().sum(-1, keepdim=True)], -1)

    def solved(ridge: float) -> Callable[[TaskBatch], Tensor]:
        return lambda batch: least_squares_rows(batch.support.x, batch.support.y, net.way, ridge)

    show("nearest prototype", prototypes)
    for ridge in (0.1, 0.3, 1.0, 3.0):
        show(f"least squares, ridge {ridge}", solved(ridge))
    rows = slice(2 * net.features, 3 * net.features + 1)
    for name, keep in (("linear map, class means only", False), ("linear map, with least-squares rows", True)):

        def condition(batch: TaskBatch, keep: bool = keep) -> Tensor:
            out = net.condition(batch.support, net.way)
            if not keep:
                out[..., rows] = 0
            return out

        prior = LinearPrior(space.D, net.condition_size, 1)
        mask, targets = stored.mask.repeat(len(training), 1), z.repeat(len(training), 1, 1)
        prior.fit([(targets, torch.cat([condition(b) for b in training]), mask)])
        explained = 1 - float(prior.variance.mean() / targets[mask].var(0).mean())

        def mapped(batch: TaskBatch, prior: LinearPrior = prior, read: Callable[[TaskBatch], Tensor] = condition) -> Tensor:
            return space.restore(prior.guess(read(batch), batch.mask))

        show(name, mapped, explained)
    Console().print(table)


if __name__ == "__main__":
    main()
