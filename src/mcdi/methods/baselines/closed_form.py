"""Heads in closed form, without training: class means, their directions, ridge regression. The baselines that cost nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.methods.base import Log, nearest_shots, register_method, silent
from mcdi.networks.base import Network
from mcdi.networks.heads import Head
from mcdi.networks.support import class_means, prototype_rows
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.store import Stored
from mcdi.types import Examples

TUNING_TASKS = 300


@dataclass(frozen=True)
class ClosedFormSettings:
    """There are none."""


FACTS: dict[str, Any] = {"settings": ClosedFormSettings, "draws_at_random": False, "networks": "heads"}


class ClosedForm:
    """Base class: rows of a head from the support set, and perhaps one parameter out of `grid`, tuned on validation tasks for
    every number of shots. Raises McdiError for networks that are no linear head."""

    name: str
    grid: tuple[float, ...] = ()

    def __init__(self, settings: ClosedFormSettings = ClosedFormSettings()) -> None:
        self.tuned: dict[str, float] = {}

    def rows(self, net: Head, support: Examples, way: int, value: float) -> Tensor:
        """-> (B, way, D). value: the tuned parameter; 1 where nothing is tuned."""
        raise NotImplementedError

    def criterion(self, net: Head, weights: Tensor, query: Examples, mask: Tensor) -> float:
        """The parameter with the largest is kept: accuracy."""
        return float(net.score(weights, query, mask).mean())

    def fit(self, family: TaskFamily, data: Stored | None, *, seed: int, log: Log = silent, folder: Path | None = None) -> Self:
        net = family.downstream
        if not isinstance(net, Head):
            raise McdiError(f"{self.name} exist for linear heads only: leave them out for whole networks")
        for shots in family.shots if self.grid else ():
            tasks = family.sample("val", range(TUNING_TASKS), shots=shots)
            heads = [self._weights(net, tasks.support, tasks.mask, n) for n in self.grid]
            scores = [self.criterion(net, head, tasks.query, tasks.mask) for head in heads]
            self.tuned[str(shots)] = self.grid[scores.index(max(scores))]
            log(len(self.tuned), len(family.shots), {"score": max(scores)})
        return self

    def generate(self, net: Network, support: Examples, mask: Tensor, *, seed: int) -> Tensor:
        assert isinstance(net, Head)
        return self._weights(net, support, mask, nearest_shots(self.tuned, net, support, mask) if self.tuned else 1.0)

    def _weights(self, net: Head, support: Examples, mask: Tensor, value: float) -> Tensor:
        return net.with_default_units(self.rows(net, support, net.classes(mask.shape[1]), value), mask.shape[1])

    def config(self) -> dict[str, Any]:
        return {"settings": {}, "tuned": self.tuned}

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, config: dict[str, Any], state: dict[str, Tensor]) -> Self:
        self.tuned = {n: float(v) for n, v in config["tuned"].items()}
        return self


@register_method("prototypes", label="prototypes", colour="#9c6b4f", marker="P", exportable=True, baseline=True, **FACTS)
class Prototypes(ClosedForm):
    """w = 2 c, b = -|c|^2, c the mean support feature: the logits are minus the squared distances, up to |x|^2.

    Source:
        Snell, Swersky and Zemel, Prototypical Networks for Few-Shot Learning, 1703.05175, eq. 8.
    """

    name = "prototypes"

    def rows(self, net: Head, support: Examples, way: int, value: float) -> Tensor:
        means, _ = class_means(net.frozen_features(support.x), support.y, way)
        return prototype_rows(means)


@register_method("linear-probe", label="linear probe", colour="#c9a227", marker="h", **FACTS)
class LinearProbe(ClosedForm):
    """Ridge regression of the one-hot labels on frozen features, in closed form, its ridge tuned.

    Source:
        Bertinetto et al. (R2-D2), Meta-Learning with Differentiable Closed-Form Solvers, 1805.08136.
    """

    name, grid = "linear probes", (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)

    def rows(self, net: Head, support: Examples, way: int, value: float) -> Tensor:
        return net.closed_form(support, way, value)


@register_method("meta-baseline", label="Meta-Baseline", colour="#1f4e79", marker="p", unit_features=True, **FACTS)
class MetaBaseline(ClosedForm):
    """w = tau c / |c|, b = 0: logits tau cos(x, c), for features of one length, as image embeddings have here. The published
    second stage trains the backbone through them; here that is frozen, and tau, which changes probabilities but no prediction,
    is the most likely one on validation tasks.

    Source:
        Chen et al., Meta-Baseline: Exploring Simple Meta-Learning for Few-Shot Learning, 2003.04390, eq. 1-2.
    """

    name, grid = "heads of cosines", (1.0, 3.0, 5.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0)

    def rows(self, net: Head, support: Examples, way: int, value: float) -> Tensor:
        x = net.frozen_features(support.x)
        lengths = x.norm(dim=-1)
        if bool((lengths.amax(1) > 1.01 * lengths.amin(1)).any()):
            raise McdiError(
                "a linear head has no cosines of features of several lengths: leave meta-baseline out for this network"
            )
        means, _ = class_means(x, support.y, way)
        weight = value * F.normalize(means, dim=-1) / lengths.mean(1)[:, None, None]  # of each task, not of the batch
        return torch.cat([weight, torch.zeros_like(weight[..., :1])], -1)

    def criterion(self, net: Head, weights: Tensor, query: Examples, mask: Tensor) -> float:
        return -float(net.loss(weights, query, mask).mean())
