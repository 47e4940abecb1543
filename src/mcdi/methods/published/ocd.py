"""OCD: a diffusion of the difference between a task's weights and those of a base model, and of the size of that
difference. The published one overfits a layer to a single input. Here weights theta_M are fitted to a task, and the
base model needs no training: the least-squares classifier of the support set where a network has a head, theta_0
otherwise. Its name is "ocd-residual": "ocd" is the single-level control of the paper's ablation."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mcdi.core import Params
from mcdi.methods.meta_training import Batch
from mcdi.methods.published.stored_weights import (
    NoisePredictionGenerator,
    NoisePredictionSettings,
    Stage,
    masked_mean,
    register,
)
from mcdi.networks.base import Network
from mcdi.networks.heads import Head
from mcdi.trajectories.store import Stored
from mcdi.types import Examples, TaskBatch
from mcdi.utils.random import Seed
from mcdi.weights import WeightSpace


@dataclass(frozen=True)
class OcdSettings(NoisePredictionSettings):
    """T = 1000, a network that predicts the noise and 10 steps of DDIM are published; width: of the one of the scale."""

    steps: int = 10
    width: int = 64


class ResidualModules(nn.Module):
    """The denoiser of residuals of unit size, and the network of the log of that size; both read condition and base."""

    def __init__(self, denoiser: nn.Module, inputs: int, width: int) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.scale = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, 1))

    def log_scale(self, cond: Tensor, mask: Tensor) -> Tensor:
        """(B, U, C) -> (B,): the mean of the answers for every unit."""
        weights = mask.to(cond.dtype)
        return (self.scale(cond)[..., 0] * weights).sum(1) / weights.sum(1)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.denoiser(x, t, cond, mask), self.log_scale(cond, mask)


@register("ocd-residual", settings=OcdSettings, label="OCD", colour="#6f4aa0", marker="^", slow=True)
class ResidualOcd(NoisePredictionGenerator[OcdSettings, ResidualModules]):
    """theta = base + scale * residual; the residual is drawn by DDIM, the scale is predicted by a network of its own.
    Source: Lutati and Wolf, OCD: Learning to Overfit with Conditional Diffusion Models, 2210.00471."""

    floor = 6.7e-3  # of its betas, 1e-6 to 0.01 in a thousand steps

    def make_module(self, space: WeightSpace) -> ResidualModules:
        inputs = self.condition_size + space.D
        return ResidualModules(self.make_denoiser(space, space.D, inputs), inputs, self.settings.width)

    def _base(self, net: Network, space: WeightSpace, support: Examples, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The base model's weights, standardised (B, U, D), and what the networks read: the condition with these appended."""
        units = mask.shape[1]
        if isinstance(net, Head):
            base = net.with_default_units(net.closed_form(support, net.classes(units)), units)
        else:
            base = net.theta0(0, units).to(mask.device).expand(len(mask), -1, -1)
        base = space.standardise(base)
        return base, torch.cat([net.condition(support, units), base], -1)

    def stages(self, net: Network, data: Stored) -> Iterator[Stage]:
        module, space = self.trained()

        def draw(theta: Tensor, tasks: TaskBatch, g: torch.Generator) -> Batch:
            base, cond = self._base(net, space, tasks.support, tasks.mask)
            weights = tasks.mask[..., None].to(theta.dtype)
            residual = (theta - base) * weights
            size = (residual.square().sum((1, 2)) / (weights.sum((1, 2)) * theta.shape[-1])).sqrt().clamp(min=1e-6)
            noisy = self.add_noise(residual / size[:, None, None], g)
            return {**noisy, "cond": cond, "log_scale": size.log(), "mask": tasks.mask}

        def loss(params: Params, x: Tensor, eps: Tensor, t: Tensor, cond: Tensor, log_scale: Tensor, mask: Tensor) -> Tensor:
            """The mean square error of the noise, and that of the log scale: they share no parameter."""
            f, predicted = torch.func.functional_call(module, params, (x, t / self.settings.T, cond, mask))
            return masked_mean((f - eps).square().mean(-1), mask) + (predicted - log_scale).square().mean()

        yield Stage(module, draw, loss)

    def standardised_weights(self, net: Network, support: Examples, mask: Tensor, seed: Seed) -> Tensor:
        module, space = self.trained()
        base, cond = self._base(net, space, support, mask)
        residual = self.ddim(lambda x, t: module.denoiser(x, t, cond, mask), mask, base.shape[-1], seed)
        return base + module.log_scale(cond, mask).exp()[:, None, None] * residual
