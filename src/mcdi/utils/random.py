"""Where does the noise of a batch come from? From one stream, or one of every task, whatever other tasks stand beside it."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Of all tasks of a batch together, or one of every task; or the numbers themselves, one step's after another.
Seed = int | Sequence[int] | Iterator[Tensor]
Noise = torch.Generator | Sequence[torch.Generator] | Iterator[Tensor] | None


def noise_of(seed: Seed, device: torch.device) -> Noise:
    if isinstance(seed, Iterator):
        return seed
    if isinstance(seed, int):
        return torch.Generator(device).manual_seed(seed)
    return [torch.Generator(device).manual_seed(s) for s in seed]


def normal(shape: Sequence[int], noise: Noise, like: Tensor) -> Tensor:
    """Standard Gaussian numbers of `like`'s type and place; of several streams each gives as many rows, task by task."""
    if isinstance(noise, Iterator):
        return next(noise)
    if noise is None or isinstance(noise, torch.Generator):
        return torch.randn(*shape, generator=noise, device=like.device, dtype=like.dtype)
    rows, rest = shape[0] // len(noise), shape[1:]
    return torch.cat([torch.randn(rows, *rest, generator=g, device=like.device, dtype=like.dtype) for g in noise])
