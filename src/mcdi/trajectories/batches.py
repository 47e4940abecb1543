"""Which examples does each task see at each step, in which order and in which view?

Everything here is decided by (split, seed, epoch): a task is the same alone, in a batch, and on any worker.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.types import Examples
from mcdi.utils.random import uniform

# What augmentation is: one task's examples x (S, ...) and its generator -> other views of them, of the same shape.
Augment = Callable[[Tensor, torch.Generator], Tensor]
BATCHES, VIEWS, DROPS, HELD_OUT = 101, 102, 103, 104  # parts of the key of everything random, apart from the families' own


class Tasks(NamedTuple):
    """N tasks of one split, ready to train on."""

    split: str
    seeds: Sequence[int]
    data: Examples  # (N, S, ...): what is trained on
    query: Examples  # scored at every target, unless a share of `data` is held out
    mask: Tensor  # (N, U)


def epoch_batches(tasks: Tasks, size: int | None, epoch: int) -> Iterator[Examples]:
    """The examples of one epoch, in an order of each task's own; the last batch of an epoch may be smaller."""
    total = tasks.data.y.shape[1]
    if size is None or size >= total:
        yield tasks.data
        return
    order = torch.from_numpy(uniform(tasks.split, tasks.seeds, BATCHES, epoch, count=total)).argsort(1)
    rows = torch.arange(len(order))[:, None]
    for part in order.split(size, 1):
        yield Examples(tasks.data.x[rows, part], tasks.data.y[rows, part])


def dropout_keys(tasks: Tasks, step: int) -> Tensor:
    """(N,) int64: what decides each task's dropout at this pass."""
    drawn = uniform(tasks.split, tasks.seeds, DROPS, step, count=1)[:, 0]
    return torch.from_numpy((drawn * 2**53).astype(np.int64)).to(tasks.mask.device)


def generators(tasks: Tasks) -> list[torch.Generator]:
    """One for the views of each task."""
    seeds = (uniform(tasks.split, tasks.seeds, VIEWS, count=1)[:, 0] * 2**53).astype(np.int64)
    return [torch.Generator(tasks.data.x.device).manual_seed(int(s)) for s in seeds]


def noise(std: float) -> Augment:
    return lambda x, generator: x + std * torch.randn(x.shape, generator=generator, device=x.device)


def global_random(transform: Callable[[Tensor], Tensor]) -> Augment:
    """An Augment from a transform that draws from torch's global generator, as torchvision's and kornia's do.

    It is seeded for every call, and the caller's global state is put back.
    """

    def augment(x: Tensor, generator: torch.Generator) -> Tensor:
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return transform(x)

    return augment


def hold_out(tasks: Tasks, share: float) -> tuple[Tasks, Examples | None]:
    """The tasks without a share of their examples, drawn for each, and that share; None for a share of 0."""
    if not share:
        return tasks, None
    total = tasks.data.y.shape[1]
    count = round(share * total)
    if not 1 <= count < total:
        raise McdiError(f"holdout = {share} of {total} examples leaves nothing to hold out or to train on: change it")
    order = torch.from_numpy(uniform(tasks.split, tasks.seeds, HELD_OUT, count=total)).argsort(1)
    rows = torch.arange(len(order))[:, None]
    held, rest = (
        Examples(tasks.data.x[rows, part], tasks.data.y[rows, part]) for part in order.split([count, total - count], 1)
    )
    return tasks._replace(data=rest), held
