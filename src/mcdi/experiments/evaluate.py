"""How good and how fast is a method on tasks that it never saw?"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mcdi.generator.landscape import plane
from mcdi.methods import WeightGenerator
from mcdi.methods.sampling import SAMPLERS, Sampling, SupportsSampling
from mcdi.tasks.family import TaskFamily
from mcdi.types import TaskBatch
from mcdi.weights import WeightSpace

# Student's t at 0.975 for 1, 2, ... degrees of freedom.
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)


def interval(scores: Tensor) -> dict[str, float]:
    """Mean and half-width of the 95 % interval over tasks of scores (B,): Student's for few, normal beyond its table."""
    t = T975[len(scores) - 2] if 2 <= len(scores) <= len(T975) + 1 else 1.96
    half = t * float(scores.std()) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
    return {"mean": float(scores.mean()), "ci95": half}


def distance(weights: Tensor, reference: Tensor, space: WeightSpace) -> float:
    """Mean square of the difference to theta_M (B, U, D), in units of the training targets' standard deviation."""
    return float((space.standardise(weights) - space.standardise(reference)).square().mean())


def evaluate(
    method: WeightGenerator, family: TaskFamily, *, tasks: int, seed: int, split: str = "test", reference: Tensor | None = None
) -> dict[str, Any]:
    """Score on tasks 0..tasks-1 of `split`, for every shot number of the family.

    reference: theta_M (tasks, U, D) of the same tasks; with it the distance of generated weights ("mse") is given too.
    Methods that sample are measured with every sampler of SAMPLERS, and along the chain of the first shot number.
    """
    out: dict[str, Any] = {"shots": {}, "curve": []}
    for shots in family.shots:
        batch = family.sample(split, range(tasks), shots=shots)
        out["shots"][str(shots)] = row = _measure(method, family, batch, seed, reference, None)
        if isinstance(method, SupportsSampling) and method.is_chain:
            row["samplers"] = {
                n: _measure(method, family, batch, seed, reference, sampling) for n, sampling in SAMPLERS.items()
            }
            if shots == family.shots[0]:
                out["curve"] = _curve(method, family, batch, seed, reference)
    return out


def _measure(
    method: WeightGenerator,
    family: TaskFamily,
    batch: TaskBatch,
    seed: int,
    reference: Tensor | None,
    sampling: Sampling | None,
) -> dict[str, Any]:
    net = family.downstream
    extra: dict[str, Any] = {} if sampling is None else {"sampling": sampling}
    weights = method.generate(net, batch.support, batch.mask, seed=seed, **extra)
    with torch.no_grad():
        figures: dict[str, Any] = interval(net.score(weights, batch.query, batch.mask))
    space = method.space if isinstance(method, SupportsSampling) else None
    figures["mse"] = None if space is None or reference is None else distance(weights, reference, space)
    return figures


def _curve(
    method: SupportsSampling, family: TaskFamily, batch: TaskBatch, seed: int, reference: Tensor | None
) -> list[dict[str, Any]]:
    net = family.downstream
    points = []
    for t, weights in method.chain(net, batch.support, batch.mask, seed=seed, sampling=SAMPLERS["ddpm"]):
        score = float(net.score(weights, batch.query, batch.mask).mean())
        far = None if reference is None or method.space is None else distance(weights, reference, method.space)
        points.append({"t": t, "score": score, "mse": far})
    return points


def milliseconds(call: Callable[[], Any], repeats: int = 30, device: str = "cpu") -> float:
    """Median wall time of `call` in ms, warm, synchronised."""
    times = []
    for r in range(repeats + 3):
        if device != "cpu":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        if r >= 3:
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def latency(method: WeightGenerator, family: TaskFamily, *, device: str = "cpu") -> dict[str, float]:
    """Milliseconds for one task (batch 1): embed its support images, generate the weights, apply them to its queries."""
    net = family.downstream
    one = family.sample("test", [0]).to(device)
    embedder = getattr(net, "embedder", None)
    shape = () if embedder is None else embedder.shape
    images = torch.zeros(1, one.support.x.shape[1], *shape, dtype=torch.uint8, device=device)
    weights = method.generate(net, one.support, one.mask, seed=0)
    with torch.no_grad():
        return {
            "embed": 0.0 if embedder is None else milliseconds(lambda: net.embed(images), device=device),
            "generate": milliseconds(lambda: method.generate(net, one.support, one.mask, seed=0), device=device),
            "apply": milliseconds(lambda: net.predict(weights, one.query.x), device=device),
        }


def nearest(points: Tensor, to: Tensor, *, skip_self: bool = False) -> list[float]:
    """Distance of each point (n, D) to its nearest neighbour in `to` (m, D)."""
    out = []
    for number, part in enumerate(points.split(512)):
        far = torch.cdist(part, to)
        if skip_self:
            far[torch.arange(len(part)), torch.arange(len(part)) + 512 * number] = float("inf")
        out.append(far.min(1).values)
    return [round(v, 4) for v in torch.cat(out).tolist()]


def novelty(generated: Tensor, real: Tensor, trained_on: Tensor, space: WeightSpace, *, noise: float = 0.1) -> dict[str, Any]:
    """Is the generator memorising? Distances, per unit and standardised, to the nearest stored training target.

    generated, real (B, U, D): for the same unseen tasks, by the method and by the optimiser; trained_on (N, U, D).
    "noised": training targets plus Gaussian noise of std `noise`, what a memorising generator would look like.
    """
    g, r, t = (space.standardise(w).flatten(0, 1) for w in (generated, real, trained_on))
    generator = torch.Generator().manual_seed(0)
    copies = t[torch.randperm(len(t), generator=generator)[: len(g)]]
    noised = copies + noise * torch.randn(copies.shape, generator=generator)
    return {
        "generated": nearest(g, t),
        "targets": nearest(r, t),
        "noised": nearest(noised, t),
        "scale_generated": [round(v, 4) for v in generated.flatten(1).norm(dim=1).tolist()],
        "scale_real": [round(v, 4) for v in real.flatten(1).norm(dim=1).tolist()],
    }


@torch.no_grad()
def landscape(
    methods: dict[str, SupportsSampling],
    family: TaskFamily,
    targets: Tensor,
    theta0: Tensor,
    *,
    task: int = 0,
    seed: int = 0,
    grid: int = 41,
) -> dict[str, Any]:
    """Inference chains over the loss of one test task, in the plane of largest variance of chains and trajectory.

    targets (k, U, D): the trajectory of that task; theta0 (U, D). The loss is on all examples of the task's classes.
    """
    net = family.downstream
    one = family.sample("test", [task])
    data = family.training_data("test", [task])
    chains = {
        n: torch.cat([w for _, w in m.chain(net, one.support, one.mask, seed=seed, sampling=SAMPLERS["ddpm"])])
        for n, m in methods.items()
    }
    trajectory = torch.cat([theta0[None], targets])
    # The paper's figure: PCA, here around theta_M so that the optimum lies in the plane.
    drawn, flat = plane(net, {"trajectory": trajectory, **chains}, trajectory[-1], data, one.mask, grid)
    names = ["theta_0", *(f"theta_{i}d" for i in range(1, len(targets))), "theta_M"]
    points = dict(zip(names, flat["trajectory"], strict=True))
    return {**drawn, "chains": {n: flat[n] for n in methods}, "points": points}
