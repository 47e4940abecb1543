"""Measures of a trained method: everything public but `scored`, `by` and `distil` is a `variants.Measure`."""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from mcdi import core
from mcdi.errors import McdiError
from mcdi.experiments.evaluate import distance, milliseconds
from mcdi.experiments.run import Context, learnt_start, read_run
from mcdi.experiments.studies.variants import Measured, Variant, model_folder
from mcdi.methods import WeightGenerator
from mcdi.methods.base import SupportsFineTuning, silent
from mcdi.methods.baselines.finetune import adapt
from mcdi.methods.episodes import by_learner, stored_tasks
from mcdi.methods.mcdi.denoiser import HasDenoiser
from mcdi.methods.meta_training import Batch, MetaTraining, meta_train
from mcdi.methods.sampling import SAMPLERS, Sampling, SupportsSampling
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.prepare import LiveBytes, trajectories
from mcdi.trajectories.store import Stored, TrajectoryStore
from mcdi.types import TaskBatch
from mcdi.utils.files import read_json
from mcdi.utils.random import step_generator
from mcdi.utils.workers import one_thread

G = TypeVar("G", bound=HasDenoiser)
Samplings = Mapping[str, Sampling | None]  # by name; None is the method's own
_Samplings = Mapping[tuple[tuple[str, Any], ...], Sampling | None]  # by factors
_OWN: _Samplings = {(): None}
REFINED = (0, 1, 2, 5, 10, 20, 50)  # Adam steps
RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
FIRST = 600  # test tasks of a slow method
VALIDATED: Samplings = {"validated": None}
NO_FALLBACK, AS_USED = "no fallback", "as used"  # without and with the fallback to ridge regression

# A student starts as its teacher, and has as many batches as a recipe's meta-training, at a third of its rate.
TRAINING = MetaTraining(meta="none", iterations=400, inner_steps=1, learners=1, tasks=96, outer_lr=0.001)
CHAINS = ("ddim", "deterministic")
# Samplers that validation does not choose from: they are measured only. Averages of many are in the study uncertainty.
OTHER_SAMPLERS: Samplings = {
    "best of 4 on the support set": Sampling(samples=4, pick="support loss"),
    "temperature 0.5": Sampling(temperature=0.5),
    "ddpm, global chain": Sampling(chain="global"),
    "ddim, global chain": Sampling(eta=0.0, chain="global"),
    "ddim, one step per segment": Sampling(eta=0.0, steps=3),
}


@torch.no_grad()
def scored(
    context: Context, method: WeightGenerator, batch: TaskBatch, weights: Tensor, *, with_distance: bool
) -> tuple[dict[str, float], Tensor]:
    """The distance to theta_M, of test tasks where the method has a scale for it, and the score of every task."""
    space = method.space if with_distance and isinstance(method, SupportsSampling) else None
    figures = {} if space is None else {"mse": distance(weights, context.reference.targets[:, -1], space)}
    return figures, context.family.downstream.score(weights, batch.query, batch.mask)


def _of_chain(variant: Variant, method: WeightGenerator) -> SupportsSampling:
    """The method, which must sample. Raises McdiError for one that does not."""
    if not isinstance(method, SupportsSampling):
        raise McdiError(f"{variant.method} has no chain to sample: choose a diffusion method, mc-di for instance")
    return method


def accuracy(
    context: Context, variant: Variant, method: WeightGenerator, seed: int, samplings: _Samplings = _OWN, split: str = "test"
) -> list[Measured]:
    """A row for every shot number and every {factors: sampling}; by default as a user would run it, with the sampler
    that validation tasks chose. A slow method is measured on the first tasks. The distance is to weights that the
    run has optimised for the test tasks: there are none of another network or from another start."""
    start = context.recipe.preparation.start
    as_prepared = not variant.own_network and start == read_run(context.folder).preparation.start
    rows, count = [], context.tasks if split == "test" else context.recipe.evaluation.validation
    count = min(count, FIRST) if variant.spec.slow else count
    for shots in context.family.shots:
        batch = context.family.sample(split, range(count), shots=shots)
        for factors, sampling in samplings.items():
            weights = method.generate(context.family.downstream, batch.support, batch.mask, seed=seed, **_extra(sampling))
            figures, score = scored(context, method, batch, weights, with_distance=split == "test" and as_prepared)
            rows.append(Measured({"shots": shots, **dict(factors)}, figures, score))
    return rows


