"""Can one step be taught what a chain of T answers? Distillation, measured: a study's question, and no way to train."""

import copy
from dataclasses import replace

import torch
from torch import Tensor

from mcdi import core
from mcdi.experiments.studies.measures import scored
from mcdi.experiments.studies.variants import Cell, Context, Measured
from mcdi.methods import WeightGenerator
from mcdi.methods.base import silent
from mcdi.methods.episodes import stored_tasks
from mcdi.methods.mcdi.method import Diffusion
from mcdi.methods.meta_training import Batch, MetaTraining, meta_train
from mcdi.methods.sampling import SAMPLERS, Sampling
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.store import Stored, TrajectoryStore

# The student starts as its teacher, and has as many batches as a recipe's meta-training, at a third of its rate.
TRAINING = MetaTraining(meta="none", iterations=400, inner_steps=1, learners=1, tasks=96, outer_lr=0.001)
TAUGHT = {"ddim, from noise": SAMPLERS["ddim"], "without noise": SAMPLERS["cold"]}


def distil(
    teacher: Diffusion, family: TaskFamily, data: Stored, how: Sampling, *, seed: int, training: MetaTraining = TRAINING
) -> Diffusion:
    """A copy of `teacher` whose one step from x_0 is trained to be the teacher's `how` from the same x_0, for the training
    tasks and support sets of meta-training: the mean square of the difference of the standardised weights."""
    student = copy.copy(teacher)
    student.net = copy.deepcopy(teacher.net)
    net, space = family.downstream, teacher.space
    assert student.net is not None and space is not None
    start = torch.zeros(training.tasks, dtype=torch.int64)

    def batch_at(step: int) -> Batch:
        g = torch.Generator().manual_seed(seed * 1_000_003 + step)
        _, tasks = stored_tasks(family, data, training.tasks, step, g)
        chain = teacher.chain(net, tasks.support, tasks.mask, seed=seed * 1_000_003 + step, how=how)
        first, last = (space.standardise(weights) for weights in (chain[0][1], chain[-1][1]))
        batch = (first, last, net.condition(tasks.support, tasks.mask.shape[1]), tasks.mask)
        return tuple(b.unflatten(0, (*training.shape[:2], -1)) for b in batch)

    def loss(params: core.Params, first: Tensor, last: Tensor, cond: Tensor, mask: Tensor) -> Tensor:
        x0 = core.to_x0(student.f(first, start, cond, mask, params), first, start, student.schedule)
        weight = mask[..., None].to(x0.dtype)
        return ((x0 - last) ** 2 * weight).sum() / (weight.sum() * x0.shape[-1])

    meta_train(student.net, loss, batch_at, training, log=silent, folder=None)
    return student


def distilled(context: Context, cell: Cell, method: WeightGenerator, seed: int) -> list[Measured]:
    """All steps of the chain, one step, and one step of the student that was taught by all of them."""
    assert isinstance(method, Diffusion)
    family, net, rows = context.family, context.family.downstream, []
    data = TrajectoryStore.open(context.store(cell))
    iterations = min(TRAINING.iterations, method.settings.training.iterations)  # --quick is quick here too
    for name, how in TAUGHT.items():
        student = distil(method, family, data, how, seed=seed, training=replace(TRAINING, iterations=iterations))
        once = replace(how, steps=1)
        answers = {"all steps": (method, how), "one step": (method, once), "one step, taught by all": (student, once)}
        for shots in family.shots:
            batch = family.sample("test", range(context.tasks), shots=shots)
            for answer, (generator, way) in answers.items():
                weights = generator.generate(net, batch.support, batch.mask, seed=seed, how=way)
                figures, score = scored(context, generator, batch, weights, known=True)
                rows.append(Measured({"chain": name, "answer": answer, "shots": shots}, figures, score))
    return rows
