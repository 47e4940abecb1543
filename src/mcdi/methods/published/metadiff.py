"""MetaDiff (2307.16424): a denoiser of weights that reads the gradient of the support loss where the chain stands.

So it learns to optimise: every denoising step is one gradient of the task and a learnt step along it. Not gradient-free.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from mcdi.methods.base import register_method
from mcdi.methods.meta_training import Batch
from mcdi.methods.published.noise_prediction import FromNoise, FromNoiseSettings
from mcdi.methods.published.stored_weights import Stage
from mcdi.networks.base import Network
from mcdi.trajectories.store import Stored
from mcdi.types import Examples, TaskBatch
from mcdi.utils.random import Seed
from mcdi.weights import WeightSpace


def slope(net: Network, space: WeightSpace, x: Tensor, support: Examples, mask: Tensor) -> Tensor:
    """What the denoiser is told of the task at standardised weights x: the gradient of the support loss there, at unit size,
    and the log of its size: (B, U, D) -> (B, U, D + 1)."""
    gradient = torch.func.grad(lambda z: net.loss(space.restore(z), support, mask).sum())(x)
    size = gradient.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-8)
    return torch.cat([gradient / size, size.log().expand(-1, x.shape[1], 1)], -1)


@register_method(
    "metadiff",
    settings=FromNoiseSettings,
    label="MetaDiff",
    colour="#b5651d",
    marker="H",
    slow=True,
    gradient_free=False,
    needs_trajectories=True,
    seed_per_task=True,
)
class MetaDiff(FromNoise[FromNoiseSettings]):
    """T = 1000 and a network that predicts the noise from x_t, t and the gradient are theirs; sizes and steps ours."""

    def make(self, space: WeightSpace) -> nn.Module:
        return self.denoiser(space, space.D, space.D + 1)

    def stages(self, net: Network, space: WeightSpace, data: Stored) -> Iterator[Stage]:
        assert self.net is not None

        def draw(theta: Tensor, tasks: TaskBatch, g: torch.Generator) -> Batch:
            x, eps, t = self.noised(theta, g)
            return x, eps, t, slope(net, space, x, tasks.support, tasks.mask), tasks.mask

        yield Stage(self.net, draw, partial(self.noise_loss, self.net))

    def answer(self, net: Network, support: Examples, mask: Tensor, seed: Seed) -> Tensor:
        assert self.net is not None and self.space is not None
        denoiser, space = self.net, self.space
        told = partial(slope, net, space)
        return self.denoised(lambda x, t: denoiser(x, t, told(x, support, mask), mask), mask, space.D, seed)
