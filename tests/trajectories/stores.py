"""Trajectories and stores of random numbers, for the tests of this folder."""

import torch

from mcdi.trajectories.store import Trajectories, TrajectoryStore


def some(n, value=0.0, first=0, **columns):
    """n tasks whose targets are `value`, or drawn at random if that is None."""
    return Trajectories(
        torch.randn(n, 3, 2, 4) if value is None else torch.full((n, 3, 2, 4), value),
        torch.ones(n, 2, dtype=torch.bool),
        torch.arange(first, first + n),
        torch.rand(n, 3),
        torch.rand(n, 3),
        torch.tensor([[20, 40, 60]]).repeat(n, 1),
        columns,
    )


def equal(a, b):
    x, y = a.tensors(), b.tensors()
    return x.keys() == y.keys() and all(x[n].dtype == y[n].dtype and torch.equal(x[n], y[n]) for n in x)


def drawn(folder, sizes, meta=None):
    """A store with shards of these sizes, and what was put in."""
    store, parts = TrajectoryStore.create(folder, meta or {}), []
    for size in sizes:
        first = sum(map(len, parts))
        parts.append(some(size, None, first, classes=torch.randint(9, (size, 2)), trace=torch.rand(size)))
        store.append(parts[-1])
    return store, Trajectories.cat(parts)
