"""What is measured of one trained method? Every function here is (context, cell, method, seed) -> rows; see cells.Measure."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mcdi.experiments.evaluate import distance, milliseconds
from mcdi.experiments.studies.variants import Cell, Context, Measured, model_folder
from mcdi.methods import SLOW, WeightGenerator
from mcdi.methods.baselines.finetune import FineTune, adapt
from mcdi.methods.mcdi.method import Diffusion
from mcdi.methods.sampling import SAMPLERS, Sampling
from mcdi.trajectories.memory import LiveBytes
from mcdi.trajectories.prepare import trajectories
from mcdi.trajectories.store import TrajectoryStore
from mcdi.types import TaskBatch
from mcdi.utils.files import read_json
from mcdi.utils.workers import one_thread

Factors = dict[str, Any]
REFINED = (0, 1, 2, 5, 10, 20, 50)
RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
FIRST = 600


@torch.no_grad()
def scored(
    context: Context, method: WeightGenerator, batch: TaskBatch, weights: Tensor, *, known: bool
) -> tuple[dict[str, float], Tensor]:
    """The distance to theta_M, where that is `known` and the method has a scale for it, and the score of every task."""
    space = method.space if known and isinstance(method, Diffusion) else None
    figures = {} if space is None else {"mse": distance(weights, context.reference, space)}
    return figures, context.family.downstream.score(weights, batch.query, batch.mask)


def _each(
    context: Context,
    method: WeightGenerator,
    seed: int,
    ways: Sequence[tuple[Factors, Sampling | None]],
    split: str = "test",
    most: int | None = None,
) -> list[Measured]:
    """A row for every shot number and every way of sampling; None is the method's own. most: so many first tasks alone."""
    rows, count = [], context.tasks if split == "test" else context.recipe.evaluation.validation
    count = min(count, most or count)
    for shots in context.family.shots:
        batch = context.family.sample(split, range(count), shots=shots)
        for factors, how in ways:
            extra: Factors = {} if how is None else {"how": how}
            weights = method.generate(context.family.downstream, batch.support, batch.mask, seed=seed, **extra)
            figures, score = scored(context, method, batch, weights, known=split == "test")
            rows.append(Measured({"shots": shots, **factors}, figures, score))
    return rows


def accuracy(context: Context, cell: Cell, method: WeightGenerator, seed: int) -> list[Measured]:
    """As a user would run it: the sampler that validation tasks chose. What is slow is measured on the first tasks."""
    return _each(context, method, seed, [({}, None)], most=FIRST if cell.method in SLOW else None)


# Ways of sampling that no validation chooses from: they are only measured. Averages of many are in the study uncertainty.
UNUSUAL: dict[str, Sampling] = {
    "best of 4 on the support set": Sampling(samples=4, pick="support loss"),
    "temperature 0.5": Sampling(temperature=0.5),
    "ddpm, usual x0 form": Sampling(chain="global"),
    "ddim, usual x0 form": Sampling(eta=0.0, chain="global"),
    "ddim, a step a segment": Sampling(eta=0.0, steps=3),
}


def samplers(context: Context, cell: Cell, method: WeightGenerator, seed: int) -> list[Measured]:
    """Every way of sampling, the validated one first."""
    ways = {"validated": None, **SAMPLERS, **UNUSUAL}
    return _each(context, method, seed, [({"sampler": n}, how) for n, how in ways.items()])


def shares(context: Context, cell: Cell, method: WeightGenerator, seed: int) -> list[Measured]:
    """How much of a generated head is kept: what validation chose, less for tasks that are doubted, as it is used; the same for
    all tasks; all, half, a quarter."""
    assert isinstance(method, Diffusion)
    never = replace(method.settings.sampling, usual={})
    ways: dict[str, Sampling | None] = {"as it is used": None, "never doubted": never}
    ways |= {str(share): replace(never, share=share) for share in (1.0, 0.5, 0.25)}
    return _each(context, method, seed, [({"share": name}, how) for name, how in ways.items()])


