"""How good are generated adapters on sets of text that no training has seen, and how soon are they ready?"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcdi.config import Recipe
from mcdi.errors import McdiError
from mcdi.methods import WeightGenerator, adapt
from mcdi.reproduce.cells import Cell, Context, Measured
from mcdi.tasks.base import Examples, TaskBatch
from mcdi.tasks.lora import LoraClassifier
from mcdi.tasks.sentences import TextTasks
from mcdi.tasks.sets import least_squares

METHODS = ("prototypes", "adam", "reptile", "hypernetwork", "mv-di", "mc-di")
SHOTS = (16, 32, 64)
AT_ONCE = 8  # tasks: their states are large
RIDGES = (0.01, 0.1, 1.0, 10.0, 100.0)
# What takes steps through the layers, half a second each on one core, is tuned on fewer tasks and measured on fewer support
# sets of every size; a step sees so many examples.
FEW, BATCH = 5, 32
REFINED = 10  # such steps after generation
RATES = (0.0003, 0.001, 0.003)
TUNING: dict[str, Any] = {"lrs": [0.001, 0.003], "steps": [20, 50, 100], "decays": [0.0], "tasks": 4, "batch": BATCH}


class Answer(NamedTuple):
    """How the classes of queries are found; `deep`: by steps through the layers."""

    classes: Callable[[TaskBatch], Tensor]
    deep: bool


def cells(recipe: Recipe) -> list[Cell]:
    """The methods of the recipe, and fine-tuning of rows and pairs from where peft draws them: what there is without mcdi."""
    found = [Cell({"method": n}, n) for n in METHODS if n in recipe.methods]
    lora = replace(recipe.family.lora, generate="both", start="drawn")
    tuned = Cell({"method": "LoRA fine-tuning"}, "adam", TUNING, family={"lora": lora})
    return [*found, tuned]


def unseen_sets(context: Context, cell: Cell, method: WeightGenerator, seed: int) -> list[Measured]:
    """A row for every test set and shot number: accuracy of every draw of a support set, F1 of the last class, seconds for
    one task from states in front of the adapted layers to the classes of its queries. Prototypes bring the linear probe of
    the frozen encoder with them, Mc-Di the ten steps after it. The largest support set has as many examples a class as the
    smallest class has."""
    family = context.family
    if not isinstance(family, TextTasks):
        raise McdiError(f"the study adapters is for text, not for {family.name}: choose a recipe such as text-lora")
    sets, rows = family.pools["test"], []
    answers = _answers(context, cell, method, seed)
    for number, pool in enumerate(sets):
        draws = [number + len(sets) * n for n in range(max(1, context.tasks // len(sets)))]  # task seed modulo sets is the set
        fewest = min(int(((pool.labels == c) & ~pool.held).sum()) for c in pool.labels.unique())
        for shots in sorted({n for n in (*SHOTS, fewest) if n <= fewest}):
            for name, answer in answers.items():
                batch = family.sample("test", draws[:FEW] if answer.deep else draws, shots=shots)
                predicted, seconds = (_one_by_one if answer.deep else _together)(family.downstream, answer, batch)
                factors = {"method": name, "set": pool.name, "shots": shots}
                rows.append(_row(factors, predicted, batch.query.y, seconds))
    return rows


def _one_by_one(net: LoraClassifier, answer: Answer, batch: TaskBatch) -> tuple[Tensor, float]:
    """The classes of all queries, and the mean seconds of a task."""
    start = time.perf_counter()
    predicted = [answer.classes(_part(batch, n, n + 1)) for n in range(len(batch.seeds))]
    return torch.cat(predicted), (time.perf_counter() - start) / len(predicted)


def _together(net: LoraClassifier, answer: Answer, batch: TaskBatch) -> tuple[Tensor, float]:
    """The classes of all queries, and the seconds of the second call for one task alone; what is pooled in the bank, support
    and queries, costs as much as it did when it was read."""
    one = _part(batch, 0, 1)
    answer.classes(one)
    start = time.perf_counter()
    if not net.space.extra:
        with torch.no_grad():
            for x in (one.support.x, one.query.x):
                net.encoder.tail.pooled(net.states(x.flatten()))
    answer.classes(one)
    seconds = time.perf_counter() - start
    parts = [_part(batch, n, n + AT_ONCE) for n in range(0, len(batch.seeds), AT_ONCE)]
    return torch.cat([answer.classes(part) for part in parts]), seconds


def _answers(context: Context, cell: Cell, method: WeightGenerator, seed: int) -> dict[str, Answer]:
    """The ways of a cell to find classes, by the name of the method."""
    family = context.family
    assert isinstance(family, TextTasks)
    net = family.downstream

    def weights(part: TaskBatch) -> Tensor:
        return method.generate(net, part.support, part.mask, seed=seed)

    deep = not method.gradient_free and net.space.extra > 0
    own = Answer(lambda part: _classes(net, weights(part), part), deep)
    answers = {str(cell.factors["method"]): own}
    validation = range(context.recipe.evaluation.validation)
    if cell.method == "prototypes":
        batches = [family.sample("val", validation, shots=shots) for shots in family.shots]
        probe = partial(_probe, net, way=family.way)
        ridge = max(RIDGES, key=lambda r: _merit([probe(b, ridge=r) for b in batches], batches))
        answers["linear probe"] = Answer(partial(probe, ridge=ridge), deep=False)
    if cell.method == "mc-di" and seed == context.recipe.evaluation.seeds[0]:
        full, few = net.whole(), [family.sample("val", range(TUNING["tasks"]), shots=family.shots[0])]

        def refined(part: TaskBatch, rate: float) -> Tensor:
            start = weights(part) if full is net else full.with_pairs(weights(part))
            mask = part.mask[:, :1].expand(-1, start.shape[1])
            return _classes(full, adapt(full, start, part.support, mask, REFINED, rate, batch=BATCH), part)

        best = max(RATES, key=lambda rate: _merit([refined(b, rate) for b in few], few))
        answers[f"{cell.method}, {REFINED} steps"] = Answer(partial(refined, rate=best), deep=True)
    return answers


def _merit(predicted: Sequence[Tensor], batches: Sequence[TaskBatch]) -> float:
    return sum(float((p == b.query.y).float().mean()) for p, b in zip(predicted, batches, strict=True))


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


def _probe(net: LoraClassifier, part: TaskBatch, *, way: int, ridge: float) -> Tensor:
    """Classes by ridge regression on both pooled features of the frozen model."""
    seen, asked = (net.pooled(x).flatten(2) for x in (part.support.x, part.query.x))
    rows = least_squares(seen, part.support.y, way, ridge)
    weight, bias = rows[..., :-1] / seen.shape[-1], rows[..., -1]
    return (asked @ weight.transpose(1, 2) + bias[:, None]).argmax(-1)
