"""The source "sines": curves to be fitted from ten points, with all weights of a small network generated."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcdi.networks.base import Network
from mcdi.networks.curve import Curve
from mcdi.networks.registry import NETWORKS
from mcdi.tasks.registry import FamilySettings, FamilySpec, register_source
from mcdi.types import Examples, TaskBatch
from mcdi.utils.random import uniform

LOW, HIGH = -3.0, 3.0  # of x


@dataclass(frozen=True)
class CurveSettings(FamilySettings):
    """Sine curves; only the first entry of `shots` is used."""

    data: str = "sines"
    network: str = "curve"


class Sines:
    """y = a sin(x + p), a in [0.5, 2], p in [0, 2 pi]; support: `shots` random x; training data: 64 even x in [-3, 3]."""

    name = "sines"

    def __init__(self, shots: int = 10, queries: int = 50, hidden: int = 24, network: Network | None = None) -> None:
        self.downstream = network or Curve(hidden)
        self.shots: tuple[int, ...] = (shots,)
        self.queries = queries

    def curve(self, split: str, seeds: Sequence[int], x: NDArray[np.float64]) -> Examples:
        u = uniform(split, seeds, 0, count=2)
        y = (0.5 + 1.5 * u[:, :1]) * np.sin(x + 2 * np.pi * u[:, 1:])
        return Examples(torch.tensor(x, dtype=torch.float32)[..., None], torch.tensor(y, dtype=torch.float32))

    def sample(self, split: str, seeds: Sequence[int], *, draw: int = 0, shots: int | None = None) -> TaskBatch:
        shots = self.shots[0] if shots is None else shots
        x = LOW + (HIGH - LOW) * uniform(split, seeds, 1, draw, count=shots + self.queries)
        both = self.curve(split, seeds, x)
        return TaskBatch(
            Examples(both.x[:, :shots], both.y[:, :shots]),
            Examples(both.x[:, shots:], both.y[:, shots:]),
            torch.ones(len(seeds), 1, dtype=torch.bool),
            torch.as_tensor(seeds),
        )

    def training_data(self, split: str, seeds: Sequence[int]) -> Examples:
        return self.curve(split, seeds, np.broadcast_to(np.linspace(LOW, HIGH, 64), (len(seeds), 64)))

    def columns(self, split: str, seeds: Sequence[int]) -> dict[str, Tensor]:
        return {"curve": torch.from_numpy(uniform(split, seeds, 0, count=2)).float()}  # of a and p, in [0, 1)


def _make(settings: CurveSettings, folder: Path, **_: Any) -> Sines:
    network = NETWORKS.get(settings.network).network.for_family(settings)
    return Sines(shots=settings.shots[0], queries=settings.queries, network=network)


register_source(FamilySpec("sines", CurveSettings, _make, _make, kind="points", reads_data=False))
