"""MetaDiff: a denoiser of weights that reads the gradient of the support loss at x_t."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mcdi.methods.meta_training import Batch
from mcdi.methods.published.stored_weights import NoisePredictionGenerator, NoisePredictionSettings, Stage, register
from mcdi.networks.base import Network
from mcdi.trajectories.store import Stored
from mcdi.types import Examples, TaskBatch
from mcdi.utils.random import Seed
from mcdi.weights import WeightSpace


def gradient_features(net: Network, space: WeightSpace, x: Tensor, support: Examples, mask: Tensor) -> Tensor:
    """The condition at standardised weights x: the gradient of the support loss there, at unit size, and the log of its size:
    (B, U, D) -> (B, U, D + 1)."""
    gradient = torch.func.grad(lambda z: net.loss(space.restore(z), support, mask).sum())(x)
    size = gradient.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-8)
    return torch.cat([gradient / size, size.log().expand(-1, x.shape[1], 1)], -1)


_FACTS: dict[str, Any] = {"slow": True, "gradient_free": False}


@register("metadiff", settings=NoisePredictionSettings, label="MetaDiff", colour="#b5651d", marker="H", **_FACTS)
class MetaDiff(NoisePredictionGenerator[NoisePredictionSettings, nn.Module]):
    """A learnt optimiser: every denoising step takes one gradient of the task's loss. T = 1000 and a network that
    predicts the noise from x_t, t and the gradient are published; sizes and steps are ours. Source: Zhang et al.,
    MetaDiff: Meta-Learning with Conditional Diffusion for Few-Shot Learning, 2307.16424."""

    def make_module(self, space: WeightSpace) -> nn.Module:
        return self.make_denoiser(space, space.D, space.D + 1)

    def stages(self, net: Network, data: Stored) -> Iterator[Stage]:
        denoiser, space = self.trained()

        def draw(theta: Tensor, tasks: TaskBatch, g: torch.Generator) -> Batch:
            noisy = self.add_noise(theta, g)
            cond = gradient_features(net, space, noisy["x"], tasks.support, tasks.mask)
            return {**noisy, "cond": cond, "mask": tasks.mask}

        yield Stage(denoiser, draw, partial(self.noise_loss, denoiser))

    def standardised_weights(self, net: Network, support: Examples, mask: Tensor, seed: Seed) -> Tensor:
        denoiser, space = self.trained()

        def f(x: Tensor, t: Tensor) -> Tensor:
            return denoiser(x, t, gradient_features(net, space, x, support, mask), mask)

        return self.ddim(f, mask, space.D, seed)
