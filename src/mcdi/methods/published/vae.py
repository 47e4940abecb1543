"""A conditional variational autoencoder over weights (CVAE: Sohn, Lee and Yan, 2015), the simplest generative alternative."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.methods.base import register_method
from mcdi.methods.meta_training import Batch
from mcdi.methods.published.autoencoder import Autoencoder, bound
from mcdi.methods.published.stored_weights import FromWeights, FromWeightsSettings, Stage
from mcdi.networks.base import Network
from mcdi.trajectories.store import Stored
from mcdi.types import Examples, TaskBatch
from mcdi.utils.random import Seed
from mcdi.weights import WeightSpace


@dataclass(frozen=True)
class VaeSettings(FromWeightsSettings):
    """latent: numbers of z a unit; width: of the two perceptrons; beta: weight of the KL term (1 = the evidence bound)."""

    latent: int = 16
    width: int = 256
    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.latent, self.width) < 1 or self.beta <= 0:
            raise McdiError(f"latent = {self.latent} and width = {self.width} must be at least 1, beta = {self.beta} positive")


@register_method(
    "vae",
    settings=VaeSettings,
    label="CVAE",
    colour="#5d3a9b",
    marker="8",
    exportable=True,
    needs_trajectories=True,
    seed_per_task=True,
)
class Vae(FromWeights[VaeSettings]):
    """Weights are decoded from z = 0, the middle of the prior, and the support set's condition, without a gradient."""

    net: Autoencoder | None

    def make(self, space: WeightSpace) -> Autoencoder:
        return Autoencoder(space.D, self.condition_size, self.settings.latent, self.settings.width)

    def stages(self, net: Network, space: WeightSpace, data: Stored) -> Iterator[Stage]:
        assert self.net is not None

        def draw(theta: Tensor, tasks: TaskBatch, g: torch.Generator) -> Batch:
            eps = torch.randn(*theta.shape[:2], self.settings.latent, generator=g)
            return theta, net.condition(tasks.support, tasks.mask.shape[1]), eps, tasks.mask

        yield Stage(self.net, draw, partial(bound, self.net, beta=self.settings.beta))

    def answer(self, net: Network, support: Examples, mask: Tensor, seed: Seed) -> Tensor:
        assert self.net is not None
        cond = net.condition(support, mask.shape[1])
        return self.net.decode(cond.new_zeros(*cond.shape[:2], self.settings.latent), cond)
