"""What is one batch of meta-training, and what does a denoiser pay for on it?"""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mcdi import core
from mcdi.methods.episodes import stored_tasks
from mcdi.methods.meta_training import Batch
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.store import Stored
from mcdi.types import Examples

if TYPE_CHECKING:
    from mcdi.methods.mcdi.method import Diffusion


class Objective:
    """Batches (K, B, tasks, ...) decided by the step alone, and the loss of a base learner on one of them.

    The targets are every (len / k)-th stored one, the last being theta_M; every step draws new support sets for them.
    """

    def __init__(self, method: "Diffusion", family: TaskFamily, data: Stored, stored: int, seed: int) -> None:
        self.method, self.family, self.data, self.seed = method, family, data, seed
        self.stride = stored // method.settings.k
        self.shape = method.settings.training.shape
        # Batches are drawn on the CPU: one seed, any device.
        self.schedule = replace(method.schedule, alpha=method.schedule.alpha.cpu())

    def batch_at(self, step: int) -> Batch:
        """clean, eps (.., U, D), t, i (..), cond (.., U, C), mask (.., U), then what the settings need besides."""
        s, net, space = self.method.settings, self.family.downstream, self.method.space
        assert space is not None
        g = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        n = math.prod(self.shape)
        rows, tasks = stored_tasks(self.family, self.data, n, step, g)
        t, i = core.draw(n, self.schedule, g)
        target = i if s.objective == "local" else torch.randint(1, s.k + 1, (n,), generator=g)
        cond = net.condition(tasks.support, tasks.mask.shape[1])
        clean = space.standardise(rows.targets[torch.arange(n), target * self.stride - 1])
        eps = torch.randn(clean.shape, generator=g)
        if s.drop:
            cond = cond * (torch.rand(n, 1, 1, generator=g) >= s.drop)
        batch: Batch = (clean, eps, t, i, cond, tasks.mask)
        if s.self_condition:
            batch = (*batch, (torch.rand(n, 1, 1, generator=g) < 0.5).to(clean.dtype))
        if s.functional:
            batch = (*batch, net.inputs(tasks.query.x), tasks.query.y)
        return tuple(b.to(self.method.device).reshape(*self.shape, *b.shape[1:]) for b in batch)

    def loss(self, params: core.Params, *batch: Tensor) -> Tensor:
        """Local consistency, or the square of a regression's error, and the functional term."""
        m, s = self.method, self.method.settings
        clean, eps, t, i, cond, mask = batch[:6]
        rest = list(batch[6:])
        if s.objective == "regression":
            x, t = torch.zeros_like(clean), torch.zeros_like(t)
        else:
            x = core.noised(clean, eps, t, i, m.schedule)
        previous = None
        if s.self_condition:  # half of the tasks see the network's first estimate, as a gift (2208.04202)
            first = core.to_x0(m.f(x, t, cond, mask, params), x, t, m.schedule)
            previous = first.detach() * rest.pop(0)
        f = m.f(x, t, cond, mask, params, previous=previous)
        if s.objective == "regression":
            each = (core.to_x0(f, x, t, m.schedule) - clean) ** 2
        else:
            each = core.local_consistency_loss(f, eps, t, i, m.schedule, s.weight)
        weight = mask[..., None].to(x.dtype)
        loss = (each * weight).sum() / (weight.sum() * x.shape[-1])
        if not s.functional:
            return loss
        if m.is_chain:
            # One step without noise. In mid-chain x_t holds theta itself: there the term would only sharpen the
            # estimate, and later steps would stand where training never was.
            x, t = torch.zeros_like(x), torch.zeros_like(t)
            f = m.f(x, t, cond, mask, params)
        assert m.space is not None
        final = m.space.restore(core.to_x0(f, x, t, m.schedule))
        return loss + s.functional * self.family.downstream.loss(final, Examples(*rest), mask).mean()
