"""A conditional variational autoencoder over weights, the simplest generative alternative to a diffusion."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mcdi.methods.base import register_method
from mcdi.methods.published.autoencoder import Autoencoder, AutoencoderBatch, negative_elbo
from mcdi.methods.published.stored_weights import STORED_WEIGHTS, Stage, StoredWeightGenerator, StoredWeightSettings
from mcdi.networks.base import Network
from mcdi.trajectories.store import Stored
from mcdi.types import Examples, TaskBatch
from mcdi.utils.random import Seed
from mcdi.weights import WeightSpace


@dataclass(frozen=True)
class VaeSettings(StoredWeightSettings):
    """latent: numbers of z a unit; width: of the two perceptrons."""

    latent: int = 16
    width: int = 256


@register_method("vae", settings=VaeSettings, label="CVAE", colour="#5d3a9b", marker="8", exportable=True, **STORED_WEIGHTS)
class Vae(StoredWeightGenerator[VaeSettings, Autoencoder]):
    """Weights are decoded from z = 0, the mean of the prior, and the support set's condition.

    Source:
        Sohn, Lee and Yan, Learning Structured Output Representation using Deep Conditional Generative Models, 2015.
    """

    def make_module(self, space: WeightSpace) -> Autoencoder:
        return Autoencoder(space.D, self.condition_size, self.settings.latent, self.settings.width)

    def stages(self, net: Network, data: Stored) -> Iterator[Stage[AutoencoderBatch]]:
        module, _ = self.trained()

        def draw(theta: Tensor, tasks: TaskBatch, g: torch.Generator) -> AutoencoderBatch:
            eps = torch.randn(*theta.shape[:2], self.settings.latent, generator=g)
            return AutoencoderBatch(theta, net.condition(tasks.support, tasks.mask.shape[1]), eps, tasks.mask)

        yield Stage(module, draw, partial(negative_elbo, module))

    def standardised_weights(self, net: Network, support: Examples, mask: Tensor, seed: Seed) -> Tensor:
        cond = net.condition(support, mask.shape[1])
        return self.trained()[0].decode(cond.new_zeros(*cond.shape[:2], self.settings.latent), cond)
