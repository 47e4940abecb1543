"""A variational autoencoder of weights: a generator of its own (vae.py), or the first stage of a latent diffusion."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mcdi.core import Params
from mcdi.methods.published.stored_weights import masked_mean


class AutoencoderBatch(NamedTuple):
    """Of B tasks: standardised weights, their condition, the noise of the code, and the mask."""

    theta: Tensor  # (B, U, D)
    cond: Tensor  # (B, U, C)
    eps: Tensor  # (B, U, latent)
    mask: Tensor  # (B, U)


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
        mean, log_variance = self.encoder(torch.cat([theta, cond], -1)).chunk(2, -1)
        return mean, log_variance

    def decode(self, z: Tensor, cond: Tensor) -> Tensor:
        return self.decoder(torch.cat([z, cond], -1))


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)), summed over the last dimension (1312.6114, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


def negative_elbo(net: Autoencoder, params: Params, batch: AutoencoderBatch, beta: float = 1.0) -> Tensor:
    """Minus the evidence lower bound, its KL term times beta: -> (). The decoder's variance is the optimal one, the mean
    square of its error (sigma-VAE, 2006.13202, eq. 7)."""
    theta, cond, eps, mask = batch
    reconstruction, mean, log_variance = torch.func.functional_call(net, params, (theta, cond, eps))
    error = masked_mean((reconstruction - theta).square().mean(-1), mask)
    return 0.5 * theta.shape[-1] * error.log() + beta * masked_mean(kl_divergence(mean, log_variance), mask)
