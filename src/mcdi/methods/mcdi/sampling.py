"""How is a chain run, once a generator is trained?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.networks.base import Network
from mcdi.types import Examples


@dataclass(frozen=True)
class Sampling:
    """How a chain is run. steps None = T. temperature scales the initial noise (0: the chain starts at the mean);
    noise scales what is added in between (x temperature); stop = i ends at theta_{i d}. Of several samples the weights
    are averaged ("mean"), or those with the lowest loss on the support set are kept ("support loss"). guidance g goes
    from the answer without a condition g times as far as to the one with it (2207.12598; for settings.drop > 0).
    share: of a head, how much is the generated one; the rest is the least-squares classifier of the support set (sets.leant).
    What was learnt on training classes is a little too sure on unseen ones, and the two err apart from each other.
    usual: by shot number, how much a task's own examples may surprise the head before the share is lowered, to nothing for a
    task unlike any that validation had (leaning.trust); {} = it never is."""

    steps: int | None = None
    temperature: float = 1.0
    eta: float = 1.0
    noise: float = 1.0
    chain: Literal["segment", "global"] = "segment"
    samples: int = 1
    pick: Literal["mean", "support loss"] = "mean"
    guidance: float = 1.0
    stop: int | None = None
    share: float = 1.0
    usual: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.samples < 1 or self.temperature < 0:
            raise McdiError(f"samples = {self.samples} must be at least 1 and temperature = {self.temperature} not negative")
        if not 0 < self.share <= 1:
            raise McdiError(f"share = {self.share} of the generated head: choose 0 < share <= 1")


# The ways of sampling that evaluation compares; "ddpm" is the paper's reading: T steps from Gaussian noise, one chain.
# Unless a recipe fixes one, training keeps the one that is best on validation tasks, as it tunes Adam's steps and rate.
SAMPLERS: dict[str, Sampling] = {
    "ddpm": Sampling(),
    "ddim": Sampling(eta=0.0),
    "mean": Sampling(noise=0.0),
    "cold": Sampling(temperature=0.0),
    "cold, 2 steps": Sampling(temperature=0.0, steps=2),
    "cold, 1 step": Sampling(temperature=0.0, steps=1),
}
# Shares that validation tasks choose from, along with the sampler, where a network has such heads.
SHARES = (1.0, 0.75, 0.5)


def best_fit(net: Network, drawn: Tensor, support: Examples, mask: Tensor) -> Tensor:
    """Of several weights of every task those with the lowest loss on its support set: (B, n, U, D) -> (B, U, D)."""
    losses = torch.stack([net.loss(weights, support, mask) for weights in drawn.unbind(1)], 1)
    return drawn[torch.arange(drawn.shape[0]), losses.argmin(1)]
