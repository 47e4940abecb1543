"""OCD (2210.00471): a diffusion of what separates a base model's weights from those that fit the data at hand, and its scale.

The published one overfits a trained layer to a single input. Here the data at hand are a task, the weights that fit it theta_M,
and the base model what there is without learning: the least-squares classifier of the support set where a network has a head,
theta_0 otherwise. Among the methods it is "ocd-residual": "ocd" is the single-level control of the paper's ablation.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mcdi import core
from mcdi.errors import McdiError
from mcdi.methods.base import register_method
from mcdi.methods.meta_training import Batch
from mcdi.methods.published.noise_prediction import FromNoise, FromNoiseSettings
from mcdi.methods.published.stored_weights import Stage, over_units
from mcdi.networks.base import Network
from mcdi.networks.heads import Head
from mcdi.trajectories.store import Stored
from mcdi.types import Examples, TaskBatch
from mcdi.utils.random import Seed
from mcdi.weights import WeightSpace


@dataclass(frozen=True)
class OcdSettings(FromNoiseSettings):
    """T = 1000, a network that predicts the noise and 10 steps of DDIM are theirs; width: of the one that tells the scale."""

    steps: int = 10
    width: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 1:
            raise McdiError(f"width = {self.width} must be at least 1")


class Parts(nn.Module):
    """The denoiser of residuals of unit size, and the network that tells the log of that size; both read condition and base."""

    def __init__(self, denoiser: nn.Module, inputs: int, width: int) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.scale = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, 1))

    def log_scale(self, read: Tensor, mask: Tensor) -> Tensor:
        """(B, U, C) -> (B,): the mean of what is told of every unit."""
        there = mask.to(read.dtype)
        return (self.scale(read)[..., 0] * there).sum(1) / there.sum(1)

    def forward(self, x: Tensor, t: Tensor, read: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.denoiser(x, t, read, mask), self.log_scale(read, mask)


@register_method(
    "ocd-residual",
    settings=OcdSettings,
    label="OCD",
    colour="#6f4aa0",
    marker="^",
    slow=True,
    needs_trajectories=True,
    seed_per_task=True,
)
class ResidualOcd(FromNoise[OcdSettings]):
    """theta = base + scale * residual; the residual is drawn by DDIM, the scale is told by a network of its own."""

    floor = 6.7e-3  # of its betas, 1e-6 to 0.01 in a thousand steps
    net: Parts | None

    def make(self, space: WeightSpace) -> Parts:
        inputs = self.condition_size + space.D
        return Parts(self.denoiser(space, space.D, inputs), inputs, self.settings.width)

    def _base(self, net: Network, space: WeightSpace, support: Examples, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The base model's weights, standardised (B, U, D), and what the networks read: the condition beside them."""
        units = mask.shape[1]
        if isinstance(net, Head):
            base = net.with_default_units(net.closed_form(support, net.classes(units)), units)
        else:
            base = net.theta0(0, units).to(mask.device).expand(len(mask), -1, -1)
        base = space.standardise(base)
        return base, torch.cat([net.condition(support, units), base], -1)

    def stages(self, net: Network, space: WeightSpace, data: Stored) -> Iterator[Stage]:
        assert self.net is not None

        def draw(theta: Tensor, tasks: TaskBatch, g: torch.Generator) -> Batch:
            base, read = self._base(net, space, tasks.support, tasks.mask)
            there = tasks.mask[..., None].to(theta.dtype)
            residual = (theta - base) * there
            size = (residual.square().sum((1, 2)) / (there.sum((1, 2)) * theta.shape[-1])).sqrt().clamp(min=1e-6)
            return *self.noised(residual / size[:, None, None], g), read, size.log(), tasks.mask

        yield Stage(self.net, draw, self._loss)

    def _loss(
        self, params: core.Params, x: Tensor, eps: Tensor, t: Tensor, read: Tensor, log_scale: Tensor, mask: Tensor
    ) -> Tensor:
        """The mean square of the noise, and that of the log scale: they share no parameter."""
        assert self.net is not None
        f, told = torch.func.functional_call(self.net, params, (x, t / self.settings.T, read, mask))
        return over_units((f - eps).square().mean(-1), mask) + (told - log_scale).square().mean()

    def answer(self, net: Network, support: Examples, mask: Tensor, seed: Seed) -> Tensor:
        assert self.net is not None and self.space is not None
        parts = self.net
        base, read = self._base(net, self.space, support, mask)
        residual = self.denoised(lambda x, t: parts.denoiser(x, t, read, mask), mask, base.shape[-1], seed)
        return base + parts.log_scale(read, mask).exp()[:, None, None] * residual
