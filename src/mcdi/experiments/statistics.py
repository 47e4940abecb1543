"""Intervals of scores: over tasks, over seeds, and of differences that are paired by task."""

import functools
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

import torch
from torch import Tensor


class Estimate(NamedTuple):
    """A mean over seeds, the standard deviation over seeds, and the half-width of the 95 % interval (see report.table.RULE)."""

    mean: float
    std: float
    ci95: float


@functools.cache
def student_t(probability: float, degrees: float) -> float:
    """The quantile of Student's t-distribution, for 0.5 <= probability < 1 and whole degrees of freedom, or infinity.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    if math.isinf(degrees):
        return NormalDist().inv_cdf(probability)
    low, high = 0.0, math.pi / 2  # t = sqrt(degrees) tan(angle)
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, int(degrees)) < 2 * probability - 1 else (low, angle)
    return math.sqrt(degrees) * math.tan(low)


def _within(angle: float, degrees: int) -> float:
    """P(|t| < sqrt(degrees) tan(angle))."""
    odd = degrees % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * math.cos(angle) ** 2
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def interval(scores: Tensor) -> dict[str, float]:
    """Mean and half-width of the 95 % interval over tasks of scores (B,), Student's; 0 for one task."""
    n = len(scores)
    half = student_t(0.975, n - 1) * float(scores.std()) / n**0.5 if n > 1 else 0.0
    return {"mean": float(scores.mean()), "ci95": half}


def over_seeds(means: Sequence[float], within: float) -> Estimate:
    """Of the means of seeds, `within` being the half-width over tasks within a seed."""
    n = len(means)
    if n == 1:
        return Estimate(means[0], 0.0, within)
    std = stdev(means)
    return Estimate(fmean(means), std, math.hypot(student_t(0.975, n - 1) * std / math.sqrt(n), within))


def paired(mine: Mapping[int, tuple[Tensor, int]], other: Mapping[int, tuple[Tensor, int]]) -> Estimate:
    """The difference `mine` - `other`, task by task; each is {seed: (scores of tasks (n,), number of the first task)}. A method
    of one seed is compared with every seed of the other; where one was measured on fewer tasks, on those."""
    differences, starts = [], set()
    for seed in sorted(set(mine) | set(other)):
        (a, a_first), (b, b_first) = (side.get(seed, next(iter(side.values()))) for side in (mine, other))
        start, end = max(a_first, b_first), min(a_first + len(a), b_first + len(b))
        differences.append(a[start - a_first : end - a_first] - b[start - b_first : end - b_first])
        starts.add(start)
    # Where tasks are the same for all seeds, the interval over tasks is that of their mean difference over seeds.
    tasks = torch.cat(differences) if len(starts) > 1 else torch.stack(differences).mean(0)
    return over_seeds([float(d.mean()) for d in differences], interval(tasks)["ci95"])
