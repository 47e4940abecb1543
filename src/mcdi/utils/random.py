"""Where does the noise of a batch come from? From one stream, or one of every task, whatever other tasks stand beside it."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcdi.types import SPLITS

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


def uniform(split: str, seeds: Sequence[int], *parts: int, count: int) -> NDArray[np.float64]:
    """(B, count) numbers in [0, 1) decided by (split, seed, parts) alone, so that a task is the same in every batch.

    SplitMix64 as a counter-based generator: one vectorised pass instead of a generator object a task (100x faster).
    """
    with np.errstate(over="ignore"):
        key = np.full(len(seeds), SPLITS.index(split) + 1, dtype=np.uint64)
        columns = [np.asarray(seeds, dtype=np.int64), *(np.full(len(seeds), p, dtype=np.int64) for p in parts)]
        for column in columns:
            key = _mix(key * np.uint64(0x9E3779B97F4A7C15) + column.astype(np.uint64))
        counter = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return (_mix(key[:, None] + counter) >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
