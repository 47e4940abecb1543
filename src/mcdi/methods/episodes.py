"""Batches of training tasks: rows of a trajectory store with new support sets, or new tasks that no store holds."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mcdi.methods.meta_training import Batch
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.store import Stored, Trajectories
from mcdi.types import TaskBatch


def stored_tasks(family: TaskFamily, data: Stored, count: int, step: int, g: torch.Generator) -> tuple[Trajectories, TaskBatch]:
    """`count` stored rows that `g` draws, with a new support set for each; `step` decides the set and its number of shots."""
    rows = data.rows(torch.randint(len(data), (count,), generator=g))
    shots = family.shots[step % len(family.shots)]
    return rows, family.sample("train", rows.seeds.tolist(), draw=1 + step, shots=shots)


def fresh_tasks(family: TaskFamily, count: int, step: int, seed: int) -> TaskBatch:
    """`count` training tasks that no store holds and no other step draws; `step` decides their number of shots."""
    seeds = [seed * 1_000_003 + step * count + j for j in range(count)]
    return family.sample("train", seeds, draw=1 + step, shots=family.shots[step % len(family.shots)])


def by_learner(shape: Sequence[int], **batch: Tensor) -> Batch:
    """A batch of tensors (K * B * tasks, ...) as (K, B, tasks, ...), see `MetaTraining.shape`."""
    return {name: part.unflatten(0, shape) for name, part in batch.items()}


def fresh_batch(family: TaskFamily, shape: Sequence[int], step: int, seed: int) -> Batch:
    """Fresh tasks for a loss of queries: x, y, mask, query_x and query_y, see `MetaTraining.shape`."""
    support, query, mask, _ = fresh_tasks(family, math.prod(shape), step, seed)
    inputs = family.downstream.inputs
    queries = {"query_x": inputs(query.x), "query_y": query.y}
    return by_learner(shape, x=inputs(support.x), y=support.y, mask=mask, **queries)
