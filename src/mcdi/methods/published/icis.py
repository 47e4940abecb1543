"""ICIS (2308.10599): classifier rows out of class descriptors, by two autoencoders that share one latent space.

The published one reads attributes or names of classes and no image; here a class's descriptor is its condition, what the
support set says of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from mcdi.core import Params
from mcdi.errors import McdiError
from mcdi.methods.base import register_method
from mcdi.methods.meta_training import Batch
from mcdi.methods.published.stored_weights import FromWeights, FromWeightsSettings, Stage, over_units
from mcdi.networks.base import Network
from mcdi.trajectories.store import Stored
from mcdi.types import Examples, TaskBatch
from mcdi.utils.random import Seed
from mcdi.weights import WeightSpace


@dataclass(frozen=True)
class IcisSettings(FromWeightsSettings):
    """latent: numbers of the shared space; width: of the four perceptrons."""

    latent: int = 128
    width: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.latent, self.width) < 1:
            raise McdiError(f"latent = {self.latent} and width = {self.width} must be at least 1")


class TwoCoders(nn.Module):
    """Descriptors and weights, each into the shared space and out of it. `length`: of a training row."""

    def __init__(self, size: int, condition_size: int, latent: int, width: int) -> None:
        super().__init__()

        def perceptron(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, outputs))

        self.read_descriptor, self.read_weights = perceptron(condition_size, latent), perceptron(size, latent)
        self.say_descriptor, self.say_weights = perceptron(latent, condition_size), perceptron(latent, size)
        self.length: Tensor
        self.register_buffer("length", torch.ones(()))

    def forward(self, descriptor: Tensor, weights: Tensor) -> Tensor:
        """The four (cross-)reconstructions' cosine distances, added up: (B, U, C), (B, U, D) -> (B, U)."""
        loss = torch.zeros(())
        for z in (self.read_descriptor(descriptor), self.read_weights(weights)):
            for said, true in ((self.say_descriptor(z), descriptor), (self.say_weights(z), weights)):
                loss = loss + 1 - F.cosine_similarity(said, true, dim=-1)
        return loss


@register_method(
    "icis",
    settings=IcisSettings,
    label="ICIS",
    colour="#d98cb3",
    marker="X",
    exportable=True,
    needs_trajectories=True,
    seed_per_task=True,
)
class Icis(FromWeights[IcisSettings]):
    """A class's weights from its own descriptor alone, in one pass. Cosines know no length: rows get that of training rows."""

    net: TwoCoders | None

    def make(self, space: WeightSpace) -> TwoCoders:
        return TwoCoders(space.D, self.condition_size, self.settings.latent, self.settings.width)

    def stages(self, net: Network, space: WeightSpace, data: Stored) -> Iterator[Stage]:
        assert self.net is not None
        coders = self.net
        lengths = [space.standardise(part.targets[:, -1])[part.mask].norm(dim=-1) for part in data.parts()]
        coders.length.copy_(torch.cat(lengths).mean())

        def draw(theta: Tensor, tasks: TaskBatch, g: torch.Generator) -> Batch:
            return net.condition(tasks.support, tasks.mask.shape[1]), theta, tasks.mask

        def loss(params: Params, descriptor: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
            return over_units(torch.func.functional_call(coders, params, (descriptor, weights)), mask)

        yield Stage(coders, draw, loss)

    def answer(self, net: Network, support: Examples, mask: Tensor, seed: Seed) -> Tensor:
        assert self.net is not None
        rows = self.net.say_weights(self.net.read_descriptor(net.condition(support, mask.shape[1])))
        return self.net.length * F.normalize(rows, dim=-1)
