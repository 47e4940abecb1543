"""Heads in closed form that know the training classes: how features vary within a class, and from class to class."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from mcdi.methods.base import Log, register_method, silent
from mcdi.methods.baselines.closed_form import FACTS, TUNING_TASKS, ClosedForm, ClosedFormSettings
from mcdi.networks.discriminant import Space, best_space, covariances, predictive_rows, shrunk
from mcdi.networks.heads import Head
from mcdi.networks.support import class_means
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.store import Stored
from mcdi.types import Examples

MOST_TASKS, MOST_EXAMPLES = 1000, 100_000  # of training, whose classes give covariances


def training_classes(family: TaskFamily, net: Head) -> Iterator[Tensor]:
    """The frozen features (n, F) of training classes, each class once where the family tells its classes apart."""
    count, seen = 0, set[tuple[float, ...]]()
    for task in range(MOST_TASKS):
        columns = family.columns("train", [task])
        of_task = tuple(v.item() for v in columns.values() if v.ndim == 1)  # such as the data set that its classes are of
        classes = [(*of_task, number) for number in columns["classes"][0].tolist()] if "classes" in columns else []
        if count > MOST_EXAMPLES:
            return
        if classes and seen.issuperset(classes):
            continue
        examples = family.training_data("train", [task])
        x, y = net.frozen_features(examples.x)[0], examples.y[0]
        for label in y.unique().tolist():
            if not classes or classes[label] not in seen:
                count += int((y == label).sum())
                yield x[y == label]
        seen.update(classes)


def packed(x: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers in two bytes each, at most 1, and a power of 2 that they are in units of."""
    scale = torch.ldexp(torch.ones(()), torch.frexp(x.abs().amax()).exponent)
    return (x / scale).half(), scale


def unpacked(numbers: Tensor, scale: Tensor) -> Tensor:
    """The numbers of `packed`, and packing them again changes nothing."""
    return numbers.float() * scale


@register_method("lda", label="LDA", colour="#2f6b2f", marker="X", **FACTS)
class DiscriminantAnalysis(ClosedForm):
    """w = S^-1 c, b = -c S^-1 c / 2, c the mean support feature and S the covariance of features within a class, which a few
    examples cannot give: it is that of the training classes, mixed with a multiple of the identity. At a mixture of 1 these
    are prototypes.

    Source:
        Fisher's linear discriminant; S shrunk as by Ledoit and Wolf, its share tuned on validation tasks.
    """

    name, grid = "linear discriminants", (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.97, 1.0)

    def __init__(self, settings: ClosedFormSettings) -> None:
        super().__init__(settings)
        self.axes, self.variances = torch.empty(0, 0), torch.empty(0)  # (F, F) in columns and (F,): S = axes variances axes^T

    def rows(self, net: Head, support: Examples, way: int, value: float) -> Tensor:
        means, _ = class_means(net.frozen_features(support.x), support.y, way)
        variances = shrunk(self.variances, value)
        along = means @ self.axes.to(means)
        scaled = along / variances.to(means)
        return torch.cat([scaled @ self.axes.to(means).mT, -0.5 * (along * scaled).sum(-1, keepdim=True)], -1)

    def fit(self, family: TaskFamily, data: Stored | None, *, seed: int, log: Log = silent, folder: Path | None = None) -> Self:
        net = family.downstream
        if isinstance(net, Head):
            values, axes = torch.linalg.eigh(covariances(training_classes(family, net)).within)
            self.variances = values.clamp(min=1e-6 * float(values.mean())).float()
            self.axes = axes.float().contiguous()  # eigh has columns in memory
        return super().fit(family, data, seed=seed, log=log, folder=folder)

    def state(self) -> dict[str, Tensor]:
        return {"axes": self.axes, "variances": self.variances}

    def restore(self, config: dict[str, Any], state: dict[str, Tensor]) -> Self:
        self.axes, self.variances = state["axes"], state["variances"]
        return super().restore(config, state)


