"""The study `uncertainty`: calibration, and detection of unknown classes, for ensembles of generated heads."""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.experiments.run import Context
from mcdi.experiments.studies.variants import Measured, Variant
from mcdi.methods import WeightGenerator
from mcdi.methods.sampling import SAMPLERS, SupportsSampling
from mcdi.networks.base import Network
from mcdi.types import TaskBatch

SAMPLES = (1, 4, 16)
TEMPERATURES = tuple(2 ** (j / 4) for j in range(-16, 13))


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over `bins` equal bins (1706.04599, eq. 3): (N, C), (N,) -> [0, 1]."""
    confidence, choice = probabilities.max(-1)
    right = (choice == labels).double()
    index = (confidence * bins).long().clamp(max=bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, right - confidence.double())
    return float(gap.abs().sum() / len(labels))


def auroc(familiar: Tensor, unknown: Tensor) -> float:
    """Probability that an unknown example scores higher than a familiar one, ties counting half."""
    both = torch.cat([familiar, unknown])
    _, index, count = both.unique(return_inverse=True, return_counts=True)
    rank = count.cumsum(0).double() - (count.double() - 1) / 2  # mean rank of equal values
    wins = rank[index][len(familiar) :].sum() - len(unknown) * (len(unknown) + 1) / 2
    return float(wins / (len(familiar) * len(unknown)))


@torch.no_grad()
def ensembles(context: Context, variant: Variant, method: WeightGenerator, seed: int) -> list[Measured]:
    """Accuracy, NLL and ECE (raw, and with one temperature tuned on validation tasks), and detection of unknown classes.

    For a chain: the answer as used; n DDPM samples whose predictions are averaged, or whose weights are. Unknown
    examples are queries of another task with no class in common; AUROC by the entropy of the mean prediction and, for
    ensembles, by the mutual information between prediction and sample (1112.5745).
    """
    rows, other, family, net = [], disjoint_tasks(context), context.family, context.family.downstream
    for shots in family.shots:
        val = family.sample("val", range(min(context.tasks, 300)), shots=shots)
        test = family.sample("test", range(context.tasks), shots=shots)
        for name, (for_val, for_test) in _answers(net, method, (val, test), seed).items():
            on_val = torch.stack([net.logits(w, val.query.x, val.mask) for w in for_val])
            x, y = test.query
            on_test, on_unknown = (torch.stack([net.logits(w, q, test.mask) for w in for_test]) for q in (x, x[other]))
            temperature = min(TEMPERATURES, key=lambda t: _nll(on_val, val.query.y, t))
            mean, unknown = _mean(on_test, temperature), _mean(on_unknown, temperature)
            figures = {
                "temperature": temperature,
                "NLL": _nll(on_test, y, 1.0),
                "NLL, tuned": _nll(on_test, y, temperature),
                "ECE": 100 * expected_calibration_error(_mean(on_test, 1.0).flatten(0, 1), y.flatten()),
                "ECE, tuned": 100 * expected_calibration_error(mean.flatten(0, 1), y.flatten()),
                "AUROC, entropy": 100 * auroc(_entropy(mean).flatten(), _entropy(unknown).flatten()),
            }
            if len(on_test) > 1:
                # Mutual information: entropy of the mean prediction minus mean entropy of the predictions.
                single = [_entropy((logits / temperature).softmax(-1)).mean(0) for logits in (on_test, on_unknown)]
                information = [(_entropy(p) - h).flatten() for p, h in zip((mean, unknown), single, strict=True)]
                figures["AUROC, information"] = 100 * auroc(*information)
            rows.append(Measured({"shots": shots, "answer": name}, figures, (mean.argmax(-1) == y).float().mean(1)))
    return rows


def _answers(net: Network, method: WeightGenerator, tasks: tuple[TaskBatch, ...], seed: int) -> dict[str, list[Tensor]]:
    """Every kind of answer: the weights (samples, B, U, D) of the validation and of the test tasks."""
    answers = {"as used": [method.generate(net, b.support, b.mask, seed=seed)[None] for b in tasks]}
    if isinstance(method, SupportsSampling) and method.is_chain:
        ask = partial(method.sample, seed=seed, sampling=replace(SAMPLERS["ddpm"], samples=max(SAMPLES)))
        drawn = [ask(net, b.support, b.mask).weights.transpose(0, 1) for b in tasks]
        for n in SAMPLES:
            answers[f"{n} samples, mean prediction" if n > 1 else "1 sample"] = [w[:n] for w in drawn]
            if n > 1:
                answers[f"{n} samples, mean weights"] = [w[:n].mean(0, keepdim=True) for w in drawn]
    return answers


def disjoint_tasks(context: Context) -> Tensor:
    """For every test task the next one, cyclically, without a common class: (B,). Raises McdiError if there is none."""
    count = context.tasks
    columns = context.family.columns("test", range(count))
    if "classes" not in columns:
        raise McdiError(f"{context.recipe.name} has no classes, so none can be unknown: choose a recipe of classifiers")
    member = F.one_hot(columns["classes"]).sum(1).float()  # (B, classes)
    disjoint = member @ member.T == 0
    if not bool(disjoint.any(1).all()):
        raise McdiError(f"a test task shares a class with all {count} others: raise evaluation.tasks or the number of classes")
    turn = (torch.arange(count) - torch.arange(count)[:, None]) % count
    return torch.where(disjoint, turn, count).argmin(1)


def _mean(logits: Tensor, temperature: float) -> Tensor:
    return (logits / temperature).softmax(-1).mean(0)


def _nll(logits: Tensor, labels: Tensor, temperature: float) -> float:
    mean = _mean(logits, temperature).clamp(min=1e-12)
    return float(F.nll_loss(mean.log().flatten(0, 1), labels.flatten()))


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=1e-12).log()).sum(-1)
