"""MAML on the downstream network: a start from which a few gradient steps on the support set answer the queries (1703.03400).

On a head over frozen features this is ANIL (1909.09157): its inner loop moves the head alone.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.methods.base import Log, for_shots, silent
from mcdi.methods.loop import Batch, MetaTraining, meta_train
from mcdi.methods.reptile import for_units
from mcdi.store import Stored
from mcdi.tasks.base import Examples, TaskFamily
from mcdi.tasks.downstream import Network


@dataclass(frozen=True)
class MamlSettings:
    """alpha: the inner rate to begin with; it is learnt with the start (Meta-SGD, 1707.09835, with one rate for all weights).
    steps: inner steps in training, five as in the paper; test_steps: what validation tasks choose from. A learner of `training`
    is a task: one level, Adam outside."""

    alpha: float = 0.1
    steps: int = 5
    test_steps: tuple[int, ...] = (1, 5, 10, 20)
    first_order: bool = False
    training: MetaTraining = field(
        default_factory=lambda: MetaTraining(meta="none", iterations=1000, inner_steps=1, learners=16, tasks=1, outer_lr=0.01)
    )
    tuned: int = 300

    def __post_init__(self) -> None:
        if self.training.meta != "none":
            raise McdiError("MAML's outer loop is a gradient through its own inner loop: leave training.meta = 'none'")
        if self.alpha <= 0 or min(self.steps, *self.test_steps) < 1:
            raise McdiError(f"alpha = {self.alpha} must be positive, steps and test_steps at least 1")


class Learnt(nn.Module):
    def __init__(self, weights: Tensor, alpha: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights.clone())
        self.rate = nn.Parameter(torch.tensor(alpha).log())


def descend(
    net: Network, weights: Tensor, rate: Tensor, support: Examples, mask: Tensor, steps: int, *, first_order: bool = False
) -> Tensor:
    """theta <- theta - alpha d loss / d theta on every task's own support set, `steps` times (1703.03400, eq. 1): (B, U, D),
    rate () -> (B, U, D). Differentiable in both, through the gradients too unless `first_order`."""
    for _ in range(steps):
        slope = torch.func.grad(lambda w: net.loss(w, support, mask).sum())(weights)
        weights = weights - rate * (slope.detach() if first_order else slope)
    return weights


class Maml:
    """One start for all tasks, and tuned SGD from it on the support set."""

    gradient_free = False

    def __init__(self, settings: MamlSettings) -> None:
        self.settings = settings
        self.chosen: dict[str, int] = {}
        self.start, self.rate = torch.empty(0), torch.tensor(settings.alpha)

    def fit(self, family: TaskFamily, data: Stored | None, *, seed: int, log: Log = silent, folder: Path | None = None) -> Self:
        net, s = family.downstream, self.settings
        units = family.sample("train", [0]).mask.shape[1]
        learnt = Learnt(net.theta0(0, units).expand(units, -1), s.alpha)
        shape, count = s.training.shape, math.prod(s.training.shape)

        def batch_at(step: int) -> Batch:
            seeds = [seed * 1_000_003 + step * count + j for j in range(count)]
            tasks = family.sample("train", seeds, draw=1 + step, shots=family.shots[step % len(family.shots)])
            x, asked = net.inputs(tasks.support.x), net.inputs(tasks.query.x)
            return tuple(c.unflatten(0, shape) for c in (x, tasks.support.y, asked, tasks.query.y, tasks.mask))

        def loss_fn(params: dict[str, Tensor], x: Tensor, y: Tensor, asked: Tensor, answer: Tensor, mask: Tensor) -> Tensor:
            start, rate = params["weights"].expand(len(x), -1, -1), params["rate"].exp()
            weights = descend(net, start, rate, Examples(x, y), mask, s.steps, first_order=s.first_order)
            return net.loss(weights, Examples(asked, answer), mask).mean()

        meta_train(learnt, loss_fn, batch_at, s.training, log=log, folder=folder)
        self.start, self.rate = learnt.weights.detach(), learnt.rate.detach().exp()
        for shots in family.shots:
            tasks = family.sample("val", range(s.tuned), shots=shots)
            merits = {}
            for steps in s.test_steps:
                weights = self._adapted(net, tasks.support, tasks.mask, steps)
                merits[steps] = float(net.score(weights, tasks.query, tasks.mask).mean())
            self.chosen[str(shots)] = max(merits, key=lambda n: (merits[n], -n))
        return self

    @torch.no_grad()
    def _adapted(self, net: Network, support: Examples, mask: Tensor, steps: int) -> Tensor:
        start = for_units(net, self.start, mask.shape[1]).to(mask.device).expand(len(mask), -1, -1)
        return descend(net, start, self.rate.to(mask.device), support, mask, steps)

    def generate(self, net: Network, support: Examples, mask: Tensor, *, seed: int) -> Tensor:
        return self._adapted(net, support, mask, for_shots(self.chosen, net, support, mask))

    def config(self) -> dict[str, Any]:
        return {"settings": asdict(self.settings), "chosen": self.chosen}

    def state(self) -> dict[str, Tensor]:
        return {"start": self.start, "rate": self.rate}

    def restore(self, config: dict[str, Any], state: dict[str, Tensor]) -> Self:
        self.chosen = {n: int(v) for n, v in config["chosen"].items()}
        self.start, self.rate = state["start"], state["rate"]
        return self
