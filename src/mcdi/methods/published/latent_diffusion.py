"""p-diff and D2NWG: a diffusion in the latent space of an autoencoder of weights, without and with a condition."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mcdi.methods.meta_training import Batch
from mcdi.methods.published.stored_weights import NoisePredictionGenerator, NoisePredictionSettings, Stage, register
from mcdi.methods.published.vae import Autoencoder, negative_elbo
from mcdi.networks.base import Network
from mcdi.trajectories.store import Stored
from mcdi.types import Examples, TaskBatch
from mcdi.utils.random import Seed
from mcdi.weights import WeightSpace

BETA = 0.1  # weight of the KL term, light as published


@dataclass(frozen=True)
class LatentDiffusionSettings(NoisePredictionSettings):
    """T = 1000 and a network that predicts the noise are published, sizes and steps ours. samples: draws of
    which the one with the lowest support loss is kept."""

    latent: int = 32
    width: int = 256
    samples: int = 16


class LatentModules(nn.Module):
    """Latents are divided by `scale`, their root mean square over training weights (2112.10752)."""

    def __init__(self, autoencoder: Autoencoder, denoiser: nn.Module) -> None:
        super().__init__()
        self.autoencoder, self.denoiser = autoencoder, denoiser
        self.scale = nn.Buffer(torch.ones(()))


@register("d2nwg", settings=LatentDiffusionSettings, label="D2NWG", colour="#444444", marker=">", slow=True)
class D2nwg(NoisePredictionGenerator[LatentDiffusionSettings, LatentModules]):
    """Stage one: an autoencoder of theta_M. Stage two: a diffusion of its latents, those of all units as one set. The
    denoiser reads the condition of the support set, in place of the published encoder of data sets. Source: Soro et
    al., Diffusion-based Neural Network Weights Generation, 2402.18153."""

    def make_module(self, space: WeightSpace) -> LatentModules:
        s = self.settings
        autoencoder = Autoencoder(space.D, 0, s.latent, s.width)
        return LatentModules(autoencoder, self.make_denoiser(space, s.latent, self.condition_size))

    def condition(self, net: Network, support: Examples, units: int) -> Tensor:
        """What the denoiser reads, (B, U, C)."""
        return net.condition(support, units)

    def stages(self, net: Network, data: Stored) -> Iterator[Stage]:
        s, (parts, space) = self.settings, self.trained()

        def draw_weights(theta: Tensor, tasks: TaskBatch, g: torch.Generator) -> Batch:
            eps = torch.randn(*theta.shape[:2], s.latent, generator=g)
            return {"theta": theta, "cond": theta[..., :0], "eps": eps, "mask": tasks.mask}

        def draw_latents(theta: Tensor, tasks: TaskBatch, g: torch.Generator) -> Batch:
            with torch.no_grad():
                z = parts.autoencoder.encode(theta, theta[..., :0])[0] / parts.scale
            cond = self.condition(net, tasks.support, tasks.mask.shape[1])
            return {**self.add_noise(z, g), "cond": cond, "mask": tasks.mask}

        yield Stage(parts.autoencoder, draw_weights, partial(negative_elbo, parts.autoencoder, beta=BETA))
        parts.scale.copy_(self._root_mean_square(parts.autoencoder, space, data))
        yield Stage(parts.denoiser, draw_latents, partial(self.noise_loss, parts.denoiser))

    @torch.no_grad()
    def _root_mean_square(self, autoencoder: Autoencoder, space: WeightSpace, data: Stored) -> Tensor:
        count, square = 0, torch.zeros(())
        for part in data.parts():
            theta = space.standardise(part.targets[:, -1])
            z = autoencoder.encode(theta, theta[..., :0])[0][part.mask]
            count, square = count + z.numel(), square + z.square().sum()
        return (square / count).sqrt()

    def standardised_weights(self, net: Network, support: Examples, mask: Tensor, seed: Seed) -> Tensor:
        s, (parts, _) = self.settings, self.trained()
        cond = self.condition(net, support, mask.shape[1]).repeat_interleave(s.samples, 0)
        masks = mask.repeat_interleave(s.samples, 0)
        z = self.ddim(lambda x, t: parts.denoiser(x, t, cond, masks), masks, s.latent, seed)
        return parts.autoencoder.decode(z * parts.scale, z[..., :0]).unflatten(0, (-1, s.samples))


@register("p-diff", settings=LatentDiffusionSettings, label="p-diff", colour="#a9a9a9", marker="<", slow=True)
class PDiff(D2nwg):
    """The denoiser reads zeros; the task decides only which of several draws is kept. Source: Wang et al., Neural
    Network Diffusion, 2402.13144."""

    def condition(self, net: Network, support: Examples, units: int) -> Tensor:
        return torch.zeros_like(super().condition(net, support, units))
