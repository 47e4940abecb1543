"""Adam on the support set: the reference of generated weights for accuracy and for time."""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.methods.base import Log, nearest_shots, register_method, silent
from mcdi.networks.base import Network
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.store import Stored
from mcdi.types import Examples
from mcdi.utils.settings import check_number


def _batches(support: Examples, size: int | None, seed: int) -> Iterator[Examples]:
    """Epoch after epoch, in one order for all tasks, so that a task does not depend on the others of its batch. The last of an
    epoch may be smaller."""
    total, g = support.y.shape[1], torch.Generator().manual_seed(seed)
    while True:
        if size is None or size >= total:
            yield support
        else:
            parts = torch.randperm(total, generator=g).split(size)
            yield from (Examples(support.x[:, part], support.y[:, part]) for part in parts)


def adam_path(
    net: Network, start: Tensor, support: Examples, mask: Tensor, lr: float, decay: float, batch: int | None, seed: int
) -> Iterator[Tensor]:
    """Adam on every task's own support set, (B, U, D) after each step, without end."""
    w = start.detach().clone().requires_grad_()
    optimiser = torch.optim.Adam([w], lr=lr, weight_decay=decay)
    for examples in _batches(support, batch, seed):
        with torch.enable_grad():
            w.grad = torch.autograd.grad(net.loss(w, examples, mask).sum(), w)[0]
        optimiser.step()
        yield w.detach()


def adapt(
    net: Network,
    weights: Tensor,
    support: Examples,
    mask: Tensor,
    steps: int,
    lr: float,
    decay: float = 0.0,
    *,
    batch: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Adam of every task on its own support set, from weights (B, U, D) to those after the steps.

    Args:
        net, support, mask: the downstream network, x (B, S, ...) and y (B, S), and which units exist, (B, U).
        steps, lr, decay: of Adam.
        batch, seed: examples a step, None for all, and the seed of their order.

    Raises:
        McdiError: a rate that is not positive, or above 1e6, with which weights overflow; or no number of steps.
    """
    check_number(int, steps=steps)
    check_number(float, lr=lr, decay=decay)
    if steps < 0 or not 0 < lr <= 1e6:
        raise McdiError(f"steps = {steps} must not be negative, and lr = {lr} must be positive and at most 1e6")
    path = adam_path(net, weights, support, mask, lr, decay, batch, seed)
    return next(itertools.islice(path, steps - 1, None)).clone() if steps else weights


@dataclass(frozen=True)
class FineTuneSettings:
    """The grid that `fit` tunes on validation tasks: Adam's rate, steps and decay. batch: examples a step (None: all)."""

    lrs: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)
    steps: tuple[int, ...] = (5, 10, 20, 50, 100, 200)
    decays: tuple[float, ...] = (0.0, 0.01)
    tasks: int = 300
    batch: int | None = None

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise McdiError(f"batch = {self.batch} examples a step: choose at least 1, or none for all of them")


_FACTS: dict[str, Any] = {"draws_at_random": False, "gradient_free": False, "baseline": True}


@register_method("adam", settings=FineTuneSettings, label="Adam", colour="#d1495b", marker="v", **_FACTS)
class FineTune:
    """Adam on the support set from theta_0, the rate, steps and decay tuned on validation classes for every shot number."""

    def __init__(self, settings: FineTuneSettings) -> None:
        self.settings = settings
        self.tuned: dict[str, tuple[float, int, float]] = {}  # (lr, steps, decay) by number of shots
        self.start: Tensor | None = None  # (1 or U, D); theta_0 by default

    def initial(self, net: Network, units: int) -> Tensor:
        return net.theta0(0, units)

    def fit(self, family: TaskFamily, data: Stored | None, *, seed: int, log: Log = silent, folder: Path | None = None) -> Self:
        """Tune on the validation split: the best mean query score wins, ties go to fewer steps."""
        s, net = self.settings, family.downstream
        trials = list(itertools.product(s.lrs, s.decays))
        for position, shots in enumerate(family.shots):
            tasks = family.sample("val", range(s.tasks), shots=shots)
            best = (-1.0, (s.lrs[0], 1, 0.0))
            for number, (lr, decay) in enumerate(trials):
                path = adam_path(net, self._start(net, tasks.mask), tasks.support, tasks.mask, lr, decay, s.batch, seed)
                for steps, weights in enumerate(itertools.islice(path, max(s.steps)), 1):
                    score = float(net.score(weights, tasks.query, tasks.mask).mean()) if steps in s.steps else -1.0
                    if score > best[0] + 1e-9:
                        best = (score, (lr, steps, decay))
                log(position * len(trials) + number + 1, len(trials) * len(family.shots), {"score": best[0]})
            self.tuned[str(shots)] = best[1]
        return self

    def _start(self, net: Network, mask: Tensor) -> Tensor:
        return self.initial(net, mask.shape[1]).to(mask.device).expand(len(mask), -1, -1).clone()

    def generate(self, net: Network, support: Examples, mask: Tensor, *, seed: int) -> Tensor:
        lr, steps, decay = nearest_shots(self.tuned, net, support, mask)
        return adapt(net, self._start(net, mask), support, mask, steps, lr, decay, batch=self.settings.batch, seed=seed)

    def config(self) -> dict[str, Any]:
        return {"settings": asdict(self.settings), "tuned": self.tuned}

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, config: dict[str, Any], state: dict[str, Tensor]) -> Self:
        self.tuned = {n: (float(v[0]), int(v[1]), float(v[2])) for n, v in config["tuned"].items()}
        return self
