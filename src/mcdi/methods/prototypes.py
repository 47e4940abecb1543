"""The honest yardstick of few-shot heads: class means as a linear classifier. Nothing is learned."""

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.methods.base import Log, silent
from mcdi.store import Stored
from mcdi.tasks.base import Examples, TaskFamily
from mcdi.tasks.downstream import Network
from mcdi.tasks.heads import LinearHead
from mcdi.tasks.sets import class_means, prototype_rows


class Prototypes:
    """w = 2 c, b = -|c|^2, c the mean support feature: the logits are minus the squared distances, up to |x|^2 (1703.05175)."""

    gradient_free = True

    def fit(self, family: TaskFamily, data: Stored | None, *, seed: int, log: Log = silent, folder: Path | None = None) -> Self:
        if not isinstance(family.downstream, LinearHead):
            raise McdiError("prototypes exist for linear heads only: leave them out for whole networks")
        return self

    def generate(self, net: Network, support: Examples, mask: Tensor, *, seed: int) -> Tensor:
        assert isinstance(net, LinearHead)
        way = net.classes(mask.shape[1])
        means, _ = class_means(net.frozen(support.x), support.y, way)
        rows = prototype_rows(means)
        # What stands beside the rows stays where it starts: FiLM that changes nothing.
        rest = net.theta0(0, mask.shape[1])[way:].to(rows)
        return torch.cat([rows, rest.expand(len(rows), -1, -1)], 1)

    def config(self) -> dict[str, Any]:
        return {"settings": {}}

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, config: dict[str, Any], state: dict[str, Tensor]) -> Self:
        return self