def by(factor: str, samplings: Samplings) -> _Samplings:
    """The samplings as `accuracy` takes them, their names in the column `factor`."""
    return {((factor, name),): sampling for name, sampling in samplings.items()}


# Every sampler, the validated one first; and the validated one, with DDPM and DDIM in T steps.
samplers = partial(accuracy, samplings=by("sampler", {**VALIDATED, **SAMPLERS, **OTHER_SAMPLERS}))
three_samplers = partial(accuracy, samplings=by("sampler", {**VALIDATED, **{n: SAMPLERS[n] for n in ("ddpm", "ddim")}}))


def mixing_weights(context: Context, variant: Variant, method: WeightGenerator, seed: int) -> list[Measured]:
    """The validated mixing weight, with and without the fallback to ridge regression; and one weight for all tasks."""
    own = replace(_of_chain(variant, method).sampling, calibration_quantiles={})
    samplings: dict[str, Sampling | None] = {AS_USED: None, NO_FALLBACK: own}
    samplings |= {str(weight): replace(own, mixing_weight=weight) for weight in (1.0, 0.5, 0.25)}
    return accuracy(context, variant, method, seed, by("mixing weight", samplings))


def ablated(context: Context, variant: Variant, method: WeightGenerator, seed: int) -> list[Measured]:
    """As three_samplers, and the validated sampler on the validation tasks, which decide what is kept."""
    rows = three_samplers(context, variant, method, seed)
    return rows + accuracy(context, variant, method, seed, by("sampler", {"validated, on validation tasks": None}), "val")


def steps(context: Context, variant: Variant, method: WeightGenerator, seed: int) -> list[Measured]:
    """Denoising steps 1..T for DDPM, DDIM and the deterministic chain."""
    most = _of_chain(variant, method).chain_steps(SAMPLERS["ddpm"])
    numbers = [n for n in (1, 2, 3, 5, 7, 10, 15, 20) if n <= most]
    names = ("ddpm", "ddim", "deterministic")
    samplings: _Samplings = {(("sampler", s), ("steps", n)): replace(SAMPLERS[s], steps=n) for s in names for n in numbers}
    return accuracy(context, variant, method, seed, samplings)


def boundaries(context: Context, variant: Variant, method: WeightGenerator, seed: int) -> list[Measured]:
    """Whether a chain passes its local targets: distance to theta_{i d} and loss on all of the task's data, at every e_i."""
    chained, family, net = _of_chain(variant, method), context.family, context.family.downstream
    space, count, k = chained.space, min(context.tasks, 200), context.recipe.preparation.k
    assert space is not None
    targets = context.reference.targets[:count]
    batch, data = family.sample("test", range(count)), family.training_data("test", range(count))
    ends = {round(i * chained.chain_steps(SAMPLERS["ddpm"]) / k): i for i in range(1, k + 1)}
    chain = dict(chained.chain(net, batch.support, batch.mask, seed=seed, sampling=SAMPLERS["ddpm"]))
    rows = []
    for t, i in ends.items():
        weights, target = chain[t], targets[:, i - 1]
        figures = {
            "mse to own target": distance(weights, target, space),
            "mse to theta_M": distance(weights, targets[:, -1], space),
            "loss": float(net.loss(weights, data, batch.mask).mean()),
            "loss at own target": float(net.loss(target, data, batch.mask).mean()),
        }
        rows.append(Measured({"segment": i, "t": t}, figures))
    return rows


