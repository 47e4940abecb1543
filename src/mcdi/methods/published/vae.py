"""A variational autoencoder of weights: a generator of its own, or the first stage of a latent diffusion."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mcdi.core import Params
from mcdi.methods.meta_training import Batch
from mcdi.methods.published.stored_weights import (
    Stage,
    StoredWeightGenerator,
    StoredWeightSettings,
    masked_mean,
    register,
)
from mcdi.networks.base import Network
from mcdi.trajectories.store import Stored
from mcdi.types import Examples, TaskBatch
from mcdi.utils.random import Seed
from mcdi.weights import WeightSpace


class Autoencoder(nn.Module):
    """q(z | theta, c) and p(theta | z, c), both Gaussian, unit by unit: any number of classes is served (1312.6114)."""

    def __init__(self, size: int, condition_size: int, latent: int, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(size + condition_size, width), nn.SiLU(), nn.Linear(width, 2 * latent))
        self.decoder = nn.Sequential(
            nn.Linear(latent + condition_size, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, size)
        )

    def forward(self, theta: Tensor, cond: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """theta (B, U, D), cond (B, U, C), eps (B, U, latent) -> its reconstruction, and mean and log variance of z."""
        mean, log_variance = self.encode(theta, cond)
        return self.decode(mean + (0.5 * log_variance).exp() * eps, cond), mean, log_variance

    def encode(self, theta: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and the log variance of z."""
        return self.encoder(torch.cat([theta, cond], -1)).chunk(2, -1)

    def decode(self, z: Tensor, cond: Tensor) -> Tensor:
        return self.decoder(torch.cat([z, cond], -1))


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)), summed over the last dimension (1312.6114, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


def negative_elbo(
    net: Autoencoder, params: Params, theta: Tensor, cond: Tensor, eps: Tensor, mask: Tensor, beta: float = 1.0
) -> Tensor:
    """Minus the evidence lower bound, its KL term times beta: theta (B, U, D), cond (B, U, C), eps (B, U, latent), mask (B, U)
    -> (). The decoder's variance is the optimal one, the mean square of its error (sigma-VAE, 2006.13202, eq. 7)."""
    reconstruction, mean, log_variance = torch.func.functional_call(net, params, (theta, cond, eps))
    error = masked_mean((reconstruction - theta).square().mean(-1), mask)
    return 0.5 * theta.shape[-1] * error.log() + beta * masked_mean(kl_divergence(mean, log_variance), mask)


@dataclass(frozen=True)
class VaeSettings(StoredWeightSettings):
    """latent: numbers of z a unit; width: of the two perceptrons."""

    latent: int = 16
    width: int = 256


@register("vae", settings=VaeSettings, label="CVAE", colour="#5d3a9b", marker="8", exportable=True)
class Vae(StoredWeightGenerator[VaeSettings, Autoencoder]):
    """Weights are decoded from z = 0, the mean of the prior, and the support set's condition. Source: Sohn, Lee and
    Yan, Learning Structured Output Representation using Deep Conditional Generative Models, 2015."""

    def make_module(self, space: WeightSpace) -> Autoencoder:
        return Autoencoder(space.D, self.condition_size, self.settings.latent, self.settings.width)

    def stages(self, net: Network, data: Stored) -> Iterator[Stage]:
        module, _ = self.trained()

        def draw(theta: Tensor, tasks: TaskBatch, g: torch.Generator) -> Batch:
            eps = torch.randn(*theta.shape[:2], self.settings.latent, generator=g)
            cond = net.condition(tasks.support, tasks.mask.shape[1])
            return {"theta": theta, "cond": cond, "eps": eps, "mask": tasks.mask}

        yield Stage(module, draw, partial(negative_elbo, module))

    def standardised_weights(self, net: Network, support: Examples, mask: Tensor, seed: Seed) -> Tensor:
        cond = net.condition(support, mask.shape[1])
        return self.trained()[0].decode(cond.new_zeros(*cond.shape[:2], self.settings.latent), cond)
