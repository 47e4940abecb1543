"""Meta-Hypernetwork: MAML whose inner loop moves a code of every unit, from which a hypernetwork makes the weights."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.methods.base import register_method
from mcdi.methods.baselines.maml import Maml, MamlSettings, MetaParameters


@dataclass(frozen=True)
class MetaHypernetworkSettings(MamlSettings):
    """code: numbers of a unit's code; width: of the hypernetwork, which is learnt with the initial codes."""

    code: int = 32
    width: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.code, self.width) < 1:
            raise McdiError(f"code = {self.code} and width = {self.width} must be at least 1")


_FACTS: dict[str, Any] = {"colour": "#3f5b1a", "marker": "d", "gradient_free": False}


@register_method("meta-hypernetwork", settings=MetaHypernetworkSettings, label="Meta-Hypernetwork", **_FACTS)
class MetaHypernetwork(Maml):
    """Codes and hypernetwork for all tasks, and SGD on the codes. Source: Zhao et al., Meta-Learning via Hypernetworks,
    2020."""

    settings: MetaHypernetworkSettings

    def _make_meta(self, theta0: Tensor) -> MetaParameters:
        """Codes whose hypernetwork's output is near theta_0."""
        s = self.settings
        last = nn.Linear(s.width, theta0.shape[1])
        hypernetwork = nn.Sequential(nn.Linear(s.code, s.width), nn.SiLU(), last)
        last.bias.data.copy_(theta0.mean(0))
        return MetaParameters(torch.randn(len(theta0), s.code), s.alpha, hypernetwork)
