"""What a denoiser is meta-trained on: its batches of stored targets, and its loss on them."""

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from mcdi import core
from mcdi.methods.episodes import by_learner, fresh_tasks, stored_tasks
from mcdi.methods.mcdi.denoiser import Denoiser
from mcdi.methods.meta_training import Batch
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.store import Stored
from mcdi.types import Examples
from mcdi.utils.random import step_generator
from mcdi.weights import WeightSpace


class DenoisingLoss:
    """Local consistency on stored targets, and the functional term.

    The targets are every (stored / k)-th stored one, the last being theta_M; every step draws new support sets for them.

    Args:
        denoiser: what is trained; its settings decide the loss.
        space: standardises targets.
        family, data: training tasks, and their stored trajectories of `stored` targets each.
        seed: decides every batch, with the step.
    """

    def __init__(
        self, denoiser: Denoiser, space: WeightSpace, family: TaskFamily, data: Stored, stored: int, seed: int, device: str
    ) -> None:
        self.denoiser, self.space, self.family, self.data, self.seed, self.device = denoiser, space, family, data, seed, device
        self.stride = stored // denoiser.settings.k
        self.shape = denoiser.settings.training.shape
        # Batches are drawn on the CPU: one seed, any device.
        self.schedule = replace(denoiser.schedule, alpha=denoiser.schedule.alpha.cpu())

    def batch_at(self, step: int) -> Batch:
        """The batch of a step, (K, B, tasks, ...) each."""
        s, net = self.denoiser.settings, self.family.downstream
        g = step_generator(self.seed, step)
        (k, learners, _), n = self.shape, math.prod(self.shape)
        rows, tasks = stored_tasks(self.family, self.data, n, step, g)
        t, i = core.draw(n, self.schedule, g)
        target = i if s.objective == "local" else torch.randint(1, s.k + 1, (n,), generator=g)
        cond = self.denoiser.condition(net, tasks.support, tasks.mask.shape[1])
        clean = self.space.standardise(rows.targets[torch.arange(n), target * self.stride - 1])
        eps = torch.randn(clean.shape, generator=g)
        batch = by_learner(self.shape, clean=clean, eps=eps, t=t, i=i, cond=cond, mask=tasks.mask)
        if s.functional:
            shape = self.shape
            if s.fresh_tasks:
                shape = k, learners, s.fresh_tasks
                tasks = fresh_tasks(self.family, math.prod(shape), step, self.seed)
                cond = self.denoiser.condition(net, tasks.support, tasks.mask.shape[1])
            parts = {"task_cond": cond, "task_mask": tasks.mask}
            if net.solves_last_layer:
                parts |= {"support_x": net.inputs(tasks.support.x), "support_y": tasks.support.y}
            parts |= {"query_x": net.inputs(tasks.query.x), "query_y": tasks.query.y}
            steps = int(torch.randint(1, s.functional_steps + 1, (), generator=g))
            parts["chain"] = torch.empty(len(cond), steps)  # its size tells a vmapped loss the number of steps
            batch |= by_learner(shape, **parts)
        return {name: part.to(self.device) for name, part in batch.items()}

    def loss(
        self, params: core.Params, clean: Tensor, eps: Tensor, t: Tensor, i: Tensor, cond: Tensor, mask: Tensor, **task: Tensor
    ) -> Tensor:
        """The local consistency loss, or the square of a regression's error, and the functional term: -> ().

        Args:
            params: of the denoiser.
            clean, eps: (B, U, D), standardised targets theta_{i d}, and noise.
            t, i: (B,), times and segments.
            cond, mask: of `Denoiser.condition`; (B, U).
            task: of the functional term: chain (B, steps), whose size counts, task_cond, task_mask, query_x (B, Q, ...),
                query_y (B, Q) and, for networks with a solved last layer, support_x (B, S, ...), support_y (B, S).
        """
        s, schedule, net = self.denoiser.settings, self.denoiser.schedule, self.family.downstream

        def f(x: Tensor, t: core.Time, cond: Tensor, mask: Tensor) -> Tensor:
            response = self.denoiser.response(net, self.space, x, cond)
            return torch.func.functional_call(self.denoiser, params, (x, t, cond, mask, None, response))

        regression = s.objective == "regression"
        x, t = (torch.zeros_like(clean), torch.zeros_like(t)) if regression else (core.noised(clean, eps, t, i, schedule), t)
        estimate = f(x, t, cond, mask)
        if regression:
            each = (core.to_x0(estimate, x, t, schedule) - clean) ** 2
        else:
            each = core.local_consistency_loss(estimate, eps, t, i, schedule, s.weight)
        weight = mask[..., None].to(x.dtype)
        loss = (each * weight).sum() / (weight.sum() * x.shape[-1])
        if not s.functional:
            return loss
        if regression and not s.fresh_tasks:
            answer = core.to_x0(estimate, x, t, schedule)
        else:
            # A chain without noise. At a noised target x_t would hold theta itself: there the term would only sharpen the
            # estimate, and later steps would stand where training never was.
            told, steps = {"cond": task["task_cond"], "mask": task["task_mask"]}, task["chain"].shape[-1]
            start = clean.new_zeros(*task["task_mask"].shape, clean.shape[-1])
            chain = core.sample(partial(f, **told), start, schedule, steps=steps, noise=0.0)
            for step in range(steps):
                with torch.set_grad_enabled(step == steps - 1):
                    _, answer = next(chain)
        answer = self.space.restore(answer)
        if net.solves_last_layer:
            answer = net.solved(answer, Examples(task["support_x"], task["support_y"]))
        query = Examples(task["query_x"], task["query_y"])
        return loss + s.functional * net.loss(answer, query, task["task_mask"]).mean()
