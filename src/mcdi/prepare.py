"""Weight preparation: what does a real optimiser do on every task, and where does it stand after each d epochs?

The weights of N tasks are one tensor (N, U, D), so one torch.optim.Adam over it is N independent Adams; the N forward
passes are one batched call. Only SAM's norm is taken per task.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.store import Trajectories, TrajectoryStore
from mcdi.tasks.base import TaskFamily


@dataclass(frozen=True)
class Preparation:
    """How trajectories are made: Adam for `epochs` = M full-batch epochs from one shared Gaussian theta_0, k kept.

    weight_decay: L2 term in Adam's gradient, on matrices only. A decayed bias cannot say how long a class's mean is,
    which is what a prototype classifier's bias -|c|^2 does; it costs heads from several examples 0.1 to 0.2 points.
    sam_rho: radius of sharpness-aware minimisation (2010.01412; 0 = off). augment: std of Gaussian noise added to
    the inputs, new at every epoch (0 = off). The paper gives none of these numbers: they are our choice.
    """

    tasks: int = 4000
    epochs: int = 60
    k: int = 3
    lr: float = 0.05
    weight_decay: float = 0.0
    sam_rho: float = 0.0
    augment: float = 0.0
    theta0_seed: int = 0
    chunk: int = 500

    def __post_init__(self) -> None:
        if self.lr <= 0 or min(self.weight_decay, self.sam_rho, self.augment) < 0 or self.chunk < 1:
            raise McdiError(
                f"lr = {self.lr} must be positive, chunk = {self.chunk} at least 1; weight_decay = {self.weight_decay}, "
                f"sam_rho = {self.sam_rho} and augment = {self.augment} not negative"
            )
        if not 1 <= self.k <= self.epochs:
            raise McdiError(f"k = {self.k} snapshots do not fit {self.epochs} epochs: choose 1 <= k <= epochs")


def trajectories(family: TaskFamily, split: str, seeds: Sequence[int], how: Preparation, device: str = "cpu") -> Trajectories:
    """Adam trajectories of the tasks named by (split, seeds), all at once; targets at round(i M / k), i = 1..k.

    Raises McdiError when weights stop being finite.
    """
    net = family.downstream
    tasks, data = family.sample(split, seeds).to(device), family.training_data(split, seeds).to(device)
    mask, units = tasks.mask, tasks.mask.shape[1]
    weights = net.theta0(how.theta0_seed, units).to(device).repeat(len(seeds), 1, 1).requires_grad_()
    optimiser = torch.optim.Adam([weights], lr=how.lr)
    decay = how.weight_decay * net.space.in_matrices().to(device)
    ends = [round(i * how.epochs / how.k) for i in range(1, how.k + 1)]
    noise = torch.Generator(device).manual_seed(int(seeds[0]))
    targets, scores, losses = [], [], []

    def gradient(at: Tensor) -> Tensor:
        batch = data
        if how.augment:
            jitter = torch.randn(data.x.shape, generator=noise, device=device)
            batch = data._replace(x=data.x + how.augment * jitter)
        return torch.autograd.grad(net.loss(at, batch, mask).sum(), at)[0]

    for epoch in range(1, how.epochs + 1):
        grad = gradient(weights)
        if how.sam_rho:
            norm = grad.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None]
            grad = gradient((weights.detach() + how.sam_rho * grad / norm).requires_grad_())
        weights.grad = grad + decay * weights.detach()
        optimiser.step()
        if epoch in ends:
            with torch.no_grad():
                targets.append(weights.detach().clone())
                scores.append(net.score(weights, tasks.query, mask))
                losses.append(net.loss(weights, data, mask))
    stacked = torch.stack(targets, 1).cpu()
    if not bool(torch.isfinite(stacked).all()):
        raise McdiError(f"Adam at lr = {how.lr} left weights that are not finite: lower the preparation's lr")
    epochs = torch.tensor(ends).repeat(len(seeds), 1)
    return Trajectories(
        stacked, mask.cpu(), tasks.seeds.cpu(), torch.stack(scores, 1).cpu(), torch.stack(losses, 1).cpu(), epochs
    )


def prepare(
    family: TaskFamily,
    folder: Path,
    how: Preparation,
    *,
    split: str = "train",
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TrajectoryStore:
    """Fill the store in `folder` with the trajectories of seeds 0..tasks-1, a chunk a shard; resumes where it stopped."""
    settings = {n: v for n, v in asdict(how).items() if n != "tasks"}
    store = TrajectoryStore.create(
        folder, {"family": family.name, "split": split, "space": family.downstream.space.config(), **settings}
    )
    if len(store) % how.chunk and len(store) < how.tasks:
        raise McdiError(
            f"{folder} ends with a part of a chunk: it was prepared with {len(store)} tasks; delete it to get {how.tasks}"
        )
    progress(len(store), how.tasks)
    if len(store) < how.tasks:
        with store.writer():
            while len(store) < how.tasks:
                seeds = range(len(store), min(len(store) + how.chunk, how.tasks))
                store.append(trajectories(family, split, seeds, how, device))
                progress(len(store), how.tasks)
    return store
