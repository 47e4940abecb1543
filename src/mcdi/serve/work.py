"""Computations of the torch thread: weights of many tasks at once, predictions, and traced chains."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.generator.api import Generator, Weights
from mcdi.generator.landscape import plane
from mcdi.methods.sampling import Generated
from mcdi.serve import wire
from mcdi.serve.batching import Job
from mcdi.serve.decode import SupportSet
from mcdi.serve.handles import StoredWeights
from mcdi.utils.tensors import finite

Task = tuple[SupportSet, int]  # and its seed
MAX_SHAPE = (32, 128)  # rows and columns of the weights of a traced chain
MAX_STATES = 101  # of a traced chain


class Options(NamedTuple):
    """Options of the sampling chain; None: as trained."""

    steps: int | None = None
    temperature: float | None = None
    samples: int | None = None


def generation(generator: Generator, support: SupportSet, seed: int, options: Options) -> Job:
    """A job that returns Generated weights. Tasks with equal shapes and options can run in one batch."""
    seed_key = None if generator.seed_per_task else seed
    key = ("generate", id(generator), _shape(support.x), len(support.classes), options, seed_key)
    return Job(key, partial(_generate, generator, options), (support, seed), options.samples or 1)


def prediction(stored: StoredWeights, x: Any) -> Job:
    """A job that returns probabilities (Q, classes), or values of a regression (Q,)."""
    shapes = tuple((n, tuple(w.shape)) for n, w in stored.weights.items())
    return Job(("predict", id(stored.generator), _shape(x), shapes), partial(_predict, stored.generator), (stored, x))


def trace_chain(generator: Generator, support: SupportSet, seed: int, options: Options, grid: int | None) -> Job:
    """A job that returns a Chain, or with a grid a Landscape; it never shares a batch."""
    return Job(object(), partial(_trace, generator, options, grid), (support, seed))


def _shape(x: Any) -> tuple[int, ...]:
    return tuple(x.shape) if isinstance(x, Tensor) else (len(x), len(x[0]))


def _not_finite() -> McdiError:
    return McdiError("these examples lead to numbers that are not finite: scale them like the examples of training")


@contextmanager
def _refusing_singular() -> Iterator[None]:
    """Singular systems of equations come from the sender's numbers, too."""
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise _not_finite() from error


def _stack(generator: Generator, inputs: list[Any]) -> Any:
    """The inputs of B tasks as (B, S, ...)."""
    if isinstance(inputs[0], Tensor):
        return torch.stack(inputs)
    return generator.network.read([text for texts in inputs for text in texts]).unflatten(0, (len(inputs), -1))


@_refusing_singular()
def _generate(generator: Generator, options: Options, jobs: list[Task]) -> list[Generated[Weights] | McdiError]:
    x = _stack(generator, [support.x for support, _ in jobs])
    y = torch.stack([support.y for support, _ in jobs])
    seeds = [seed for _, seed in jobs]
    weights, confidence = generator.sample((x, y), seed=seeds if generator.seed_per_task else seeds[0], **options._asdict())
    tasks = [{n: w[i].cpu().clone() for n, w in weights.items()} for i in range(len(jobs))]  # not views of the whole batch
    return [Generated(w, c) if _finite(*w.values()) else _not_finite() for w, c in zip(tasks, confidence.cpu(), strict=True)]


def _predict(generator: Generator, jobs: list[tuple[StoredWeights, Any]]) -> list[Tensor | McdiError]:
    weights = {n: torch.stack([stored.weights[n] for stored, _ in jobs]) for n in jobs[0][0].weights}
    out = generator.predict(weights, _stack(generator, [x for _, x in jobs])).cpu()
    if jobs[0][0].classes:
        out = F.softmax(out, -1)
    return [one if _finite(one) else _not_finite() for one in out]


def _finite(*tensors: Tensor) -> bool:
    return all(finite(t) for t in tensors)


@_refusing_singular()
def _trace(generator: Generator, options: Options, grid: int | None, jobs: list[Task]) -> list[Any]:
    """[a Chain, or with a grid a Landscape, or an McdiError] of the only job."""
    start = time.perf_counter()
    ((support, seed),) = jobs
    chain = generator.chain((support.x, support.y), seed=seed, **options._asdict())
    if not _finite(chain.weights, chain.losses):
        return [_not_finite()]
    if grid is None:
        _, rows, columns = chain.weights.shape
        shown = F.adaptive_avg_pool2d(chain.weights, (min(rows, MAX_SHAPE[0]), min(columns, MAX_SHAPE[1])))
        shown = shown.double().round(decimals=4)
        count = len(chain.times)
        states = sorted({round(i) for i in torch.linspace(0, count - 1, min(count, MAX_STATES)).tolist()})
        steps = [wire.Step(t=chain.times[i], weights=shown[i].tolist(), loss=float(chain.losses[i])) for i in states]
        return [wire.Chain(steps=steps, shape=(rows, columns), milliseconds=1000 * (time.perf_counter() - start))]
    with torch.no_grad():
        surface, paths = plane(generator.network, {"chain": chain.weights}, chain.weights[-1], chain.support, chain.mask, grid)
    if not _finite(torch.tensor(surface["loss"])):
        return [_not_finite()]
    milliseconds, losses = 1000 * (time.perf_counter() - start), chain.losses.tolist()
    return [wire.Landscape(**surface, path=paths["chain"], times=chain.times, losses=losses, milliseconds=milliseconds)]
