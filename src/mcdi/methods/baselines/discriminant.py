"""Heads in closed form that know the training classes: how features vary within a class, and from class to class."""

from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.methods.base import Log, register_method, silent
from mcdi.methods.baselines.closed_form import FACTS, TUNING_TASKS, ClosedForm, ClosedFormSettings
from mcdi.networks.heads import Head
from mcdi.networks.support import class_means
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.store import Stored
from mcdi.types import Examples

MOST_TASKS, MOST_EXAMPLES = 1000, 100_000  # of training, whose classes give covariances


class Covariances(NamedTuple):
    """Of features (F,), in float64: within a class (F, F), between the means of classes (F, F), and the mean of these (F,)."""

    within: Tensor
    between: Tensor
    mean: Tensor


def covariances(family: TaskFamily, net: Head) -> Covariances:
    """From all examples of training classes, each class once. Raises McdiError where the examples of a class are all equal."""
    total, means = torch.zeros(net.features, net.features).double(), list[Tensor]()
    counts, seen = list[int](), set[tuple[float, ...]]()
    for task in range(MOST_TASKS):
        columns = family.columns("train", [task])
        of_task = tuple(v.item() for v in columns.values() if v.ndim == 1)  # such as the data set that its classes are of
        classes = [(*of_task, number) for number in columns["classes"][0].tolist()] if "classes" in columns else []
        if sum(counts) > MOST_EXAMPLES:
            break
        if classes and seen.issuperset(classes):
            continue
        examples = family.training_data("train", [task])
        x, y = net.frozen_features(examples.x)[0].double(), examples.y[0]
        for label in y.unique().tolist():
            if classes and classes[label] in seen:
                continue
            own = x[y == label]
            means.append(own.mean(0))
            counts.append(len(own))
            total += (own - means[-1]).mT @ (own - means[-1])
        seen.update(classes)
    within = total / max(1, sum(counts) - len(counts))
    if not within.trace() > 0:
        raise McdiError("examples of a training class are all equal, they have no covariance: leave lda and plda out")
    centres = torch.stack(means)
    # Means of few examples differ also by what their examples happen to be.
    noise = within * float(torch.tensor(counts).double().reciprocal().mean())
    return Covariances(within, torch.cov(centres.mT) - noise, centres.mean(0))


def _whitened(within: Tensor, share: float) -> Tensor:
    """A (F, F) with A^T S A = 1 for S = (1 - share) within + share * its mean variance."""
    values, axes = torch.linalg.eigh(within)
    variances = (1 - share) * values + share * values.mean()
    return axes / variances.clamp(min=1e-6 * float(values.mean())).sqrt()


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
        variances = (1 - value) * self.variances + value * self.variances.mean()
        along = means @ self.axes.to(means)
        scaled = along / variances.to(means)
        return torch.cat([scaled @ self.axes.to(means).mT, -0.5 * (along * scaled).sum(-1, keepdim=True)], -1)

    def fit(self, family: TaskFamily, data: Stored | None, *, seed: int, log: Log = silent, folder: Path | None = None) -> Self:
        net = family.downstream
        if isinstance(net, Head):
            values, axes = torch.linalg.eigh(covariances(family, net).within)
            self.variances = values.clamp(min=1e-6 * float(values.mean())).float()
            self.axes = axes.float().contiguous()  # eigh has columns in memory
        return super().fit(family, data, seed=seed, log=log, folder=folder)

    def state(self) -> dict[str, Tensor]:
        return {"axes": self.axes, "variances": self.variances}

    def restore(self, config: dict[str, Any], state: dict[str, Tensor]) -> Self:
        self.axes, self.variances = state["axes"], state["variances"]
        return super().restore(config, state)


class Space(NamedTuple):
    """Where features have the covariance 1 within a class and a diagonal one between classes: z = (x - mean) map."""

    map: Tensor  # (F, F)
    between: Tensor  # (F,), variances of class means
    mean: Tensor  # (F,)


@register_method("plda", label="PLDA", colour="#12876f", marker="*", **FACTS)
class ProbabilisticDiscriminant(ClosedForm):
    """Class means are Gaussian, N(mean, B), and examples Gaussian around their class's, N(., W), with B and W of the training
    classes. Of n examples with the mean c, a new one is then N(m, S) with m = B (B + W / n)^-1 c and
    S = W + (B^-1 + n W^-1)^-1, and the head is that of these Gaussians: directions in which classes rarely differ count for
    little, and for more the more examples there are. W and B are mixed with multiples of the identity, B where W is 1; both
    shares are tuned on validation tasks. With classes of different sizes, S is that of their mean number of examples.

    Source:
        Ioffe, Probabilistic Linear Discriminant Analysis, ECCV 2006.
    """

    name = "probabilistic discriminants"
    shares = tuple(
        (w, b) for w in (0.1, 0.3, 0.5, 0.7, 0.9) for b in (0.03, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
    )  # of W, of B

    def __init__(self, settings: ClosedFormSettings) -> None:
        super().__init__(settings)
        self.space = Space(torch.empty(0, 0), torch.empty(0), torch.empty(0))
        self.chosen: tuple[float, float] = (1.0, 1.0)

    def rows(self, net: Head, support: Examples, way: int, value: float) -> Tensor:
        x = net.frozen_features(support.x)
        mapping, between, mean = (t.to(x) for t in self.space)
        means, count = class_means(x - mean, support.y, way)
        n = count.clamp(min=1)[..., None]
        expected = between / (between + 1 / n) * (means @ mapping)
        variance = 1 + between / (1 + between * n.mean(1, keepdim=True))
        scaled = expected / variance
        weight = scaled @ mapping.mT
        bias = -0.5 * (expected * scaled).sum(-1, keepdim=True) - (weight * mean).sum(-1, keepdim=True)
        return torch.cat([weight, bias], -1)

    def fit(self, family: TaskFamily, data: Stored | None, *, seed: int, log: Log = silent, folder: Path | None = None) -> Self:
        net = family.downstream
        if not isinstance(net, Head):
            return super().fit(family, data, seed=seed, log=log, folder=folder)  # refuses it
        within, between, mean = covariances(family, net)
        tasks = [family.sample("val", range(TUNING_TASKS), shots=shots) for shots in family.shots]
        best, spaces = -1.0, {w: self._space(within, between, mean, w) for w in {w for w, _ in self.shares}}
        for done, (w, b) in enumerate(self.shares, 1):
            kept = self.space
            variances = spaces[w].between
            self.space = spaces[w]._replace(between=(1 - b) * variances + b * variances.mean())
            scores = [net.score(self._weights(net, t.support, t.mask, 0.0), t.query, t.mask).mean() for t in tasks]
            score = float(torch.stack(scores).mean())
            if score > best:
                best, self.chosen = score, (w, b)
            else:
                self.space = kept
            log(done, len(self.shares), {"score": best})
        return self

    @staticmethod
    def _space(within: Tensor, between: Tensor, mean: Tensor, share: float) -> Space:
        white = _whitened(within, share)
        values, axes = torch.linalg.eigh(white.mT @ between @ white)
        values = values.clamp(min=1e-6 * max(1e-12, float(values.clamp(min=0).mean())))
        return Space((white @ axes).float().contiguous(), values.float(), mean.float())

    def config(self) -> dict[str, Any]:
        return {**super().config(), "chosen": list(self.chosen)}

    def state(self) -> dict[str, Tensor]:
        return self.space._asdict()

    def restore(self, config: dict[str, Any], state: dict[str, Tensor]) -> Self:
        self.space, self.chosen = Space(**state), tuple(config["chosen"])
        return super().restore(config, state)