def three_chains(context: Context, cell: Cell, method: WeightGenerator, seed: int) -> list[Measured]:
    """The validated sampler, and the two honest chains of T steps."""
    ways = {"validated": None, "ddpm": SAMPLERS["ddpm"], "ddim": SAMPLERS["ddim"]}
    return _each(context, method, seed, [({"sampler": n}, how) for n, how in ways.items()])


def levered(context: Context, cell: Cell, method: WeightGenerator, seed: int) -> list[Measured]:
    """As three_chains, and the validated sampler on the validation tasks, which decide what is kept. Where a lever allows
    for guidance, also the validated sampler with some."""
    rows = three_chains(context, cell, method, seed)
    rows += _each(context, method, seed, [({"sampler": "validated, on validation tasks"}, None)], "val")
    if isinstance(method, Diffusion) and method.settings.drop:
        guided = {f"validated, guidance {g}": replace(method.settings.sampling, guidance=g) for g in (1.5, 3.0)}
        rows += _each(context, method, seed, [({"sampler": n}, how) for n, how in guided.items()])
    return rows


def steps(context: Context, cell: Cell, method: WeightGenerator, seed: int) -> list[Measured]:
    """Denoising steps 1..T for DDPM, DDIM and the chain without noise from the mean."""
    assert isinstance(method, Diffusion)
    numbers = [n for n in (1, 2, 3, 5, 7, 10, 15, 20) if n <= method.settings.T]
    ways = [(name, n) for name in ("ddpm", "ddim", "cold") for n in numbers]
    return _each(context, method, seed, [({"sampler": s, "steps": n}, replace(SAMPLERS[s], steps=n)) for s, n in ways])


def boundaries(context: Context, cell: Cell, method: WeightGenerator, seed: int) -> list[Measured]:
    """Does a chain pass its local targets? Distance to theta_{i d} and loss on all of the task's data, at every e_i."""
    assert isinstance(method, Diffusion) and method.space is not None
    family, net = context.family, context.family.downstream
    count, k = min(context.tasks, 200), context.recipe.preparation.k
    targets = TrajectoryStore.open(context.folder / "reference").read().targets[:count]
    batch, data = family.sample("test", range(count)), family.training_data("test", range(count))
    ends = {round(i * method.settings.T / k): i for i in range(1, k + 1)}
    rows = []
    for t, weights in method.chain(net, batch.support, batch.mask, seed=seed, how=SAMPLERS["ddpm"]):
        if t in ends:
            i = ends[t]
            figures = {
                "mse to own target": distance(weights, targets[:, i - 1], method.space),
                "mse to theta_M": distance(weights, targets[:, -1], method.space),
                "loss": float(net.loss(weights, data, batch.mask).mean()),
                "loss at own target": float(net.loss(targets[:, i - 1], data, batch.mask).mean()),
            }
            rows.append(Measured({"segment": i, "t": t}, figures))
    return rows


def refined(context: Context, cell: Cell, method: WeightGenerator, seed: int) -> list[Measured]:
    """s Adam steps on the support set from what the method gives: the rate is tuned on validation tasks for every s."""
    family, net = context.family, context.family.downstream
    rows = []
    for shots in family.shots:
        val = family.sample("val", range(min(context.tasks, 300)), shots=shots)
        test = family.sample("test", range(context.tasks), shots=shots)
        starts = [_start(method, context, b, seed) for b in (val, test)]
        for s in REFINED:
            tried = {lr: adapt(net, starts[0], val.support, val.mask, s, lr) for lr in RATES}
            best = max(RATES, key=lambda lr: float(net.score(tried[lr], val.query, val.mask).mean()))
            weights = adapt(net, starts[1], test.support, test.mask, s, best)
            figures = {"loss": float(net.loss(weights, test.query, test.mask).mean()), "rate": best if s else 0.0}
            rows.append(Measured({"shots": shots, "steps": s}, figures, net.score(weights, test.query, test.mask)))
    return rows


