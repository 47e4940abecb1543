"""Optimisation of N tasks at once: the recorded points of N optimiser runs, computed with batched tensors. The weights
of N tasks are one tensor, so one torch.optim optimiser over them is N independent ones; the N gradients are one batched
call. Every random number is decided by (split, seed, epoch): no task depends on the others of its batch."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.networks import batched
from mcdi.networks.base import Network
from mcdi.networks.batched import State
from mcdi.types import Examples
from mcdi.utils.random import uniform
from mcdi.utils.settings import check_fields
from mcdi.utils.tensors import finite
from mcdi.utils.training import cosine_rate

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


@dataclass(frozen=True)
class Optimisation:
    """How one task is trained with Adam from theta_0, and which points of its trajectory are recorded.

    The paper uses Adam, SAM and augmentation and gives none of these numbers.

    Args:
        epochs: M, the number of epochs.
        k: number of local targets, recorded after epochs round(i M / k), i = 1..k.
        lr: learning rate.
        batch: examples in a step (None: all).
        schedule: of the learning rate, over all steps.
        weight_decay: on matrices only; a decayed bias cannot represent the -|c|^2 of a prototype classifier.
        sam_rho: radius of sharpness-aware minimisation (Foret et al., 2010.01412); 0 for none.
        augment: standard deviation of Gaussian noise on the inputs, drawn anew at every step; 0 for none.
    """

    epochs: int = 60
    k: int = 3
    lr: float = 0.05
    batch: int | None = None
    schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: float = 0.0
    sam_rho: float = 0.0
    augment: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.lr <= 0 or min(self.weight_decay, self.sam_rho, self.augment) < 0:
            given = f"weight_decay = {self.weight_decay}, sam_rho = {self.sam_rho} and augment = {self.augment}"
            raise McdiError(f"lr = {self.lr} must be positive; {given} not negative")
        if not 1 <= self.k <= self.epochs:
            raise McdiError(f"k = {self.k} snapshots do not fit {self.epochs} epochs: choose 1 <= k <= epochs")
        if self.batch is not None and self.batch < 1:
            raise McdiError(f"batch = {self.batch} must be at least 1: leave it out for all examples")


class Recorded(NamedTuple):
    """The local targets of N tasks, and what was measured at each."""

    targets: Tensor  # (N, k, U, D)
    epochs: Tensor  # (N, k) int64
    losses: Tensor  # (N, k) training loss
    scores: Tensor  # (N, k) score on the query set


def optimise(net: Network, theta0: Tensor, tasks: Tasks, settings: Optimisation, augment: Augment | None = None) -> Recorded:
    """Train N tasks, each as a plain loop with torch.optim would. theta0: (U, D), the start of every task; augment:
    views of the examples, instead of the noise of `settings.augment`. Raises McdiError when weights are not finite."""
    if augment is None and settings.augment:
        augment = partial(_add_noise, settings.augment)
    with batched.training(net.module, list(net.space.spec)):
        net, tasks = _with_cached_front(net, tasks, augment)
        epochs, weights, losses = zip(*_run(net, theta0, tasks, settings, augment), strict=True)
    targets = torch.stack(weights, 1)
    if not finite(targets):
        raise McdiError(f"Adam at lr = {settings.lr} led to weights that are not finite: lower the preparation's lr")
    with torch.no_grad():
        scores = torch.stack([net.score(w, tasks.query, tasks.mask) for w in targets.unbind(1)], 1)
    repeated = torch.tensor(epochs, device=targets.device).repeat(len(targets), 1)
    return Recorded(targets, repeated, torch.stack(losses, 1), scores)


def _run(
    net: Network, theta0: Tensor, tasks: Tasks, settings: Optimisation, augment: Augment | None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The k recorded points: epoch, weights (N, U, D), and losses (N,) in evaluation mode."""
    names, examples = net.space.parameter_names, tasks.data.y.shape[1]
    start = theta0.to(tasks.mask.device).expand(len(tasks.seeds), -1, -1)
    state = {m: v.clone() for m, v in net.space.unpack(start).items()}
    leaves = [state[m] for m in names]
    # Matrices decay; the first dimension of a leaf is the task.
    kinds = ([p for p in leaves if p.ndim > 2], settings.weight_decay), ([p for p in leaves if p.ndim <= 2], 0.0)
    groups = [{"params": params, "weight_decay": decay} for params, decay in kinds if params]
    optimiser = torch.optim.Adam(groups, lr=settings.lr, fused=True)
    steps = settings.epochs * -(-examples // (settings.batch or examples))
    generators = view_generators(tasks) if augment is not None else []
    recorded = {round(i * settings.epochs / settings.k) for i in range(1, settings.k + 1)}
    step = 0
    for epoch in range(1, settings.epochs + 1):
        for batch in epoch_batches(tasks, settings.batch, epoch):
            if augment is not None:
                batch = batch._replace(x=torch.stack([augment(x, g) for x, g in zip(batch.x, generators, strict=True)]))
            if settings.schedule == "cosine":
                for group in optimiser.param_groups:
                    group["lr"] = cosine_rate(step, steps, settings.lr)
            grads = _gradients(net, state, batch, tasks, 2 * step)
            if settings.sam_rho:  # running statistics are those of the first pass: the second one works on a copy
                grads = _gradients(net, _ascended(state, grads, settings.sam_rho), batch, tasks, 2 * step + 1)
            for leaf, name in zip(leaves, names, strict=True):
                leaf.grad = grads[name].contiguous()  # torch's fused optimisers read memory in order, whatever the strides
            optimiser.step()
            step += 1
        if epoch in recorded:
            with torch.no_grad(), batched.evaluating(net.module):
                weights, losses = net.space.pack(state), net.losses(state, tasks.data, tasks.mask)
            yield epoch, weights, losses


def _add_noise(std: float, x: Tensor, generator: torch.Generator) -> Tensor:
    return x + std * torch.randn(x.shape, generator=generator, device=x.device)


def _gradients(net: Network, state: State, batch: Examples, tasks: Tasks, passed: int) -> State:
    """passed: number of the forward pass, which decides dropout."""
    keys = dropout_keys(tasks, passed) if batched.draws(net.module) else None
    each, count, size = [], len(tasks.mask), batched.tasks_at_once(state, batch.x)
    for some in (slice(n, n + size) for n in range(0, count, size)):
        own, data = {m: v[some] for m, v in state.items()}, Examples(batch.x[some], batch.y[some])
        each.append(net.gradients(own, data, tasks.mask[some], None if keys is None else keys[some]))
    return each[0] if len(each) == 1 else {m: torch.cat([g[m] for g in each]) for m in each[0]}


def _ascended(state: State, grads: State, rho: float) -> State:
    """SAM's w + rho g / |g|, with the norm of each task's own gradient; a copy, which takes the changed running statistics."""
    norm = torch.stack([g.flatten(1).square().sum(1) for g in grads.values()]).sum(0).sqrt().clamp(min=1e-12)
    moved = {m: v.clone() for m, v in state.items()}
    for m, g in grads.items():
        moved[m] += rho * g / norm.reshape(-1, *[1] * (g.ndim - 1))
    return moved


def _with_cached_front(net: Network, tasks: Tasks, augment: Augment | None) -> tuple[Network, Tasks]:
    """The trained rest of a Sequential, on outputs of its frozen front, which are computed once for every example."""
    front, rest = batched.split_frozen(net.module, list(net.space.spec))
    if front is None or augment is not None or type(net).forward is not Network.forward:
        return net, tasks

    def through(examples: Examples) -> Examples:
        with torch.no_grad():
            flat = torch.cat([front(part) for part in examples.x.flatten(0, 1).split(512)])
        return examples._replace(x=flat.reshape(*examples.x.shape[:2], *flat.shape[1:]))

    net = copy.copy(net)
    net.module = rest
    return net, tasks._replace(data=through(tasks.data), query=through(tasks.query))
