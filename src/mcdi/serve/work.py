"""What does the one thread of torch do? Weights of many tasks at once, predictions, chains to look at."""

import time
from collections.abc import Hashable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.generator.api import Generator, Weights
from mcdi.generator.landscape import plane
from mcdi.serve import wire
from mcdi.serve.batching import Run
from mcdi.serve.decode import Examples
from mcdi.serve.handles import Kept

SENT = (32, 128)  # the most rows and columns of weights to look at
STATES = 101  # of a chain


class Options(NamedTuple):
    """What is asked of a chain; None: as trained."""

    steps: int | None = None
    temperature: float | None = None
    samples: int | None = None


class Call(NamedTuple):
    """What `Batcher.submit` is told: calls of one key may share a pass."""

    key: Hashable
    run: Run
    payload: Any
    size: int = 1


class Made(NamedTuple):
    weights: Weights
    trust: float


def generation(generator: Generator, examples: Examples, seed: int, options: Options) -> Call:
    """Call whose result is Made. Tasks share a pass that have as many examples and classes, and are asked the same."""
    shape = tuple(examples.x.shape) if isinstance(examples.x, Tensor) else (len(examples.x), len(examples.x[0]))
    alike = None if generator.seed_per_task else seed
    key = ("generate", id(generator), shape, len(examples.classes), options, alike)
    run = _solvable(partial(_generate, generator, options))
    return Call(key, run, (examples, seed), options.samples or 1)


def prediction(kept: Kept, x: Any) -> Call:
    """Call whose result is a tensor: probabilities (Q, classes), or a curve's values (Q,)."""
    shape = tuple(x.shape) if isinstance(x, Tensor) else (len(x), len(x[0]))
    shapes = tuple((n, tuple(w.shape)) for n, w in kept.weights.items())
    return Call(("predict", id(kept.generator), shape, shapes), partial(_predict, kept.generator), (kept, x))


def look(generator: Generator, examples: Examples, seed: int, options: Options, grid: int | None) -> Call:
    """Call whose result is a Chain, or with a grid a Landscape; never shared."""
    run = partial(_chain if grid is None else partial(_landscape, grid), generator, options)
    return Call(object(), _solvable(run), (examples, seed))


def unfit() -> McdiError:
    return McdiError("what was sent leads to numbers that are not finite: scale the examples as those of training are")


def _solvable(run: Run) -> Run:
    """Systems of equations that large numbers make singular are the sender's, too."""

    def guarded(jobs: list[Any]) -> list[Any]:
        try:
            return run(jobs)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise unfit() from error

    return guarded


def _stacked(generator: Generator, inputs: list[Any]) -> Any:
    """B tasks' inputs as (B, S, ...)."""
    if isinstance(inputs[0], Tensor):
        return torch.stack(inputs)
    return generator.network.read([text for texts in inputs for text in texts]).unflatten(0, (len(inputs), -1))


def _generate(generator: Generator, options: Options, jobs: list[tuple[Examples, int]]) -> list[Made | McdiError]:
    x = _stacked(generator, [e.x for e, _ in jobs])
    y = torch.stack([e.y for e, _ in jobs])
    seeds = [seed for _, seed in jobs]
    made, confidences = generator.sample((x, y), seed=seeds if generator.seed_per_task else seeds[0], **options._asdict())
    tasks = [{n: w[i].cpu().clone() for n, w in made.items()} for i in range(len(jobs))]  # no view of the others' weights
    return [Made(w, t) if _finite(*w.values()) else unfit() for w, t in zip(tasks, confidences.tolist(), strict=True)]


def _predict(generator: Generator, jobs: list[tuple[Kept, Any]]) -> list[Tensor | McdiError]:
    weights = {n: torch.stack([kept.weights[n] for kept, _ in jobs]) for n in jobs[0][0].weights}
    out = generator.predict(weights, _stacked(generator, [x for _, x in jobs])).cpu()
    if jobs[0][0].classes:
        out = F.softmax(out, -1)
    return [one if _finite(one) else unfit() for one in out]


def _finite(*tensors: Tensor) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in tensors)


def _chain(generator: Generator, options: Options, jobs: list[tuple[Examples, int]]) -> list[Any]:
    start = time.perf_counter()
    ((examples, seed),) = jobs
    chain = generator.chain((examples.x, examples.y), seed=seed, **options._asdict())
    if not _finite(chain.weights, chain.losses):
        return [unfit()]
    units, size = chain.weights.shape[1:]
    small = chain.weights
    if units > SENT[0] or size > SENT[1]:
        small = F.adaptive_avg_pool2d(small, (min(units, SENT[0]), min(size, SENT[1])))
    steps = [
        wire.Step(t=chain.times[i], weights=_rounded(small[i]), loss=float(chain.losses[i])) for i in _thinned(len(chain.times))
    ]
    return [wire.Chain(steps=steps, shape=(units, size), milliseconds=1000 * (time.perf_counter() - start))]


def _thinned(count: int) -> list[int]:
    return sorted({round(i) for i in torch.linspace(0, count - 1, min(count, STATES)).tolist()})


def _rounded(rows: Tensor) -> list[list[float]]:
    return [[round(v, 4) for v in row] for row in rows.tolist()]


def _landscape(grid: int, generator: Generator, options: Options, jobs: list[tuple[Examples, int]]) -> list[Any]:
    start = time.perf_counter()
    ((examples, seed),) = jobs
    chain = generator.chain((examples.x, examples.y), seed=seed, **options._asdict())
    if not _finite(chain.weights, chain.losses):
        return [unfit()]
    with torch.no_grad():
        drawn, paths = plane(generator.network, {"chain": chain.weights}, chain.weights[-1], chain.support, chain.mask, grid)
    if not _finite(torch.tensor(drawn["loss"])):
        return [unfit()]
    taken = 1000 * (time.perf_counter() - start)
    losses = chain.losses.tolist()
    return [wire.Landscape(**drawn, path=paths["chain"], times=chain.times, losses=losses, milliseconds=taken)]