def _start(method: WeightGenerator, context: Context, batch: TaskBatch, seed: int) -> Tensor:
    if isinstance(method, FineTune):  # its own start, before any step
        return method.initial(context.family.downstream, batch.mask.shape[1]).expand(len(batch.mask), -1, -1)
    return method.generate(context.family.downstream, batch.support, batch.mask, seed=seed)


def prepared(context: Context, cell: Cell, method: WeightGenerator, seed: int) -> list[Measured]:
    """Accuracy beside what the trajectories cost, measured on 200 tasks here and now, and what they are like."""
    how = context.preparation(cell)
    count = min(how.tasks, 200)
    start = time.perf_counter()
    trajectories(context.family, "train", range(count), replace(how, sharpness=0))
    cost = {"preparation ms a task": 1000 * (time.perf_counter() - start) / count}
    found: dict[str, list[Tensor]] = {"lambda": [], "trace": [], "training loss": [], "held-out score": []}
    for part in TrajectoryStore.open(context.store(cell)).parts():
        values = (part.columns["sharpness"], part.columns["trace"], part.losses[:, -1], part.scores[:, -1])
        for name, value in zip(found, values, strict=True):
            found[name].append(value)
    cost |= {name: float(torch.cat(values).mean()) for name, values in found.items()}
    return [row._replace(figures={**cost, **row.figures}) for row in accuracy(context, cell, method, seed)]


def compared(context: Context, cell: Cell, method: WeightGenerator, seed: int) -> list[Measured]:
    """Accuracy beside what it costs: milliseconds of one thread and MiB at the peak for the weights of one task, features at
    hand; seconds of meta-training and tuning, trajectories left out; numbers that are learnt."""
    rows = accuracy(context, cell, method, seed)
    training = read_json(model_folder(context, cell, seed) / "training.json")
    learnt = {"training (s)": training["fit_seconds"], "parameters": sum(t.numel() for t in method.state().values())}
    for number, row in enumerate(rows):
        one = context.family.sample("test", [0], shots=row.factors["shots"])
        call = partial(method.generate, context.family.downstream, one.support, one.mask, seed=0)
        with one_thread():
            took = milliseconds(call)
            with LiveBytes() as live:
                call()
        figures = {"adaptation (ms)": took, **learnt, "peak (MiB)": live.peak / 2**20}
        rows[number] = row._replace(figures=figures)
    return rows


def latency(context: Context, cell: Cell, method: WeightGenerator, seed: int) -> list[Measured]:
    """Milliseconds of one thread for the weights of 1 and of 256 tasks, features at hand, and the score they reach."""
    family, net = context.family, context.family.downstream
    ways: dict[str, Sampling | None] = {"-": None}
    if isinstance(method, Diffusion) and method.is_chain:
        numbers = [n for n in (20, 5, 2, 1) if n <= method.settings.T]
        cold = replace(SAMPLERS["cold"], share=method.settings.sampling.share)
        ways = {"as it is used": None} | {f"{n} steps" if n > 1 else "1 step": replace(cold, steps=n) for n in numbers}
    rows = _each(context, method, seed, [({"sampler": n}, how) for n, how in ways.items()])
    for number, row in enumerate(rows):
        how = ways[row.factors["sampler"]]
        extra: Factors = {} if how is None else {"how": how}
        figures = {}
        for count in (1, 256):
            few = family.sample("test", range(count), shots=row.factors["shots"])
            call = partial(method.generate, net, few.support, few.mask, seed=0, **extra)
            with one_thread():
                figures[f"ms, batch {count}"] = milliseconds(call, repeats=30 if count == 1 else 5)
        rows[number] = row._replace(figures=figures)
    return rows
