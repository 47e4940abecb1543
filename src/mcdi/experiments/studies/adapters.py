"""The study `adapters`: accuracy and CPU seconds of generated adapters on sets of text outside training."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.experiments.recipe import Recipe
from mcdi.experiments.run import Context
from mcdi.experiments.studies.variants import Measured, Variant
from mcdi.methods import WeightGenerator, all_methods
from mcdi.methods.base import SupportsFineTuning, nearest_shots
from mcdi.methods.baselines.finetune import adapt
from mcdi.networks.backbones.language import LoraSettings
from mcdi.networks.lora import LoraClassifier
from mcdi.networks.support import least_squares_rows
from mcdi.tasks.text.text_tasks import TextTasks
from mcdi.types import Examples, TaskBatch

FINE_TUNED = "LoRA fine-tuning"
PROBE = "linear probe"  # ridge regression on the frozen encoder's features
SHOTS = (16, 32, 64)
AT_ONCE = 8  # tasks: their states are large
RIDGES = (0.01, 0.1, 1.0, 10.0, 100.0)
READ, TIMED = 32, 8  # texts that are pooled at once, and so many times where pooling is timed
# What takes steps through the layers, half a second each on one core, is tuned on fewer tasks, and each seed has FEW of the
# support sets to itself; a step sees so many examples.
FEW, BATCH = 2, 32
LONG = 200  # steps of fine-tuning on whole sets, some three epochs, and as many as validation chose for 32 shots
REFINED = 10  # steps after generation, on rows and pairs or on rows only, at a rate that some tasks choose
RATES = {False: (0.001, 0.003, 0.01), True: (0.0001, 0.0003, 0.001)}  # {with pairs: rates}
CHOOSING = 8
TUNING: dict[str, Any] = {"lrs": [0.001, 0.003], "steps": [20, 50, 100], "decays": [0.0], "tasks": 4, "batch": BATCH}


class Answer(NamedTuple):
    """Tasks -> the classes of their queries; `deep`: by steps through the layers; `whole`: on whole sets only."""

    classes: Callable[[TaskBatch], Tensor]
    deep: bool
    whole: bool = False


def variants(recipe: Recipe) -> list[Variant]:
    """The recipe's methods, and what works without mcdi: the linear probe, and fine-tuning from peft's start."""
    lora = getattr(recipe.family, "lora", None)
    if not isinstance(lora, LoraSettings):
        raise McdiError(f"the study adapters is for text, not for {recipe.family.data}: choose a recipe such as text-lora")
    # Steps through the layers take long: every seed measures them on tasks of its own.
    steps = {n: lora.generate == "both" and not (s.gradient_free or s.draws_at_random) for n, s in all_methods().items()}
    own = [Variant({"method": n}, n, every_seed=steps[n]) for n in recipe.methods]
    drawn = replace(lora, generate="both", start="drawn")
    tuned = Variant({"method": FINE_TUNED}, "adam", TUNING, family={"lora": drawn}, every_seed=True)
    return [*own, Variant({"method": PROBE}, "prototypes"), tuned]


def unseen_sets(context: Context, variant: Variant, method: WeightGenerator, seed: int) -> list[Measured]:
    """A row for every test set and shot number: accuracy of every draw of a support set, F1 of the last class, CPU seconds for
    one task from states in front of the adapted layers to the classes of its queries. The proposed method is also measured with
    some steps after it, fine-tuning with many. The largest support set has as many examples a class as the smallest class."""
    family = context.family
    if not isinstance(family, TextTasks):
        raise McdiError(f"the study adapters is for text, not for {family.name}: choose a recipe such as text-lora")
    sets, rows = family.pools["test"], []
    answers = _answers(context, family, variant, method, seed)
    draws = max(1, context.tasks // len(sets))
    few = min(FEW, draws)
    first = context.recipe.evaluation.seeds.index(seed) * few % draws
    for number, pool in enumerate(sets):
        most = min(int(((pool.labels == c) & ~pool.held_out).sum()) for c in pool.labels.unique())
        for shots in sorted({n for n in (*SHOTS, most) if n <= most}):
            for name, answer in answers.items():
                if answer.whole and shots < most:
                    continue
                own = range(first, min(first + few, draws)) if answer.deep else range(draws)
                # The task seed modulo the number of sets is the set.
                batch = family.sample("test", [number + len(sets) * n for n in own], shots=shots)
                measure = partial(_one_by_one, whole=shots == most) if answer.deep else _together
                predicted, seconds = measure(family.downstream, answer, batch)
                figures = {"F1 (%)": 100 * _f1(predicted, batch.query.y), "seconds": seconds}
                correct = (predicted == batch.query.y).float().mean(1)
                rows.append(Measured({"method": name, "set": pool.name, "shots": shots}, figures, correct, own[0]))
    return rows


def _one_by_one(net: LoraClassifier, answer: Answer, batch: TaskBatch, *, whole: bool) -> tuple[Tensor, float]:
    """The classes of all queries, and CPU seconds a task. whole: sets are nearly one, and the first answers all."""
    parts = [_part(batch, n, n + 1) for n in range(len(batch.seeds))]
    if whole:
        query = Examples(batch.query.x.flatten(0, 1)[None], batch.query.y.flatten()[None])
        parts = [parts[0]._replace(query=query)]
    start = time.process_time()
    predicted = [answer.classes(part) for part in parts]
    seconds = (time.process_time() - start) / len(parts) + _pooling(net, parts[0].support.x)
    return torch.cat(predicted).view_as(batch.query.y), seconds


def _together(net: LoraClassifier, answer: Answer, batch: TaskBatch) -> tuple[Tensor, float]:
    """The classes of all queries, and the CPU seconds of a second call for one task, with pooling of cached texts."""
    one = _part(batch, 0, 1)
    answer.classes(one)
    start = time.process_time()
    answer.classes(one)
    seconds = time.process_time() - start + _pooling(net, one.support.x, one.query.x)
    parts = [_part(batch, n, n + AT_ONCE) for n in range(0, len(batch.seeds), AT_ONCE)]
    return torch.cat([answer.classes(part) for part in parts]), seconds


@torch.no_grad()
def _pooling(net: LoraClassifier, *x: Tensor) -> float:
    """CPU seconds to pool the texts of a task, READ at once, timed on some; 0 if generated pairs read only states."""
    if net.space.extra:
        return 0.0
    texts = torch.cat([t.flatten() for t in x])
    timed = texts[torch.linspace(0, len(texts) - 1, min(len(texts), READ * TIMED)).long()]
    start = time.process_time()
    for part in timed.split(READ):
        net.encoder.tail.pooled(net.states(part))
    return (time.process_time() - start) * len(texts) / len(timed)


def _answers(context: Context, family: TextTasks, variant: Variant, method: WeightGenerator, seed: int) -> dict[str, Answer]:
    """The answers of a variant, by the name of the row."""
    net, name = family.downstream, str(variant.factors["method"])
    if name == PROBE:  # with the ridge that is best on validation tasks
        validation = range(context.recipe.evaluation.validation)
        batches = [family.sample("val", validation, shots=shots) for shots in family.shots]
        probe = partial(_probe, net, way=family.way)
        ridge = max(RIDGES, key=lambda r: _merit([probe(b, ridge=r) for b in batches], batches))
        return {name: Answer(partial(probe, ridge=ridge), deep=False)}

    def weights(part: TaskBatch) -> Tensor:
        return method.generate(net, part.support, part.mask, seed=seed)

    deep = not variant.spec.gradient_free and net.space.extra > 0
    answers = {name: Answer(lambda part: _classes(net, weights(part), part), deep)}
    if variant.spec.proposed:
        answers[f"{name}, {REFINED} steps"] = Answer(_refined(family, weights, seed), deep=True)
    if name == FINE_TUNED and isinstance(method, SupportsFineTuning):

        def long(part: TaskBatch) -> Tensor:
            lr, _, decay = nearest_shots(method.tuned, net, part.support, part.mask)
            start = method.initial(net, part.mask.shape[1])[None]
            return _classes(net, adapt(net, start, part.support, part.mask, LONG, lr, decay, batch=BATCH, seed=seed), part)

        answers[f"{name}, {LONG} steps"] = Answer(long, deep=True, whole=True)
    return answers


def _refined(family: TextTasks, weights: Callable[[TaskBatch], Tensor], seed: int) -> Callable[[TaskBatch], Tensor]:
    """REFINED steps after generation, of rows and pairs or of rows only: what is best on validation tasks of a shot number."""
    rows, whole = family.downstream, family.downstream.with_generated_pairs()

    def stepped(part: TaskBatch, pairs: bool, rate: float) -> Tensor:
        net, start = (whole if pairs else rows), weights(part)
        if net is not rows:
            start = whole.with_default_units(start, whole.space.U)
        mask = part.mask[:, :1].expand(-1, start.shape[1])
        return _classes(net, adapt(net, start, part.support, mask, REFINED, rate, batch=BATCH, seed=seed), part)

    options = [(pairs, rate) for pairs, rates in RATES.items() for rate in rates if pairs or whole is not rows]
    best = {}
    for shots in family.shots:
        few = [_part(family.sample("val", range(CHOOSING), shots=shots), n, n + 1) for n in range(CHOOSING)]
        best[str(shots)] = max(options, key=lambda option: _merit([stepped(b, *option) for b in few], few))
    return lambda part: stepped(part, *nearest_shots(best, rows, part.support, part.mask))


def _merit(predicted: Sequence[Tensor], batches: Sequence[TaskBatch]) -> float:
    return sum(float((p == b.query.y).float().mean()) for p, b in zip(predicted, batches, strict=True))


def _f1(predicted: Tensor, y: Tensor) -> float:
    """Of the last class, mean over tasks."""
    last = y.max()
    hit = ((predicted == last) & (y == last)).sum(1)
    return float((2 * hit / ((predicted == last).sum(1) + (y == last).sum(1)).clamp(min=1)).mean())


def _part(batch: TaskBatch, first: int, end: int) -> TaskBatch:
    support, query = (Examples(e.x[first:end], e.y[first:end]) for e in (batch.support, batch.query))
    return TaskBatch(support, query, batch.mask[first:end], batch.seeds[first:end])


@torch.no_grad()
def _classes(net: LoraClassifier, weights: Tensor, batch: TaskBatch) -> Tensor:
    return net.logits(weights, batch.query.x, batch.mask).argmax(-1)


def _probe(net: LoraClassifier, part: TaskBatch, *, way: int, ridge: float) -> Tensor:
    """Classes by ridge regression on both pooled features of the frozen model."""
    support, query = (net.pooled(x).flatten(2) for x in (part.support.x, part.query.x))
    rows = least_squares_rows(support, part.support.y, way, ridge)
    return (query @ rows[..., :-1].transpose(1, 2) + rows[:, None, :, -1]).argmax(-1)
