"""Evaluation: score and speed of a method on unseen tasks, its memory of training targets, its chain over a loss."""

import statistics
import timeit
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mcdi.experiments.statistics import interval
from mcdi.generator.landscape import plane
from mcdi.methods import WeightGenerator
from mcdi.methods.sampling import SAMPLERS, SupportsSampling
from mcdi.tasks.family import TaskFamily
from mcdi.types import Examples, TaskBatch
from mcdi.weights import WeightSpace

EXAMPLES = 250  # of a landscape
NOISE = 0.1  # standard deviation of what makes noised copies of training targets, which a memorising generator would resemble


def distance(weights: Tensor, reference: Tensor, space: WeightSpace) -> float:
    """Mean square of the difference to theta_M (B, U, D), in units of the training targets' standard deviation."""
    return float((space.standardise(weights) - space.standardise(reference)).square().mean())


def evaluate(
    method: WeightGenerator, family: TaskFamily, *, tasks: int, seed: int, reference: Tensor | None = None
) -> dict[str, Any]:
    """Score on test tasks 0..tasks-1, for every shot number of the family.

    Args:
        method: trained. One that samples is measured with every sampler too, and along its chain at the first shot number.
        reference: theta_M (tasks, U, D) of the same tasks; with it the distance of generated weights ("mse") is given too.

    Returns:
        {"shots": {shots: {"mean", "ci95", "mse", "scores" of the tasks, "samplers"}}, "curve": [{"t", "score", "mse"}]}.
    """
    net = family.downstream
    space = method.space if isinstance(method, SupportsSampling) else None
    out: dict[str, Any] = {"shots": {}, "curve": []}

    def measure(weights: Tensor, batch: TaskBatch) -> tuple[Tensor, float | None]:
        with torch.no_grad():
            scores = net.score(weights, batch.query, batch.mask)
        return scores, None if space is None or reference is None else distance(weights, reference, space)

    for shots in family.shots:
        batch = family.sample("test", range(tasks), shots=shots)
        scores, mse = measure(method.generate(net, batch.support, batch.mask, seed=seed), batch)
        row: dict[str, Any] = {**interval(scores), "mse": mse, "scores": [round(v, 6) for v in scores.tolist()]}
        if isinstance(method, SupportsSampling) and method.is_chain:
            row["samplers"] = {}
            for name, sampling in SAMPLERS.items():
                weights = method.generate(net, batch.support, batch.mask, seed=seed, sampling=sampling)
                scores, mse = measure(weights, batch)
                row["samplers"][name] = {**interval(scores), "mse": mse}
            if shots == family.shots[0]:
                for t, weights in method.chain(net, batch.support, batch.mask, seed=seed, sampling=SAMPLERS["ddpm"]):
                    scores, mse = measure(weights, batch)
                    out["curve"].append({"t": t, "score": float(scores.mean()), "mse": mse})
        out["shots"][str(shots)] = row
    return out


def milliseconds(call: Callable[[], Any], repeats: int = 30) -> float:
    """Median wall time of `call` in ms, after three calls."""
    return 1000 * statistics.median(timeit.repeat(call, number=1, repeat=repeats + 3)[3:])


def peak_rate(size: int = 1024) -> float:
    """FLOP/s of a product of two size x size matrices, the best of five, on as many threads as torch uses."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / min(timeit.repeat(lambda: a @ b, number=1, repeat=6)[1:])


def latency(method: WeightGenerator, family: TaskFamily) -> dict[str, float]:
    """Milliseconds for one task (batch 1): embed its support images, generate the weights, apply them to its queries."""
    net = family.downstream
    one = family.sample("test", [0])
    embedder = getattr(net, "embedder", None)
    shape = () if embedder is None else embedder.shape
    images = torch.zeros(1, one.support.x.shape[1], *shape, dtype=torch.uint8)
    weights = method.generate(net, one.support, one.mask, seed=0)
    with torch.no_grad():
        return {
            "embed": 0.0 if embedder is None else milliseconds(lambda: net.embed(images)),
            "generate": milliseconds(lambda: method.generate(net, one.support, one.mask, seed=0)),
            "apply": milliseconds(lambda: net.predict(weights, one.query.x)),
        }


def _nearest(points: Tensor, to: Tensor) -> list[float]:
    """Distance of each point (n, D) to its nearest neighbour in `to` (m, D)."""
    distances = torch.cat([torch.cdist(part, to).min(1).values for part in points.split(512)])
    return [round(v, 4) for v in distances.tolist()]


def novelty(generated: Tensor, real: Tensor, trained_on: Tensor, space: WeightSpace) -> dict[str, Any]:
    """Distances to the nearest stored training target, per unit and standardised: whether a generator memorises.

    Args:
        generated, real: (B, U, D) for the same unseen tasks, by the method and by the optimiser.
        trained_on: (N, U, D), training targets.
    """
    g, r, t = (space.standardise(w).flatten(0, 1) for w in (generated, real, trained_on))
    generator = torch.Generator().manual_seed(0)
    copies = t[torch.randperm(len(t), generator=generator)[: len(g)]]
    noised = copies + NOISE * torch.randn(copies.shape, generator=generator)
    return {
        "generated": _nearest(g, t),
        "targets": _nearest(r, t),
        "noised": _nearest(noised, t),
        "scale_generated": [round(v, 4) for v in generated.flatten(1).norm(dim=1).tolist()],
        "scale_real": [round(v, 4) for v in real.flatten(1).norm(dim=1).tolist()],
    }


@torch.no_grad()
def landscape(
    methods: Mapping[str, SupportsSampling], family: TaskFamily, targets: Tensor, theta0: Tensor, *, grid: int = 41
) -> dict[str, Any]:
    """Inference chains over the loss of the first test task, in the plane of largest variance of chains and trajectory.

    Args:
        targets, theta0: (k, U, D), the trajectory of that task, and (U, D), where it began.
        grid: points of the plane along each axis; the loss is on at most EXAMPLES of the examples of the task's classes, evenly
            taken: every point is a network that answers all of them.
    """
    net = family.downstream
    one = family.sample("test", [0])
    data = family.training_data("test", [0])
    chosen = torch.linspace(0, data.y.shape[1] - 1, min(EXAMPLES, data.y.shape[1]), dtype=torch.float64).round().long()
    data = Examples(data.x[:, chosen], data.y[:, chosen])
    chains = {
        n: torch.cat([w for _, w in m.chain(net, one.support, one.mask, seed=0, sampling=SAMPLERS["ddpm"])])
        for n, m in methods.items()
    }
    trajectory = torch.cat([theta0[None], targets])
    # The paper's figure: PCA, here around theta_M so that the optimum lies in the plane.
    drawn, flat = plane(net, {"trajectory": trajectory, **chains}, trajectory[-1], data, one.mask, grid)
    names = ["theta_0", *(f"theta_{i}d" for i in range(1, len(targets))), "theta_M"]
    points = dict(zip(names, flat["trajectory"], strict=True))
    return {**drawn, "chains": {n: flat[n] for n in methods}, "points": points}
