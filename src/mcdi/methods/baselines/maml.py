"""MAML on the downstream network: a start from which a few gradient steps on the support set answer the queries (1703.03400).

On a head over frozen features this is ANIL (1909.09157): its inner loop moves the head alone. With a hypernetwork between, the
inner loop moves a code of the weights: that is Meta-Hypernetwork (Zhao et al., Meta-Learning via Hypernetworks, 2020).
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.methods.base import Log, nearest_shots, register_method, silent
from mcdi.methods.baselines.reptile import for_units
from mcdi.methods.episodes import fresh_tasks
from mcdi.methods.meta_training import Batch, MetaTraining, meta_train
from mcdi.networks.base import Network
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.store import Stored
from mcdi.types import Examples


@dataclass(frozen=True)
class MamlSettings:
    """alpha: the inner rate to begin with; it is learnt with the start (Meta-SGD, 1707.09835, with one rate for all weights).
    steps: inner steps in training, five as in the paper; test_steps: what validation tasks choose from. A learner of `training`
    is a task: one level, Adam outside. code: numbers of a unit's code, and width: of the hypernetwork that makes weights of it,
    learnt with the start; code = 0: the weights themselves are moved."""

    alpha: float = 0.1
    steps: int = 5
    test_steps: tuple[int, ...] = (1, 5, 10, 20)
    first_order: bool = False
    code: int = 0
    width: int = 64
    training: MetaTraining = field(
        default_factory=lambda: MetaTraining(meta="none", iterations=1000, inner_steps=1, learners=16, tasks=1, outer_lr=0.01)
    )
    tuned: int = 300

    def __post_init__(self) -> None:
        if self.training.meta != "none":
            raise McdiError("MAML's outer loop is a gradient through its own inner loop: leave training.meta = 'none'")
        if self.alpha <= 0 or min(self.steps, *self.test_steps, self.width) < 1 or self.code < 0:
            raise McdiError(
                f"alpha = {self.alpha} must be positive, steps, test_steps and width = {self.width} at least 1, "
                f"code = {self.code} not negative"
            )


class Learnt(nn.Module):
    """What the inner loop starts from and how fast it goes, and the way from there to weights: (B, U, code) -> (B, U, D)."""

    def __init__(self, start: Tensor, alpha: float, hypernetwork: nn.Module) -> None:
        super().__init__()
        self.start = nn.Parameter(start.clone())
        self.log_rate = nn.Parameter(torch.tensor(alpha).log())
        self.hypernetwork = hypernetwork

    def forward(self, codes: Tensor) -> Tensor:
        return self.hypernetwork(codes)


def descend(
    net: Network,
    codes: Tensor,
    rate: Tensor,
    support: Examples,
    mask: Tensor,
    steps: int,
    *,
    weights: Callable[[Tensor], Tensor] = lambda codes: codes,
    first_order: bool = False,
) -> Tensor:
    """theta <- theta - alpha d loss / d theta on every task's own support set, `steps` times (1703.03400, eq. 1): (B, U, D),
    rate () -> (B, U, D). Differentiable in both, through the gradients too unless `first_order`. With `weights` of codes it is
    codes (B, U, code) that are moved."""
    for _ in range(steps):
        slope = torch.func.grad(lambda c: net.loss(weights(c), support, mask).sum())(codes)
        codes = codes - rate * (slope.detach() if first_order else slope)
    return codes


@register_method(
    "meta-hypernetwork",
    settings=MamlSettings,
    label="Meta-Hypernetwork",
    colour="#3f5b1a",
    marker="d",
    defaults={"code": 32},
    gradient_free=False,
)
@register_method("maml", settings=MamlSettings, label="MAML", colour="#6b8e23", marker="d", gradient_free=False)
class Maml:
    """One start for all tasks, and tuned SGD from it on the support set."""

    def __init__(self, settings: MamlSettings) -> None:
        self.settings = settings
        self.chosen: dict[str, int] = {}
        self.learnt: Learnt | None = None

    def _make(self, start: Tensor) -> Learnt:
        """From theta_0 (U, D), or codes whose hypernetwork answers theta_0 or nearly so."""
        s = self.settings
        if not s.code:
            return Learnt(start, s.alpha, nn.Identity())
        last = nn.Linear(s.width, start.shape[1])
        net = nn.Sequential(nn.Linear(s.code, s.width), nn.SiLU(), last)
        last.bias.data.copy_(start.mean(0))
        return Learnt(torch.randn(len(start), s.code), s.alpha, net)

    def fit(self, family: TaskFamily, data: Stored | None, *, seed: int, log: Log = silent, folder: Path | None = None) -> Self:
        net, s = family.downstream, self.settings
        units = family.sample("train", [0]).mask.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.learnt = learnt = self._make(net.theta0(0, units).expand(units, -1))
        shape = s.training.shape

        def batch_at(step: int) -> Batch:
            tasks = fresh_tasks(family, math.prod(shape), step, seed)
            x, asked = net.inputs(tasks.support.x), net.inputs(tasks.query.x)
            return tuple(c.unflatten(0, shape) for c in (x, tasks.support.y, asked, tasks.query.y, tasks.mask))

        def loss_fn(params: dict[str, Tensor], x: Tensor, y: Tensor, asked: Tensor, answer: Tensor, mask: Tensor) -> Tensor:
            def weights(codes: Tensor) -> Tensor:
                return torch.func.functional_call(learnt, params, (codes,))

            start, rate = params["start"].expand(len(x), -1, -1), params["log_rate"].exp()
            codes = descend(net, start, rate, Examples(x, y), mask, s.steps, weights=weights, first_order=s.first_order)
            return net.loss(weights(codes), Examples(asked, answer), mask).mean()

        meta_train(learnt, loss_fn, batch_at, s.training, log=log, folder=folder)
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
        assert self.learnt is not None
        learnt = self.learnt.to(mask.device)
        start = for_units(net, learnt.start, mask.shape[1]).expand(len(mask), -1, -1)
        return learnt(descend(net, start, learnt.log_rate.exp(), support, mask, steps, weights=learnt))

    def generate(self, net: Network, support: Examples, mask: Tensor, *, seed: int) -> Tensor:
        return self._adapted(net, support, mask, nearest_shots(self.chosen, net, support, mask))

    def config(self) -> dict[str, Any]:
        return {"settings": asdict(self.settings), "chosen": self.chosen}

    def state(self) -> dict[str, Tensor]:
        return {} if self.learnt is None else dict(self.learnt.state_dict())

    def restore(self, config: dict[str, Any], state: dict[str, Tensor]) -> Self:
        self.chosen = {n: int(v) for n, v in config["chosen"].items()}
        start = state["start"]
        size = len(state["hypernetwork.2.bias"]) if self.settings.code else start.shape[1]
        self.learnt = self._make(start.new_zeros(len(start), size))
        self.learnt.load_state_dict(state)
        return self
