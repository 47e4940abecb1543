"""The examples that each task sees at every step: tasks, mini-batches, views and dropout keys, by (split, seed, epoch)."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mcdi.types import Examples
from mcdi.utils.random import uniform

# An augmentation: the examples x (S, ...) of one task and its generator -> views of them, of the same shape.
Augment = Callable[[Tensor, torch.Generator], Tensor]
BATCHES, VIEWS, DROPS = 101, 102, 103  # parts of the keys of random numbers, distinct from those of the task families


class Tasks(NamedTuple):
    """N tasks of one split, ready to train on."""

    split: str
    seeds: Sequence[int]
    data: Examples  # (N, S, ...) examples to train on
    query: Examples  # (N, Q, ...) examples that are scored at every target
    mask: Tensor  # (N, U)


def epoch_batches(tasks: Tasks, size: int | None, epoch: int) -> Iterator[Examples]:
    """The examples of one epoch, in a different order for each task; the last batch of an epoch may be smaller."""
    total = tasks.data.y.shape[1]
    if size is None or size >= total:
        yield tasks.data
        return
    order = torch.from_numpy(uniform(tasks.split, tasks.seeds, BATCHES, epoch, count=total)).argsort(1)
    rows = torch.arange(len(order))[:, None]
    for part in order.split(size, 1):
        yield Examples(tasks.data.x[rows, part], tasks.data.y[rows, part])


def dropout_keys(tasks: Tasks, step: int) -> Tensor:
    """(N,) int64: the key of each task's dropout at this forward pass."""
    drawn = uniform(tasks.split, tasks.seeds, DROPS, step, count=1)[:, 0]
    return torch.from_numpy((drawn * 2**53).astype(np.int64)).to(tasks.mask.device)


def view_generators(tasks: Tasks) -> list[torch.Generator]:
    """One generator for each task, from which its views are drawn."""
    seeds = (uniform(tasks.split, tasks.seeds, VIEWS, count=1)[:, 0] * 2**53).astype(np.int64)
    return [torch.Generator(tasks.data.x.device).manual_seed(int(s)) for s in seeds]
