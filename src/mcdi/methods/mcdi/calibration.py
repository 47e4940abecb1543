"""Confidence: does a task resemble those of training? Its own support set tells.

A generator can be wrong, and sure of it, on tasks of another kind than it was trained on: photos known, sketches asked. Its
head then misfits the very examples that it was given, which it does not on tasks like those of training. Such heads are
blended with ridge regression, the more the rarer their misfit was in validation.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mcdi.networks.base import Network
from mcdi.types import Examples

FLAGGED = 0.05  # of validation tasks have a confidence below one
POINTS = 11  # quantiles that are kept, from 1 - FLAGGED to the largest


def support_log_odds(net: Network, weights: Tensor, support: Examples, mask: Tensor) -> Tensor:
    """Log odds that a head (B, U, D) gives a wrong class on its own support set, per wrong class, (B,).

    e^loss - 1 is the odds of all wrong classes of one example; divided by their number it is comparable between tasks of few
    classes and of many.
    """
    wrong = mask[:, : net.classes(mask.shape[1])].sum(1) - 1
    loss = net.loss(weights, support, mask)
    odds = loss + (-(-loss).expm1()).clamp(min=1e-12).log()  # log(e^loss - 1), which does not overflow
    return odds - wrong.clamp(min=1).log()


def calibration_quantiles(log_odds: Tensor) -> tuple[float, ...]:
    """What is kept of the support log odds of validation tasks (N,): the quantiles from 1 - FLAGGED to the largest."""
    return tuple(log_odds.quantile(torch.linspace(1 - FLAGGED, 1, POINTS, device=log_odds.device)).tolist())


def nearest_shot_quantiles(quantiles: Mapping[str, Sequence[float]], shots: int) -> Tensor:
    """The quantiles of the nearest number of shots, (POINTS,). By arithmetic: an export keeps the number of shots open."""
    numbers = torch.tensor([int(n) for n in quantiles])
    return torch.tensor(list(quantiles.values()))[(numbers - shots).abs().argmin()]


def confidence(log_odds: Tensor, quantiles: Sequence[float] | Tensor) -> Tensor:
    """1 for a task below all quantiles, 0 for one above all, by rank in between: (B,) -> (B,)."""
    return (log_odds[:, None] <= torch.as_tensor(quantiles, device=log_odds.device)).to(log_odds.dtype).mean(1)
