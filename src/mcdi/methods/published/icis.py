"""ICIS: classifier rows from class descriptors, by two autoencoders that share one latent space. The published one
reads attributes or names of classes and no image; here a class's descriptor is its condition, computed from the support
set."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
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


@dataclass(frozen=True)
class IcisSettings(StoredWeightSettings):
    """latent: numbers of the shared space; width: of the four perceptrons."""

    latent: int = 128
    width: int = 256


class PairedAutoencoders(nn.Module):
    """Descriptors and weights, each encoded into the shared space and decoded from it. `length`: of a training row."""

    def __init__(self, size: int, condition_size: int, latent: int, width: int) -> None:
        super().__init__()

        def perceptron(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, outputs))

        self.encode_descriptor, self.encode_weights = perceptron(condition_size, latent), perceptron(size, latent)
        self.decode_descriptor, self.decode_weights = perceptron(latent, condition_size), perceptron(latent, size)
        self.length = nn.Buffer(torch.ones(()))

    def forward(self, descriptor: Tensor, weights: Tensor) -> Tensor:
        """The sum of the four (cross-)reconstructions' cosine distances: (B, U, C), (B, U, D) -> (B, U)."""
        loss = torch.zeros(())
        for z in (self.encode_descriptor(descriptor), self.encode_weights(weights)):
            for decoded, true in ((self.decode_descriptor(z), descriptor), (self.decode_weights(z), weights)):
                loss = loss + 1 - F.cosine_similarity(decoded, true, dim=-1)
        return loss


@register("icis", settings=IcisSettings, label="ICIS", colour="#d98cb3", marker="X", exportable=True)
class Icis(StoredWeightGenerator[IcisSettings, PairedAutoencoders]):
    """A class's weights from its own descriptor in one pass. Cosines leave the length open: rows get that of training
    rows. Source: Christensen et al., Image-free Classifier Injection for Zero-Shot Classification, 2308.10599."""

    def make_module(self, space: WeightSpace) -> PairedAutoencoders:
        return PairedAutoencoders(space.D, self.condition_size, self.settings.latent, self.settings.width)

    def stages(self, net: Network, data: Stored) -> Iterator[Stage]:
        coders, space = self.trained()
        lengths = [space.standardise(part.targets[:, -1])[part.mask].norm(dim=-1) for part in data.parts()]
        coders.length.copy_(torch.cat(lengths).mean())

        def draw(theta: Tensor, tasks: TaskBatch, g: torch.Generator) -> Batch:
            cond = net.condition(tasks.support, tasks.mask.shape[1])
            return {"descriptor": cond, "weights": theta, "mask": tasks.mask}

        def loss(params: Params, descriptor: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
            return masked_mean(torch.func.functional_call(coders, params, (descriptor, weights)), mask)

        yield Stage(coders, draw, loss)

    def standardised_weights(self, net: Network, support: Examples, mask: Tensor, seed: Seed) -> Tensor:
        coders, _ = self.trained()
        rows = coders.decode_weights(coders.encode_descriptor(net.condition(support, mask.shape[1])))
        return coders.length * F.normalize(rows, dim=-1)
