"""How good are generated adapters on sets of text that no training has seen, and how soon are they ready?"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.methods import WeightGenerator
from mcdi.reproduce.cells import Cell, Context, Measured
from mcdi.tasks.base import Examples, TaskBatch
from mcdi.tasks.lora import LoraClassifier
from mcdi.tasks.sentences import TextTasks
from mcdi.tasks.sets import least_squares

SHOTS = (16, 32, 64)
AT_ONCE = 8  # tasks: their states are large
RIDGES = (0.01, 0.1, 1.0, 10.0, 100.0)


def unseen_sets(context: Context, cell: Cell, method: WeightGenerator, seed: int) -> list[Measured]:
    """A row for every test set and shot number: accuracy of every draw of a support set, F1 of the last class, seconds for
    one task from states to the classes of its queries. Prototypes bring the linear probe of the frozen encoder with them."""
    family = context.family
    if not isinstance(family, TextTasks):
        raise McdiError(f"the study adapters is for text, not for {family.name}: choose a recipe such as text-lora")
    net, sets, rows = family.downstream, family.pools["test"], []

    def generated(part: TaskBatch) -> Tensor:
        return _classes(net, method.generate(net, part.support, part.mask, seed=seed), part)

    answers: dict[str, Callable[[TaskBatch], Tensor]] = {str(cell.factors["method"]): generated}
    if cell.method == "prototypes":
        ridge = _best_ridge(family, context.recipe.evaluation.validation)
        answers["linear probe"] = lambda part: _probe(net, part.support, part.query.x, family.way, ridge)
    for number, pool in enumerate(sets):
        draws = [number + len(sets) * n for n in range(max(1, context.tasks // len(sets)))]  # task seed modulo sets is the set
        fewest = min(int(((pool.labels == c) & ~pool.held).sum()) for c in pool.labels.unique())
        for shots in [n for n in SHOTS if n <= fewest]:
            batch = family.sample("test", draws, shots=shots)
            for name, answer in answers.items():
                start = time.perf_counter()
                answer(_part(batch, 0, 1))
                seconds = time.perf_counter() - start
                predicted = torch.cat([answer(_part(batch, n, n + AT_ONCE)) for n in range(0, len(draws), AT_ONCE)])
                factors = {"method": name, "set": pool.name, "shots": shots}
                rows.append(_row(factors, predicted, batch.query.y, seconds))
    return rows


def _row(factors: dict[str, Any], predicted: Tensor, y: Tensor, seconds: float) -> Measured:
    last = y.max()
    hit = ((predicted == last) & (y == last)).sum(1)
    f1 = 2 * hit / ((predicted == last).sum(1) + (y == last).sum(1)).clamp(min=1)
    figures = {"F1 (%)": 100 * float(f1.mean()), "seconds": seconds}
    return Measured(factors, figures, (predicted == y).float().mean(1))


def _part(batch: TaskBatch, first: int, end: int) -> TaskBatch:
    support, query = (Examples(e.x[first:end], e.y[first:end]) for e in (batch.support, batch.query))
    return TaskBatch(support, query, batch.mask[first:end], batch.seeds[first:end])


@torch.no_grad()
def _classes(net: LoraClassifier, weights: Tensor, batch: TaskBatch) -> Tensor:
    return net.logits(weights, batch.query.x, batch.mask).argmax(-1)


def _probe(net: LoraClassifier, support: Examples, x: Tensor, way: int, ridge: float) -> Tensor:
    """Classes by ridge regression on both pooled features of the frozen model."""
    seen, asked = (net.pooled(part).flatten(2) for part in (support.x, x))
    rows = least_squares(seen, support.y, way, ridge)
    weight, bias = rows[..., :-1] / seen.shape[-1], rows[..., -1]
    return (asked @ weight.transpose(1, 2) + bias[:, None]).argmax(-1)


def _best_ridge(family: TextTasks, tasks: int) -> float:
    """The one that is most accurate on validation sets."""
    batches = [family.sample("val", range(tasks), shots=shots) for shots in family.shots]

    def merit(ridge: float) -> float:
        said = [(_probe(family.downstream, b.support, b.query.x, family.way, ridge), b.query.y) for b in batches]
        return sum(float((p == y).float().mean()) for p, y in said)

    return max(RIDGES, key=merit)