def refined(context: Context, variant: Variant, method: WeightGenerator, seed: int) -> list[Measured]:
    """s Adam steps on the support set from what the method gives: the rate is tuned on validation tasks for every s."""
    family, net = context.family, context.family.downstream
    rows = []
    for shots in family.shots:
        val = family.sample("val", range(min(context.tasks, 300)), shots=shots)
        test = family.sample("test", range(context.tasks), shots=shots)
        if isinstance(method, SupportsFineTuning):  # its own start, before any step
            starts = [method.initial(net, b.mask.shape[1]).expand(len(b.mask), -1, -1) for b in (val, test)]
        else:
            starts = [method.generate(net, b.support, b.mask, seed=seed) for b in (val, test)]
        for s in REFINED:
            tried = {lr: adapt(net, starts[0], val.support, val.mask, s, lr) for lr in RATES}
            best = max(RATES, key=lambda lr: float(net.score(tried[lr], val.query, val.mask).mean()))
            weights = adapt(net, starts[1], test.support, test.mask, s, best)
            figures = {"loss": float(net.loss(weights, test.query, test.mask).mean()), "rate": best if s else 0.0}
            rows.append(Measured({"shots": shots, "steps": s}, figures, net.score(weights, test.query, test.mask)))
    return rows


def prepared(context: Context, variant: Variant, method: WeightGenerator, seed: int) -> list[Measured]:
    """Accuracy and what the trajectories cost, measured on 200 tasks, and their sharpness and losses."""
    preparation, theta0 = context.recipe.preparation, learnt_start(context)
    count = min(preparation.tasks, 200)
    start = time.perf_counter()
    trajectories(context.family, "train", range(count), replace(preparation, sharpness=0), theta0=theta0)
    cost = {"preparation ms per task": 1000 * (time.perf_counter() - start) / count}
    parts = TrajectoryStore.open(context.store).parts()
    values = [(p.columns["sharpness"], p.columns["trace"], p.losses[:, -1], p.scores[:, -1]) for p in parts]
    names = ("lambda", "trace", "training loss", "held-out score")
    cost |= {name: float(torch.cat(of_parts).mean()) for name, of_parts in zip(names, zip(*values, strict=True), strict=True)}
    return [row._replace(figures={**cost, **row.figures}) for row in accuracy(context, variant, method, seed)]


def compared(context: Context, variant: Variant, method: WeightGenerator, seed: int) -> list[Measured]:
    """Accuracy and what it costs: one thread's time and peak memory for one task, training without trajectories."""
    rows = []
    training = read_json(model_folder(context, variant, seed) / "training.json")
    learnt = {"training (s)": training["fit_seconds"], "parameters": sum(t.numel() for t in method.state().values())}
    for row in accuracy(context, variant, method, seed):
        call = _call(context, method, 1, row.factors["shots"])
        with one_thread():
            took = milliseconds(call)
            with LiveBytes() as live:
                call()
        rows.append(row._replace(figures={"adaptation (ms)": took, **learnt, "peak (MiB)": live.peak / 2**20}))
    return rows


def _call(
    context: Context, method: WeightGenerator, tasks: int, shots: int, sampling: Sampling | None = None
) -> Callable[[], Tensor]:
    """Generates the weights of the first test tasks."""
    batch = context.family.sample("test", range(tasks), shots=shots)
    return partial(method.generate, context.family.downstream, batch.support, batch.mask, seed=0, **_extra(sampling))


def _extra(sampling: Sampling | None) -> dict[str, Any]:
    """The argument of `generate`, which only methods with a chain take."""
    return {} if sampling is None else {"sampling": sampling}


