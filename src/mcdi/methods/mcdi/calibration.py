"""Is a task like those of training? Where its own examples surprise the head that was generated for it, they are right.

What is learnt on training tasks can be wrong for another kind of task, and be sure of it: a generator answers for photos where
it is shown sketches. It then misses the very examples that it was given; on tasks like those of training it does not.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mcdi.networks.base import Network
from mcdi.types import Examples

RARE = 0.05  # of validation tasks are doubted at all, the more the rarer their surprise
POINTS = 11  # of the distribution above that


def surprise(net: Network, weights: Tensor, support: Examples, mask: Tensor) -> Tensor:
    """The log odds that a head (B, U, D) gives a wrong class on its task's own examples, a class: -> (B,).

    e^loss - 1 is the odds of all wrong classes of one example; divided by their number it is comparable between tasks of few
    classes and of many.
    """
    wrong = mask[:, : net.classes(mask.shape[1])].sum(1) - 1
    return (net.loss(weights, support, mask).expm1() / wrong.clamp(min=1)).clamp(min=1e-12).log()


def usual(found: Tensor) -> tuple[float, ...]:
    """What is kept of the surprises of validation tasks (N,): the quantiles from 1 - RARE to the largest."""
    return tuple(found.quantile(torch.linspace(1 - RARE, 1, POINTS, device=found.device)).tolist())


def usual_of(known: Mapping[str, Sequence[float]], shots: int) -> Tensor:
    """What is known of the nearest shot number, (POINTS,). Looked up by arithmetic: an export keeps the shot number open."""
    numbers = torch.tensor([int(n) for n in known])
    return torch.tensor(list(known.values()))[(numbers - shots).abs().argmin()]


def trust(found: Tensor, known: Sequence[float] | Tensor) -> Tensor:
    """1 for a task whose surprise is usual, 0 for one above all that validation had, by rank in between: (B,) -> (B,)."""
    return (found[:, None] <= torch.as_tensor(known, device=found.device)).to(found.dtype).mean(1)
