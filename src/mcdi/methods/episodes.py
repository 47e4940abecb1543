"""Batches of training tasks: of a trajectory store with new support sets, or fresh ones that no store holds."""

import torch

from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.store import Stored, Trajectories
from mcdi.types import TaskBatch


def stored_tasks(family: TaskFamily, data: Stored, count: int, step: int, g: torch.Generator) -> tuple[Trajectories, TaskBatch]:
    """`count` stored rows that `g` draws, and a new support set for each, of the shot number whose turn the step is."""
    rows = data.rows(torch.randint(len(data), (count,), generator=g))
    shots = family.shots[step % len(family.shots)]
    return rows, family.sample("train", rows.seeds.tolist(), draw=1 + step, shots=shots)


def fresh_tasks(family: TaskFamily, count: int, step: int, seed: int) -> TaskBatch:
    """`count` training tasks that no store holds and no other step sees, of the shot number whose turn the step is."""
    seeds = [seed * 1_000_003 + step * count + j for j in range(count)]
    return family.sample("train", seeds, draw=1 + step, shots=family.shots[step % len(family.shots)])
