"""Distillation: one step of a student is trained to answer what all steps of a chain answer. Only this study trains so."""

import copy
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from mcdi import core
from mcdi.errors import McdiError
from mcdi.experiments.studies.measures import scored
from mcdi.experiments.studies.variants import Context, Measured, Variant
from mcdi.methods import WeightGenerator
from mcdi.methods.base import silent
from mcdi.methods.episodes import by_learner, stored_tasks
from mcdi.methods.mcdi.denoiser import HasDenoiser
from mcdi.methods.meta_training import Batch, MetaTraining, meta_train
from mcdi.methods.sampling import SAMPLERS, Sampling
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.store import Stored, TrajectoryStore

G = TypeVar("G", bound=HasDenoiser)

# The student starts as its teacher, and has as many batches as a recipe's meta-training, at a third of its rate.
TRAINING = MetaTraining(meta="none", iterations=400, inner_steps=1, learners=1, tasks=96, outer_lr=0.001)
CHAINS = ("ddim", "deterministic")


def distil(
    teacher: G, family: TaskFamily, data: Stored, sampling: Sampling, *, seed: int, training: MetaTraining = TRAINING
) -> G:
    """A copy of `teacher` whose one step from x_0 is trained to be the teacher's whole chain from the same x_0.

    Args:
        teacher: trained; it stays as it is.
        family, data: the training tasks and support sets of meta-training.
        sampling: of the teacher's chain.
        seed: decides batches and noise.
        training: of the student; the loss is the mean square of the difference of the standardised weights.
    """
    student, net, space = copy.copy(teacher), family.downstream, teacher.space
    student.denoiser = denoiser = copy.deepcopy(teacher.denoiser)
    assert denoiser is not None and space is not None
    start = torch.zeros(training.tasks, dtype=torch.int64)

    def batch_at(step: int) -> Batch:
        g = torch.Generator().manual_seed(seed * 1_000_003 + step)
        _, tasks = stored_tasks(family, data, training.tasks, step, g)
        chain = teacher.chain(net, tasks.support, tasks.mask, seed=seed * 1_000_003 + step, sampling=sampling)
        first, last = (space.standardise(weights) for weights in (chain[0][1], chain[-1][1]))
        cond = net.condition(tasks.support, tasks.mask.shape[1])
        return by_learner(training.shape, first=first, last=last, cond=cond, mask=tasks.mask)

    def loss(params: core.Params, first: Tensor, last: Tensor, cond: Tensor, mask: Tensor) -> Tensor:
        f = torch.func.functional_call(denoiser, params, (first, start, cond, mask))
        weight = mask[..., None].to(first.dtype)
        square = (core.to_x0(f, first, start, denoiser.schedule) - last) ** 2
        return (square * weight).sum() / (weight.sum() * first.shape[-1])

    meta_train(denoiser, loss, batch_at, training, log=silent, folder=None)
    return student


def distilled(context: Context, variant: Variant, method: WeightGenerator, seed: int) -> list[Measured]:
    """All steps of the chain, one step, and one step of the student that was trained on all of them."""
    if not isinstance(method, HasDenoiser) or method.denoiser is None:
        raise McdiError(f"{variant.method} has no denoiser to distil: choose a diffusion method, mc-di for instance")
    family, net, rows = context.family, context.family.downstream, []
    data = TrajectoryStore.open(context.store(variant))
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
