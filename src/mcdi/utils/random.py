"""Random numbers from explicit seeds: noise of a batch or of each of its tasks, and counter-based numbers of tasks."""

from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.types import SPLITS

# A seed of a whole batch, one a task (a task's noise then does not depend on the batch), or the noise of every step itself.
Seed = int | Sequence[int] | Iterator[Tensor]
Noise = torch.Generator | Sequence[torch.Generator] | Iterator[Tensor] | None


def checked_seed(seed: Any) -> int:
    """A seed in -2^63 .. 2^63 - 1, which torch and numpy take; torch draws the same of n and of n + 2^64.

    Args:
        seed: an integer of Python, numpy or torch.

    Raises:
        McdiError: a bool, a real number, a string or anything else, or an integer of more than 64 bits.
    """
    number = seed.item() if isinstance(seed, Tensor | np.ndarray) and seed.ndim == 0 else seed
    if isinstance(number, bool) or not isinstance(number, Integral):
        raise McdiError(f"seed = {seed!r} is no integer: choose one, such as 0")
    if not -(2**63) <= int(number) < 2**64:
        raise McdiError(f"seed = {number} has more than 64 bits: choose a smaller one")
    return _wrapped(int(number))


def _wrapped(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


def checked_seeds(seed: Any) -> Seed:
    """Of a whole batch, or one a task, as `checked_seed`; noise that is given is handed through."""
    if isinstance(seed, Iterator):
        return seed
    several = isinstance(seed, Sequence) or (isinstance(seed, Tensor | np.ndarray) and seed.ndim > 0)
    return [checked_seed(s) for s in seed] if several and not isinstance(seed, str | bytes) else checked_seed(seed)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Random numbers of one step of a training, the same in a resumed one."""
    return torch.Generator().manual_seed(_wrapped(seed * 1_000_003 + step))


def noise_streams(seed: Seed, device: torch.device) -> Noise:
    """The generators that `normal` draws from: one of the batch, or one a task; noise that is given is handed through."""
    seeds = checked_seeds(seed)
    if isinstance(seeds, int):
        return torch.Generator(device).manual_seed(seeds)
    return seeds if isinstance(seeds, Iterator) else [torch.Generator(device).manual_seed(s) for s in seeds]


def normal(shape: Sequence[int], noise: Noise, like: Tensor) -> Tensor:
    """Standard Gaussian numbers.

    Args:
        shape: of the result; with several streams its first dimension is a multiple of their number.
        noise: of `noise_streams`; several streams give equally many rows each, task by task.
        like: decides type and device.
    """
    if isinstance(noise, Iterator):
        return next(noise)
    if noise is None or isinstance(noise, torch.Generator):
        return torch.randn(*shape, generator=noise, device=like.device, dtype=like.dtype)
    rows, rest = shape[0] // len(noise), shape[1:]
    return torch.cat([torch.randn(rows, *rest, generator=g, device=like.device, dtype=like.dtype) for g in noise])


def uniform(split: str, seeds: Sequence[int], *parts: int, count: int) -> NDArray[np.float64]:
    """Uniform numbers that depend on (split, seed, parts) only, so that a task is the same in every batch.

    SplitMix64 as a counter-based generator: one vectorised pass, 100 times faster than a generator object a task.

    Args:
        split, seeds: of B tasks.
        parts: further numbers that tell draws of one task apart.
        count: numbers a task.

    Returns:
        (B, count), in [0, 1).
    """
    with np.errstate(over="ignore"):
        key = np.full(len(seeds), SPLITS.index(split) + 1, dtype=np.uint64)
        own = np.asarray(seeds)
        own = own if own.dtype.kind == "i" else np.array([checked_seed(s) for s in seeds], dtype=np.int64)
        columns = [own, *(np.full(len(seeds), p, dtype=np.int64) for p in parts)]
        for column in columns:
            key = _mix(key * np.uint64(0x9E3779B97F4A7C15) + column.astype(np.int64).astype(np.uint64))
        counter = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return (_mix(key[:, None] + counter) >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
