"""MAML on the downstream network: a meta-learnt start of a few gradient steps on the support set.

On a head over frozen features this is ANIL (1909.09157), whose inner loop moves the head only.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from mcdi.core import Params
from mcdi.errors import McdiError
from mcdi.methods.base import Log, nearest_shots, register_method, silent
from mcdi.methods.episodes import fresh_batch
from mcdi.methods.meta_training import Batch, MetaTraining, meta_train
from mcdi.networks.base import Network
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.store import Stored
from mcdi.types import Examples


@dataclass(frozen=True)
class MamlSettings:
    """alpha: the initial inner rate; it is learnt with the start (Meta-SGD, 1707.09835, with one rate for all weights).
    steps: inner steps in training, five as in the paper; test_steps: the candidates, compared on `tuning_tasks` validation
    tasks. A learner of `training` is a task: one level, Adam outside."""

    alpha: float = 0.1
    steps: int = 5
    test_steps: tuple[int, ...] = (1, 5, 10, 20)
    training: MetaTraining = MetaTraining(meta="none", iterations=1000, inner_steps=1, learners=16, tasks=1, outer_lr=0.01)
    tuning_tasks: int = 300
    renamed: ClassVar[Mapping[str, str]] = {"tuned": "tuning_tasks"}

    def __post_init__(self) -> None:
        if self.training.meta != "none":
            raise McdiError("MAML's outer loop is a gradient through its own inner loop: leave training.meta = 'none'")
        if self.alpha <= 0 or min(self.steps, *self.test_steps) < 1:
            raise McdiError(f"alpha = {self.alpha} must be positive, steps and test_steps at least 1")


class MetaParameters(nn.Module):
    """The start and the rate of the inner loop, and the map from what it moves to weights: (B, U, code) -> (B, U, D)."""

    def __init__(self, start: Tensor, alpha: float, hypernetwork: nn.Module) -> None:
        super().__init__()
        self.start = nn.Parameter(start.clone())
        self.log_rate = nn.Parameter(torch.tensor(alpha).log())
        self.hypernetwork = hypernetwork

    def forward(self, codes: Tensor) -> Tensor:
        return self.hypernetwork(codes)


def inner_steps(
    net: Network, codes: Tensor, rate: Tensor, support: Examples, mask: Tensor, steps: int, weights: Callable[[Tensor], Tensor]
) -> Tensor:
    """Gradient steps of every task on its own support set (1703.03400, eq. 1), differentiable in the start and the rate: codes
    (B, U, code), rate () -> (B, U, code). `weights` maps codes to weights."""
    for _ in range(steps):
        codes = codes - rate * torch.func.grad(lambda c: net.loss(weights(c), support, mask).sum())(codes)
    return codes


@register_method("maml", settings=MamlSettings, label="MAML", colour="#6b8e23", marker="d", gradient_free=False)
class Maml:
    """One start for all tasks, and SGD from it on the support set, its number of steps tuned on validation tasks.

    Source:
        Finn, Abbeel and Levine, Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, 1703.03400.
    """

    def __init__(self, settings: MamlSettings) -> None:
        self.settings = settings
        self.tuned: dict[str, int] = {}  # steps by number of shots
        self.meta: MetaParameters | None = None
        self.size = 0  # D

    def _make_meta(self, theta0: Tensor) -> MetaParameters:
        return MetaParameters(theta0, self.settings.alpha, nn.Identity())

    def fit(self, family: TaskFamily, data: Stored | None, *, seed: int, log: Log = silent, folder: Path | None = None) -> Self:
        net, s = family.downstream, self.settings
        units, self.size = family.sample("train", [0]).mask.shape[1], net.space.D
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.meta = meta = self._make_meta(net.theta0(0, units).expand(units, -1))

        def batch_at(step: int) -> Batch:
            return fresh_batch(family, s.training.shape, step, seed)

        def loss_fn(params: Params, x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor, mask: Tensor) -> Tensor:
            weights = partial(torch.func.functional_call, meta, params)
            start, rate = params["start"].expand(len(mask), -1, -1), params["log_rate"].exp()
            codes = inner_steps(net, start, rate, Examples(x, y), mask, s.steps, weights)
            return net.loss(weights(codes), Examples(query_x, query_y), mask).mean()

        meta_train(meta, loss_fn, batch_at, s.training, log=log, folder=folder)
        for shots in family.shots:
            tasks = family.sample("val", range(s.tuning_tasks), shots=shots)
            adapted = {n: self._adapted(net, tasks.support, tasks.mask, n) for n in s.test_steps}
            scores = {n: float(net.score(weights, tasks.query, tasks.mask).mean()) for n, weights in adapted.items()}
            self.tuned[str(shots)] = max(scores, key=lambda n: (scores[n], -n))
        return self

    @torch.no_grad()
    def _adapted(self, net: Network, support: Examples, mask: Tensor, steps: int) -> Tensor:
        assert self.meta is not None
        meta = self.meta.to(mask.device)
        start = net.space.for_units(meta.start, mask.shape[1]).expand(len(mask), -1, -1)
        return meta(inner_steps(net, start, meta.log_rate.exp(), support, mask, steps, meta))

    def generate(self, net: Network, support: Examples, mask: Tensor, *, seed: int) -> Tensor:
        return self._adapted(net, support, mask, nearest_shots(self.tuned, net, support, mask))

    def config(self) -> dict[str, Any]:
        return {"settings": asdict(self.settings), "tuned": self.tuned, "size": self.size}

    def state(self) -> dict[str, Tensor]:
        return {} if self.meta is None else dict(self.meta.state_dict())

    def restore(self, config: dict[str, Any], state: dict[str, Tensor]) -> Self:
        self.tuned, self.size = {n: int(v) for n, v in config["tuned"].items()}, int(config["size"])
        self.meta = self._make_meta(torch.zeros(len(state["start"]), self.size))
        self.meta.load_state_dict(state)
        return self
