"""The trajectory engine: what does a real optimiser do on each of N tasks, all of them at once?

The weights of N tasks are stacked tensors, so one torch.optim optimiser over them is N independent ones; the N gradients
are one batched call. Everything random is decided by (split, seed, epoch): no task depends on its neighbours.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.networks import batched
from mcdi.networks.base import Network
from mcdi.networks.batched import State
from mcdi.trajectories.batches import Augment, Tasks, dropout_keys, epoch_batches, generators, hold_out, noise
from mcdi.types import Examples


@dataclass(frozen=True)
class Optimisation:
    """How one task is trained: `epochs` = M epochs from theta_0, and which k points of the way are kept.

    optimiser: "adam" (the paper's), "adamw", "sgd" (with `momentum`). batch: examples a step (None: all of them).
    schedule: of the rate, over all steps, after `warmup` epochs of linear rise. weight_decay acts on matrices only: a
    decayed bias cannot say how long a class's mean is, which is what a prototype classifier's bias -|c|^2 does.
    sam_rho: radius of sharpness-aware minimisation (2010.01412; 0 = off), sam_adaptive: its radius in units of every
    weight's size (ASAM, 2102.11600). augment: std of Gaussian noise on the inputs, new at every step (0 = off).
    spacing: the k targets lie even in "steps" (the paper's), or even in "loss", where a fast start is not one big leap.
    holdout: share of a task's examples that is kept from training and scored; patience: a task ends at its best epoch
    once its held-out loss has not fallen for so many epochs (0 = never). The paper gives none of these numbers.
    """

    epochs: int = 60
    k: int = 3
    lr: float = 0.05
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: float = 0.9
    batch: int | None = None
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: int = 0
    weight_decay: float = 0.0
    sam_rho: float = 0.0
    sam_adaptive: bool = False
    augment: float = 0.0
    spacing: Literal["steps", "loss"] = "steps"
    holdout: float = 0.0
    patience: int = 0

    def __post_init__(self) -> None:
        for name in ("optimiser", "schedule", "spacing"):
            choices = get_args(Optimisation.__annotations__[name])
            if getattr(self, name) not in choices:
                raise McdiError(f"unknown {name} {getattr(self, name)!r}: choose {', '.join(choices)}")
        if self.lr <= 0 or min(self.weight_decay, self.sam_rho, self.augment, self.warmup, self.patience) < 0:
            raise McdiError(
                f"lr = {self.lr} must be positive; weight_decay = {self.weight_decay}, sam_rho = {self.sam_rho}, "
                f"augment = {self.augment}, warmup = {self.warmup} and patience = {self.patience} not negative"
            )
        if not 1 <= self.k <= self.epochs:
            raise McdiError(f"k = {self.k} snapshots do not fit {self.epochs} epochs: choose 1 <= k <= epochs")
        if not 0 <= self.momentum < 1 or not 0 <= self.holdout < 1 or (self.batch is not None and self.batch < 1):
            raise McdiError(
                f"momentum = {self.momentum} and holdout = {self.holdout} must be in [0, 1), batch = {self.batch} at least 1"
            )
        if self.patience and not self.holdout:
            raise McdiError(f"patience = {self.patience} watches the held-out loss: set holdout, say to 0.2")

    @property
    def dense(self) -> bool:
        """Must every epoch be recorded, because the k kept ones are known only at the end?"""
        return self.spacing == "loss" or self.patience > 0


class Recorded(NamedTuple):
    targets: Tensor  # (N, k, U, D)
    epochs: Tensor  # (N, k) int64, where each target was met
    losses: Tensor  # (N, k) training loss there
    scores: Tensor  # (N, k)


class Point(NamedTuple):
    epoch: int
    weights: Tensor  # (N, U, D)
    losses: Tensor  # (N,)
    held_out: Tensor  # (N,) held-out loss


def optimise(net: Network, theta0: Tensor, tasks: Tasks, how: Optimisation, augment: Augment | None = None) -> Recorded:
    """N optimiser runs from theta0 (U, D), each what a plain loop with torch.optim makes of its task (tested).

    augment: views of the examples instead of `how.augment`'s noise. Raises McdiError when weights stop being finite.
    """
    augment = augment or (noise(how.augment) if how.augment else None)
    tasks, held = hold_out(tasks, how.holdout)
    with batched.training(net.module, list(net.space.spec)):
        net, tasks, held = _cached(net, tasks, held, augment)
        points = list(_run(net, theta0, tasks, held, how, augment))
    kept = _choose(points, how)
    pick = torch.arange(len(tasks.seeds), device=tasks.mask.device)[:, None], kept
    targets = torch.stack([p.weights for p in points], 1)
    if how.dense:
        targets = targets[pick]
    if not bool(torch.isfinite(targets).all()):
        raise McdiError(f"{how.optimiser} at lr = {how.lr} left weights that are not finite: lower the preparation's lr")
    epochs = torch.tensor([p.epoch for p in points], device=kept.device)[kept]
    losses = torch.stack([p.losses for p in points], 1)[pick]
    with torch.no_grad():
        scores = torch.stack([net.score(w, held or tasks.query, tasks.mask) for w in targets.unbind(1)], 1)
    return Recorded(targets, epochs, losses, scores)


def _run(
    net: Network, theta0: Tensor, tasks: Tasks, held: Examples | None, how: Optimisation, augment: Augment | None
) -> Iterator[Point]:
    """The recorded points: the k even epochs, or every one from 0 on where they are chosen afterwards."""
    n, names = len(tasks.seeds), net.space.parameter_names
    state = {m: v.clone() for m, v in net.space.unpack(theta0.to(tasks.mask.device).expand(n, -1, -1)).items()}
    leaves = [state[m] for m in names]
    optimiser, rate = _optimiser(leaves, how), _rates(how, -(-tasks.data.y.shape[1] // (how.batch or tasks.data.y.shape[1])))
    draws = generators(tasks) if augment is not None else []
    wanted = {round(i * how.epochs / how.k) for i in range(1, how.k + 1)}
    step, held_out = 0, []
    if how.dense:
        yield _point(net, 0, state, tasks, held)
    for epoch in range(1, how.epochs + 1):
        for batch in epoch_batches(tasks, how.batch, epoch):
            if augment is not None:
                batch = batch._replace(x=torch.stack([augment(x, g) for x, g in zip(batch.x, draws, strict=True)]))
            for group in optimiser.param_groups:
                group["lr"] = rate[step]
            grads = _gradients(net, state, batch, tasks, 2 * step)
            if how.sam_rho:  # running statistics are those of the first pass: the weights of the second are no state
                grads = _gradients(net, _ascended(state, grads, how), batch, tasks, 2 * step + 1)
            for leaf, name in zip(leaves, names, strict=True):
                leaf.grad = grads[name].contiguous()  # torch's fused optimisers read memory in order, whatever the strides
            optimiser.step()
            step += 1
        if how.dense or epoch in wanted:
            yield (point := _point(net, epoch, state, tasks, held))
            held_out.append(point.held_out)
            # Not before k epochs, whatever the neighbours do: k different targets are needed.
            if how.patience and epoch >= how.k and bool(_stopping(torch.stack(held_out, 1), how.patience)[1].all()):
                return


def _gradients(net: Network, state: State, batch: Examples, tasks: Tasks, passed: int) -> State:
    """passed: the number of the pass through the network, which decides dropout."""
    keys = dropout_keys(tasks, passed) if batched.draws(net.module) else None
    if not batched.one_by_one(state, batch.x):
        return net.gradients(state, batch, tasks.mask, keys)
    each = []
    for n in range(len(tasks.mask)):  # a task at a time, so that only one graph is alive
        one = slice(n, n + 1)
        own, data = {m: v[one] for m, v in state.items()}, Examples(batch.x[one], batch.y[one])
        each.append(net.gradients(own, data, tasks.mask[one], None if keys is None else keys[one]))
    return {m: torch.cat([g[m] for g in each]) for m in each[0]}


def _ascended(state: State, grads: State, how: Optimisation) -> State:
    """w + e(w): e = rho g / |g|, or with T = |w| rho T^2 g / |T g| (adaptive); the norm is a task's own.

    A copy: what the network changes in it, such as running statistics, does not reach `state`.
    """
    scale = {m: state[m].abs() if how.sam_adaptive else torch.ones_like(g) for m, g in grads.items()}
    norm = torch.stack([(scale[m] * g).flatten(1).square().sum(1) for m, g in grads.items()]).sum(0).sqrt().clamp(min=1e-12)
    moved = {m: v.clone() for m, v in state.items()}
    for m, g in grads.items():
        moved[m] += how.sam_rho * scale[m] ** 2 * g / norm.reshape(-1, *[1] * (g.ndim - 1))
    return moved


def _optimiser(leaves: list[Tensor], how: Optimisation) -> torch.optim.Optimizer:
    groups = [{"params": leaves, "weight_decay": 0.0}]
    if how.weight_decay:  # of matrices; one dimension of a leaf is the task
        matrices, rest = [p for p in leaves if p.ndim > 2], [p for p in leaves if p.ndim <= 2]
        groups = [{"params": matrices, "weight_decay": how.weight_decay}] * bool(matrices)
        groups += [{"params": rest, "weight_decay": 0.0}] * bool(rest)
    if how.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=how.lr, momentum=how.momentum, fused=True)
    return (torch.optim.AdamW if how.optimiser == "adamw" else torch.optim.Adam)(groups, lr=how.lr, fused=True)


def _rates(how: Optimisation, steps_an_epoch: int) -> list[float]:
    steps, warm = how.epochs * steps_an_epoch, how.warmup * steps_an_epoch
    done = np.arange(steps) / steps
    shape = {"constant": np.ones(steps), "linear": 1 - done, "cosine": 0.5 + 0.5 * np.cos(np.pi * done)}[how.schedule]
    rise = np.minimum((np.arange(steps) + 1) / warm, 1) if warm else 1.0
    return [float(r) for r in how.lr * shape * rise]


def _cached(
    net: Network, tasks: Tasks, held: Examples | None, augment: Augment | None
) -> tuple[Network, Tasks, Examples | None]:
    """The frozen front of a Sequential is computed once for every example, and the rest is what is trained."""
    front, rest = batched.split_frozen(net.module, list(net.space.spec))
    if front is None or augment is not None or type(net).forward is not Network.forward:
        return net, tasks, held

    def through(examples: Examples) -> Examples:
        with torch.no_grad():
            flat = torch.cat([front(part) for part in examples.x.flatten(0, 1).split(512)])
        return examples._replace(x=flat.reshape(*examples.x.shape[:2], *flat.shape[1:]))

    net = copy.copy(net)
    net.module = rest
    tasks = tasks._replace(data=through(tasks.data), query=through(tasks.query))
    return net, tasks, None if held is None else through(held)


@torch.no_grad()
def _point(net: Network, epoch: int, state: State, tasks: Tasks, held: Examples | None) -> Point:
    """The weights of all tasks and their losses, in evaluation mode."""
    with batched.evaluating(net.module):
        losses = net.losses(state, tasks.data, tasks.mask)
        return Point(epoch, net.space.pack(state), losses, losses if held is None else net.losses(state, held, tasks.mask))


def _choose(points: list[Point], how: Optimisation) -> Tensor:
    """(N, k) places in `points` of each task's targets."""
    n = len(points[0].losses)
    if not how.dense:
        return torch.arange(how.k, device=points[0].losses.device).expand(n, -1)
    losses, held = (torch.stack(column, 1) for column in ([p.losses for p in points], [p.held_out for p in points]))
    last = torch.full((n,), len(points) - 1, device=losses.device)
    if how.patience:
        last = (_stopping(held[:, 1:], how.patience)[0] + 1).clamp(min=how.k)
    part = torch.arange(1, how.k + 1, device=losses.device) / how.k
    if how.spacing == "steps":
        return (part * last[:, None]).round().long()
    # The first epoch at which the loss has come the i-th part of its whole way down.
    lowest = losses.cummin(1).values
    first, final = losses[:, :1], lowest.gather(1, last[:, None])
    reached = (lowest[:, None] <= (first - part * (first - final))[..., None]).long().argmax(-1)
    reached[:, -1] = last
    return reached


def _stopping(held: Tensor, patience: int) -> tuple[Tensor, Tensor]:
    """Where the held-out loss is lowest before it fails to fall `patience` times, and whether it did: (N, R) -> (N,), (N,)."""
    best, where = held[:, 0].clone(), torch.zeros(len(held), dtype=torch.long, device=held.device)
    stopped = torch.zeros_like(where, dtype=torch.bool)
    for r in range(1, held.shape[1]):
        better = (held[:, r] < best) & ~stopped
        best, where = torch.where(better, held[:, r], best), torch.where(better, r, where)
        stopped |= r - where >= patience
    return where, stopped
