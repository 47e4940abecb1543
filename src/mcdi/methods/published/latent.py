"""Diffusion in the latent space of an autoencoder of weights: p-diff (2402.13144), which knows nothing of the task, and D2NWG
(2402.18153), which is told of its data."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.methods.base import register_method
from mcdi.methods.meta_training import Batch
from mcdi.methods.published.autoencoder import Autoencoder, bound
from mcdi.methods.published.noise_prediction import FromNoise, FromNoiseSettings
from mcdi.methods.published.stored_weights import Stage
from mcdi.networks.base import Network
from mcdi.trajectories.store import Stored
from mcdi.types import Examples, TaskBatch
from mcdi.utils.random import Seed
from mcdi.weights import WeightSpace


@dataclass(frozen=True)
class LatentSettings(FromNoiseSettings):
    """conditional: whether the denoiser reads the condition of the support set (D2NWG) or zeros (p-diff). T = 1000, a network
    that predicts the noise and a light KL term (`beta`) are theirs, sizes and steps ours. `samples`: so many weights are
    decoded, and those that fit the support set best are taken."""

    conditional: bool = True
    latent: int = 32
    width: int = 256
    beta: float = 0.1
    samples: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.latent, self.width, self.samples) < 1 or self.beta <= 0:
            raise McdiError(
                f"latent = {self.latent}, width = {self.width} and samples = {self.samples} must be at least 1, "
                f"beta = {self.beta} positive"
            )


class Parts(nn.Module):
    def __init__(self, autoencoder: Autoencoder, denoiser: nn.Module) -> None:
        super().__init__()
        self.autoencoder, self.denoiser = autoencoder, denoiser
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(()))  # latents are divided by their spread (2112.10752)


@register_method(
    "d2nwg",
    settings=LatentSettings,
    label="D2NWG",
    colour="#444444",
    marker=">",
    fixed={"conditional": True},
    slow=True,
    needs_trajectories=True,
    seed_per_task=True,
)
@register_method(
    "p-diff",
    settings=LatentSettings,
    label="p-diff",
    colour="#a9a9a9",
    marker="<",
    fixed={"conditional": False},
    slow=True,
    needs_trajectories=True,
    seed_per_task=True,
)
class Latent(FromNoise[LatentSettings]):
    """Stage one: an autoencoder of theta_M. Stage two: a diffusion of its latents, those of all units as one set."""

    net: Parts | None

    def make(self, space: WeightSpace) -> Parts:
        s = self.settings
        return Parts(Autoencoder(space.D, 0, s.latent, s.width), self.denoiser(space, s.latent, self.condition_size))

    def _condition(self, net: Network, support: Examples, units: int) -> Tensor:
        cond = net.condition(support, units)
        return cond if self.settings.conditional else torch.zeros_like(cond)

    def stages(self, net: Network, space: WeightSpace, data: Stored) -> Iterator[Stage]:
        assert self.net is not None
        s, parts = self.settings, self.net

        def whole(theta: Tensor, tasks: TaskBatch, g: torch.Generator) -> Batch:
            return theta, theta[..., :0], torch.randn(*theta.shape[:2], s.latent, generator=g), tasks.mask

        def coded(theta: Tensor, tasks: TaskBatch, g: torch.Generator) -> Batch:
            with torch.no_grad():
                z = parts.autoencoder.encode(theta, theta[..., :0])[0] / parts.scale
            return *self.noised(z, g), self._condition(net, tasks.support, tasks.mask.shape[1]), tasks.mask

        yield Stage(parts.autoencoder, whole, partial(bound, parts.autoencoder, beta=s.beta))
        parts.scale.copy_(self._spread(parts.autoencoder, space, data))
        yield Stage(parts.denoiser, coded, partial(self.noise_loss, parts.denoiser))

    @torch.no_grad()
    def _spread(self, autoencoder: Autoencoder, space: WeightSpace, data: Stored) -> Tensor:
        count, square = 0, torch.zeros(())
        for part in data.parts():
            theta = space.standardise(part.targets[:, -1])
            z = autoencoder.encode(theta, theta[..., :0])[0][part.mask]
            count, square = count + z.numel(), square + z.square().sum()
        return (square / count).sqrt()

    def answer(self, net: Network, support: Examples, mask: Tensor, seed: Seed) -> Tensor:
        assert self.net is not None
        s, parts = self.settings, self.net
        cond = self._condition(net, support, mask.shape[1]).repeat_interleave(s.samples, 0)
        there = mask.repeat_interleave(s.samples, 0)
        z = self.denoised(lambda x, t: parts.denoiser(x, t, cond, there), there, s.latent, seed)
        return parts.autoencoder.decode(z * parts.scale, z[..., :0]).unflatten(0, (-1, s.samples))
