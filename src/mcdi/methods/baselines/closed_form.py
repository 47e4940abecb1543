"""Heads that a formula gives, without training: class means, their directions, ridge regression. The honest yardsticks."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.methods.base import Log, nearest_shots, register_method, silent
from mcdi.networks.base import Network
from mcdi.networks.heads import Head
from mcdi.networks.support import class_means, prototype_rows
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.store import Stored
from mcdi.types import Examples

TUNED = 300  # validation tasks


@dataclass(frozen=True)
class ClosedFormSettings:
    """What the one number of such a head is chosen from."""

    grid: tuple[float, ...] = ()


class ClosedForm:
    """What they share: rows of a head out of the support set, and perhaps one number, chosen on validation tasks for every
    shot number. Raises McdiError for networks that have no head alone."""

    name: str
    number = ""  # what it is called, where there is one

    def __init__(self, settings: ClosedFormSettings = ClosedFormSettings()) -> None:
        if bool(self.number) != bool(settings.grid) or min(settings.grid, default=1.0) <= 0:
            need = f"a grid of {self.number}s above 0" if self.number else "nothing to choose"
            raise McdiError(f"grid = {list(settings.grid)}: {self.name} have {need}")
        self.settings, self.chosen = settings, dict[str, float]()

    def rows(self, net: Head, support: Examples, way: int, number: float) -> Tensor:
        """-> (B, way, D)."""
        raise NotImplementedError

    def merit(self, net: Head, weights: Tensor, query: Examples, mask: Tensor) -> float:
        """What the number is chosen by: accuracy."""
        return float(net.score(weights, query, mask).mean())

    def fit(self, family: TaskFamily, data: Stored | None, *, seed: int, log: Log = silent, folder: Path | None = None) -> Self:
        net = family.downstream
        if not isinstance(net, Head):
            raise McdiError(f"{self.name} exist for linear heads only: leave them out for whole networks")
        grid = self.settings.grid
        for shots in family.shots if grid else ():
            tasks = family.sample("val", range(TUNED), shots=shots)
            heads = [self._weights(net, tasks.support, tasks.mask, n) for n in grid]
            merits = [self.merit(net, head, tasks.query, tasks.mask) for head in heads]
            self.chosen[str(shots)] = grid[merits.index(max(merits))]
            log(len(self.chosen), len(family.shots), {"score": max(merits)})
        return self

    def generate(self, net: Network, support: Examples, mask: Tensor, *, seed: int) -> Tensor:
        assert isinstance(net, Head)
        return self._weights(net, support, mask, nearest_shots(self.chosen, net, support, mask) if self.chosen else 0.0)

    def _weights(self, net: Head, support: Examples, mask: Tensor, number: float) -> Tensor:
        return net.with_default_units(self.rows(net, support, net.classes(mask.shape[1]), number), mask.shape[1])

    def config(self) -> dict[str, Any]:
        return {"settings": asdict(self.settings), "chosen": self.chosen}

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, config: dict[str, Any], state: dict[str, Tensor]) -> Self:
        self.chosen = {n: float(v) for n, v in config.get("chosen", {}).items()}  # prototypes choose nothing
        return self


@register_method(
    "prototypes",
    settings=ClosedFormSettings,
    label="prototypes",
    colour="#9c6b4f",
    marker="P",
    exportable=True,
    draws_at_random=False,
    baseline=True,
    networks="heads",
)
class Prototypes(ClosedForm):
    """w = 2 c, b = -|c|^2, c the mean support feature: the logits are minus the squared distances, up to |x|^2 (1703.05175)."""

    name = "prototypes"

    def rows(self, net: Head, support: Examples, way: int, number: float) -> Tensor:
        means, _ = class_means(net.frozen_features(support.x), support.y, way)
        return prototype_rows(means)


@register_method(
    "linear-probe",
    settings=ClosedFormSettings,
    label="linear probe",
    colour="#c9a227",
    marker="h",
    defaults={"grid": (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)},
    draws_at_random=False,
    networks="heads",
)
class LinearProbe(ClosedForm):
    """Ridge regression of the one-hot labels on frozen features, in closed form as in R2-D2 (1805.08136), its ridge tuned."""

    name, number = "linear probes", "ridge"

    def rows(self, net: Head, support: Examples, way: int, number: float) -> Tensor:
        return net.closed_form(support, way, number)


@register_method(
    "meta-baseline",
    settings=ClosedFormSettings,
    label="Meta-Baseline",
    colour="#1f4e79",
    marker="p",
    defaults={"grid": (1.0, 3.0, 5.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0)},
    draws_at_random=False,
    networks="heads",
    unit_features=True,
)
class MetaBaseline(ClosedForm):
    """w = tau c / |c|, b = 0: logits tau cos(x, c) (Meta-Baseline, 2003.04390, eq. 1-2), for features of one length, as image
    embeddings have here. Its second stage trains the backbone through them; here that is frozen, and tau, which changes no
    answer but how sure it is, is the most likely one on validation tasks."""

    name, number = "heads of cosines", "temperature"

    def rows(self, net: Head, support: Examples, way: int, number: float) -> Tensor:
        x = net.frozen_features(support.x)
        lengths = x.norm(dim=-1)
        if bool((lengths.amax(1) > 1.01 * lengths.amin(1)).any()):
            raise McdiError(
                "a linear head has no cosines of features of several lengths: leave meta-baseline out for this network"
            )
        means, _ = class_means(x, support.y, way)
        weight = number * F.normalize(means, dim=-1) / lengths.mean(1)[:, None, None]  # of every task alone, not of the batch
        return torch.cat([weight, torch.zeros_like(weight[..., :1])], -1)

    def merit(self, net: Head, weights: Tensor, query: Examples, mask: Tensor) -> float:
        return -float(net.loss(weights, query, mask).mean())