def latency(context: Context, variant: Variant, method: WeightGenerator, seed: int) -> list[Measured]:
    """Milliseconds of one thread for the weights of 1 and of 256 tasks from features, and the score they reach."""
    samplings: dict[str, Sampling | None] = {"-": None}
    if isinstance(method, SupportsSampling) and method.is_chain:
        numbers = [n for n in (20, 5, 2, 1) if n <= method.chain_steps(SAMPLERS["ddpm"])]
        own = replace(SAMPLERS["deterministic"], mixing_weight=method.sampling.mixing_weight)
        samplings = {AS_USED: None} | {f"{n} steps" if n > 1 else "1 step": replace(own, steps=n) for n in numbers}
    rows = []
    for row in accuracy(context, variant, method, seed, by("sampler", samplings)):
        figures = {}
        for count, repeats in ((1, 30), (256, 5)):
            call = _call(context, method, count, row.factors["shots"], samplings[row.factors["sampler"]])
            with one_thread():
                figures[f"ms, batch {count}"] = milliseconds(call, repeats)
        rows.append(row._replace(figures=figures))
    return rows


def distil(
    teacher: G, family: TaskFamily, data: Stored, sampling: Sampling, *, seed: int, training: MetaTraining = TRAINING
) -> G:
    """A copy of `teacher` whose one step from x_0 is trained to be the teacher's whole chain from the same x_0: the loss is the
    mean square of the difference of the standardised weights."""
    student, net, space = copy.copy(teacher), family.downstream, teacher.space
    student.denoiser = denoiser = copy.deepcopy(teacher.denoiser)
    assert denoiser is not None and space is not None
    start = torch.zeros(training.tasks, dtype=torch.int64)

    def batch_at(step: int) -> Batch:
        g = step_generator(seed, step)
        _, tasks = stored_tasks(family, data, training.tasks, step, g)
        chain = teacher.chain(net, tasks.support, tasks.mask, seed=seed * 1_000_003 + step, sampling=sampling)
        first, last = (space.standardise(weights) for weights in (chain[0][1], chain[-1][1]))
        cond = net.condition(tasks.support, tasks.mask.shape[1])
        return by_learner(training.shape, first=first, last=last, cond=cond, mask=tasks.mask)

    def loss(params: core.Params, first: Tensor, last: Tensor, cond: Tensor, mask: Tensor) -> Tensor:
        f = torch.func.functional_call(denoiser, params, (first, start, cond, mask))
        weight = mask[..., None].to(f.dtype)
        square = (core.to_x0(f, first, start, denoiser.schedule) - last) ** 2
        return (square * weight).sum() / (weight.sum() * f.shape[-1])

    meta_train(denoiser, loss, batch_at, training, log=silent, folder=None)
    return student


def distilled(context: Context, variant: Variant, method: WeightGenerator, seed: int) -> list[Measured]:
    """All steps of the chain, one step, and one step of the student that was trained on all of them."""
    if not isinstance(method, HasDenoiser) or method.denoiser is None:
        raise McdiError(f"{variant.method} has no denoiser to distil: choose a diffusion method, mc-di for instance")
    family, net, rows = context.family, context.family.downstream, []
    data = TrajectoryStore.open(context.store)
    iterations = min(TRAINING.iterations, method.denoiser.settings.training.iterations)  # --quick is quick for a student, too
    for name in CHAINS:
        full, once = SAMPLERS[name], replace(SAMPLERS[name], steps=1)
        student = distil(method, family, data, full, seed=seed, training=replace(TRAINING, iterations=iterations))
        answers = {"all steps": (method, full), "one step": (method, once), "one step, distilled": (student, once)}
        for shots in family.shots:
            batch = family.sample("test", range(context.tasks), shots=shots)
            for answer, (generator, sampling) in answers.items():
                weights = generator.generate(net, batch.support, batch.mask, seed=seed, sampling=sampling)
                figures, score = scored(context, generator, batch, weights, with_distance=True)
                rows.append(Measured({"chain": name, "answer": answer, "shots": shots}, figures, score))
    return rows
