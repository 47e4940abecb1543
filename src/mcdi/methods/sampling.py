"""How a trained generator's chain is run, and the protocol of methods that run one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Literal, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.networks.base import Network
from mcdi.types import Examples
from mcdi.utils.random import Seed
from mcdi.utils.settings import check_fields
from mcdi.weights import WeightSpace

W = TypeVar("W")


class Generated(NamedTuple, Generic[W]):
    """Weights, and how far each of B tasks resembles those of validation: confidence (B,), 1 to 0 (see calibration)."""

    weights: W
    confidence: Tensor


class Chain(NamedTuple):
    """The states of one task's chain: times (n), weights (n, U, D), and their losses (n,) on the support set."""

    times: list[int]
    weights: Tensor
    losses: Tensor
    support: Examples
    mask: Tensor


@dataclass(frozen=True)
class Sampling:
    """How a chain is run.

    Args:
        steps: denoising steps; None = T.
        temperature: scale of the initial noise; 0 starts the chain at the mean.
        eta: 1 = DDPM, 0 = DDIM.
        noise: scale of the noise added in between (times temperature).
        chain: "segment" or "global", see `core.sample`.
        samples: chains a task.
        pick: of several chains the "mean" of the weights, or the draw with the lowest loss on the support set.
        stop: i ends the chain at the local target theta_{i d}.
        mixing_weight: of the generated head in the blend with ridge regression on the support set; 1 = no blend.
        calibration_quantiles: {shots: quantiles} of the support log odds of validation tasks; a task beyond them is blended
            further, up to ridge regression alone; {} = never.
    """

    steps: int | None = None
    temperature: float = 1.0
    eta: float = 1.0
    noise: float = 1.0
    chain: Literal["segment", "global"] = "segment"
    samples: int = 1
    pick: Literal["mean", "support loss"] = "mean"
    stop: int | None = None
    mixing_weight: float = 1.0
    calibration_quantiles: Mapping[str, Sequence[float]] = field(default_factory=dict)
    renamed: ClassVar[Mapping[str, str]] = {"share": "mixing_weight", "usual": "calibration_quantiles"}

    def __post_init__(self) -> None:
        check_fields(self)
        if self.samples < 1 or self.temperature < 0:
            raise McdiError(f"samples = {self.samples} must be at least 1 and temperature = {self.temperature} not negative")
        if not 0 < self.mixing_weight <= 1:
            raise McdiError(f"mixing_weight = {self.mixing_weight} of the generated head: choose 0 < mixing_weight <= 1")


# The samplers that evaluation compares; "ddpm" is the paper's: T steps from Gaussian noise, one chain.
# Unless a recipe fixes one, training keeps the one that is best on validation tasks, as it tunes Adam's steps and rate.
SAMPLERS: dict[str, Sampling] = {
    "ddpm": Sampling(),
    "ddim": Sampling(eta=0.0),
    "mean steps": Sampling(noise=0.0),
    "deterministic": Sampling(temperature=0.0),
    "deterministic, 2 steps": Sampling(temperature=0.0, steps=2),
    "deterministic, 1 step": Sampling(temperature=0.0, steps=1),
}
# What validation tasks choose the mixing weight from, along with the sampler, where a network has a head to blend.
MIXING_WEIGHTS = (1.0, 0.75, 0.5)


@runtime_checkable
class SupportsSampling(Protocol):
    """A method that answers by sampling; regression is the special case without a chain."""

    space: WeightSpace | None

    @property
    def sampling(self) -> Sampling:
        """As it is run unless something else is asked."""

    @property
    def is_chain(self) -> bool:
        """Whether there is anything to sample: regression answers in one step."""

    def chain_steps(self, sampling: Sampling) -> int:
        """Denoising steps of a chain that is run so."""

    def with_sampling(self, sampling: Sampling) -> Self:
        """The same generator with another default."""

    def sample(
        self, net: Network, support: Examples, mask: Tensor, *, seed: Seed, sampling: Sampling | None = None
    ) -> Generated[Tensor]:
        """Every draw, (B, samples, U, D), and the confidence, (B,)."""

    def generate(
        self, net: Network, support: Examples, mask: Tensor, *, seed: Seed, sampling: Sampling | None = None
    ) -> Tensor:
        """(B, U, D): of several draws the mean, or the best on the support set."""

    def chain(
        self, net: Network, support: Examples, mask: Tensor, *, seed: Seed, sampling: Sampling | None = None
    ) -> list[tuple[int, Tensor]]:
        """[(t, weights (samples * B, U, D))], every state of the chain, before any blend."""


def best_on_support(net: Network, drawn: Tensor, support: Examples, mask: Tensor) -> Tensor:
    """Of several draws of every task the one with the lowest loss on its support set: (B, n, U, D) -> (B, U, D)."""
    losses = torch.stack([net.loss(weights, support, mask) for weights in drawn.unbind(1)], 1)
    return drawn[torch.arange(drawn.shape[0]), losses.argmin(1)]


def reduce_draws(net: Network, drawn: Tensor, support: Examples, mask: Tensor, sampling: Sampling) -> Tensor:
    """One set of weights a task, as `sampling.pick` says: (B, n, U, D) -> (B, U, D)."""
    return drawn.mean(1) if sampling.pick == "mean" else best_on_support(net, drawn, support, mask)