@register_method("plda", label="PLDA", colour="#12876f", marker="*", **FACTS)
class ProbabilisticDiscriminant(ClosedForm):
    """The head of Gaussian classes (`networks.discriminant`): directions in which training classes rarely differ count for
    little, and for more the more examples there are. The covariances within a class and between classes are mixed with
    multiples of the identity, the second where the first is 1; both shares are tuned on validation tasks, once for all numbers
    of shots. Real classes are no Gaussians, and the logits are too large: they are divided by a temperature, which changes no
    prediction, the most likely one on validation tasks.

    Source:
        Ioffe, Probabilistic Linear Discriminant Analysis, ECCV 2006; the temperature as in Guo et al., 1706.04599, sec. 4.2.
    """

    name, grid = "probabilistic discriminants", (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
    shares_within = (0.1, 0.3, 0.5, 0.7, 0.9)
    shares_between = (0.03, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
    adapted = False  # to the support set, see networks.discriminant.adaptation

    def __init__(self, settings: ClosedFormSettings) -> None:
        super().__init__(settings)
        self.space = Space(torch.empty(0, 0), torch.empty(0), torch.empty(0))
        self.chosen = {"within": 1.0, "between": 1.0}

    def rows(self, net: Head, support: Examples, way: int, value: float) -> Tensor:
        return predictive_rows(self.space, net.frozen_features(support.x), support.y, way, adapted=self.adapted) / value

    def criterion(self, net: Head, weights: Tensor, query: Examples, mask: Tensor) -> float:
        return -float(net.loss(weights, query, mask).mean())

    def fit(self, family: TaskFamily, data: Stored | None, *, seed: int, log: Log = silent, folder: Path | None = None) -> Self:
        net = family.downstream
        if not isinstance(net, Head):
            return super().fit(family, data, seed=seed, log=log, folder=folder)  # refuses it
        found = covariances(training_classes(family, net))
        tasks = [family.sample("val", range(TUNING_TASKS), shots=shots) for shots in family.shots]
        total, scores = len(self.shares_within) * len(self.shares_between), list[float]()

        def score(space: Space) -> float:
            heads = [self._unadapted(net, space, t.support, t.mask) for t in tasks]
            of_shots = [net.score(w, t.query, t.mask).mean() for w, t in zip(heads, tasks, strict=True)]
            scores.append(float(torch.stack(of_shots).mean()))
            log(len(scores), total, {"score": max(scores)})
            return scores[-1]

        best, self.chosen = best_space(found, self.shares_within, self.shares_between, score)
        self.space = best._replace(map=unpacked(*packed(best.map)))  # as its file holds it
        return super().fit(family, data, seed=seed, log=log, folder=folder)

    def _unadapted(self, net: Head, space: Space, support: Examples, mask: Tensor) -> Tensor:
        rows = predictive_rows(space, net.frozen_features(support.x), support.y, net.classes(mask.shape[1]))
        return net.with_default_units(rows, mask.shape[1])

    def config(self) -> dict[str, Any]:
        return {**super().config(), "chosen": self.chosen}

    def state(self) -> dict[str, Tensor]:
        numbers, scale = packed(self.space.map)
        return {**self.space._asdict(), "map": numbers, "scale": scale}

    def restore(self, config: dict[str, Any], state: dict[str, Tensor]) -> Self:
        mapping = unpacked(state["map"], state["scale"])
        self.space, self.chosen = Space(mapping, *(state[n] for n in Space._fields[1:])), dict(config["chosen"])
        return super().restore(config, state)


@register_method("adaptive-plda", label="adaptive PLDA", colour="#0a4d68", marker="*", **FACTS)
class AdaptiveDiscriminant(ProbabilisticDiscriminant):
    """`plda` with the mean of all classes and the covariance within a class estimated by shrinkage from the support set
    (`networks.discriminant.adaptation`), for out-of-distribution tasks. The tuned shares are those of `plda`: validation tasks
    are in-distribution."""

    name, adapted = "adaptive discriminants", True
