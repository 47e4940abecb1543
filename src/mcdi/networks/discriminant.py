"""Gaussian classes: how features vary within a class and from class to class, and what follows for heads and for features.

Examples are N(m, W) around the mean m of their class, and means are N(mean, B), with W and B of the training classes
(probabilistic linear discriminant analysis; Ioffe, ECCV 2006).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.networks.support import class_means, members


class Covariances(NamedTuple):
    """Of features (F,), in float64: within a class (F, F), between the means of classes (F, F), and the mean of these (F,)."""

    within: Tensor
    between: Tensor
    mean: Tensor


def covariances(classes: Iterable[Tensor]) -> Covariances:
    """From the examples (n, F) of every class. Raises McdiError for fewer than two classes, or where nothing varies."""
    total, means, counts = torch.zeros(()).double(), list[Tensor](), list[int]()
    for examples in classes:
        x = examples.double().cpu()
        means.append(x.mean(0))
        counts.append(len(x))
        total = total + (x - means[-1]).mT @ (x - means[-1])
    within = total / max(1, sum(counts) - len(counts))
    if len(means) < 2 or not within.trace() > 0:
        fault = "examples of a training class are all equal" if len(means) > 1 else "there are fewer than two training classes"
        raise McdiError(f"{fault}: there is no covariance, leave out what needs one")
    centres = torch.stack(means)
    # Means of few examples differ also by what their examples happen to be.
    noise = within * float(torch.tensor(counts).double().reciprocal().mean())
    return Covariances(within, torch.cov(centres.mT) - noise, centres.mean(0))


def shrunk(variances: Tensor, share: float) -> Tensor:
    """Mixed with their mean."""
    return (1 - share) * variances + share * variances.mean()


class Space(NamedTuple):
    """Where features have the covariance 1 within a class and a diagonal one between classes: z = (x - mean) map."""

    map: Tensor  # (F, F)
    between: Tensor  # (F,), variances of class means
    mean: Tensor  # (F,)
    anisotropy: Tensor = torch.ones(())  # F tr(S^2) / tr(S)^2 of the whitened covariance S within training classes


def discriminant_space(found: Covariances, share: float) -> Space:
    """share: of a multiple of the identity in the covariance within a class."""
    values, axes = torch.linalg.eigh(found.within)
    within = shrunk(values, share).clamp(min=1e-6 * float(values.mean()))
    white, whitened = axes / within.sqrt(), values.clamp(min=0) / within
    between, axes = torch.linalg.eigh(white.mT @ found.between @ white)
    between = between.clamp(min=1e-6 * max(1e-12, float(between.clamp(min=0).mean())))
    anisotropy = whitened.square().mean() / whitened.mean() ** 2
    return Space((white @ axes).float().contiguous(), between.float(), found.mean.float(), anisotropy.float())


def best_space(
    found: Covariances, within: Sequence[float], between: Sequence[float], score: Callable[[Space], float]
) -> tuple[Space, dict[str, float]]:
    """The space with the highest score, and its shares: of multiples of the identity in the covariance within a class, and in
    the one between classes where the first is 1."""

    def tried() -> Iterator[tuple[Space, dict[str, float]]]:
        for w in within:
            space = discriminant_space(found, w)
            for b in between:
                yield space._replace(between=shrunk(space.between, b)), {"within": w, "between": b}

    return max(tried(), key=lambda one: score(one[0]))


class Adaptation(NamedTuple):
    """Statistics of one task in a `Space`: the mean of all classes, and the covariance within a class,
    shrinkage I + factors^T factors."""

    centre: Tensor  # (B, 1, F)
    shrinkage: Tensor  # (B, 1, 1)
    factors: Tensor  # (B, n, F)


def adaptation(space: Space, z: Tensor, means: Tensor, y: Tensor, count: Tensor) -> Adaptation:
    """Shrinkage estimates of a task's mean and covariance, close to those of training for in-distribution tasks.

    The mean of the class means is shrunk towards that of training, by its squared distance from there and the expected one. The
    sample covariance within a class is shrunk towards the identity, by its anisotropy and that of training. Inner products of
    examples of different classes estimate the anisotropy without bias. One example a class gives no estimate.

    Args:
        z, y: examples in the space (B, S, F), labels (B, S).
        means, count: of the classes (B, way, F), (B, way), zeros where there is no example.

    Source:
        James and Stein, Estimation with quadratic loss, 1961; Ledoit and Wolf, A well-conditioned estimator for
        large-dimensional covariance matrices, 2004. To use both in the space of Gaussian classes is our choice.
    """
    between, size = space.between.to(z), z.shape[-1]
    member = members(y, count.shape[1]).to(z)
    classes = (count > 0).sum(1, keepdim=True)
    tiny = torch.finfo(z.dtype).tiny
    mean = means.sum(1, keepdim=True) / classes[..., None]
    expected = (between.sum() * classes + size * ((count > 0) / count.clamp(min=1)).sum(1, keepdim=True)) / classes**2
    centre = mean * (1 - expected[..., None] / mean.square().sum(-1, keepdim=True).clamp(min=tiny)).clamp(min=0)

    residuals = z - member @ means
    degrees = (count - 1).clamp(min=0)  # of freedom
    total = degrees.sum(1)
    products = (residuals @ residuals.mT).square().masked_fill((member @ member.mT).bool(), 0)
    pairs = total**2 - degrees.square().sum(1)
    square = products.sum((1, 2)) / pairs.clamp(min=1)  # tr(S^2)
    trace = residuals.square().sum((1, 2)) / total.clamp(min=1)
    anisotropy = (size * square / trace.square().clamp(min=tiny)).clamp(max=size)
    excess = (anisotropy / space.anisotropy.to(z) - 1).clamp(min=0) * total
    weight = excess / (excess + size + anisotropy)
    scale = weight * size / (trace * total).clamp(min=tiny)
    return Adaptation(centre, 1 - weight[:, None, None], residuals * scale.sqrt()[:, None, None])


def predictive_rows(space: Space, x: Tensor, y: Tensor, way: int, *, adapted: bool = False) -> Tensor:
    """Rows of the head that tells Gaussian classes apart: of n examples with the mean c a new one is N(m, S), with
    m = B (B + W / n)^-1 c and S = W + (B^-1 + n W^-1)^-1. With classes of different sizes, S is that of their mean size.

    Args:
        x, y: support sets (B, S, F), (B, S).
        adapted: whether the mean of all classes and W are those of `adaptation`.

    Returns:
        (B, way, F + 1), weights and biases.
    """
    mapping, between, mean, _ = (t.to(x) for t in space)
    means, count = class_means(x - mean, y, way)
    means = means @ mapping
    n = count.clamp(min=1)[..., None]
    if adapted:
        centre, shrinkage, factors = adaptation(space, (x - mean) @ mapping, means, y, count)
    else:
        centre, shrinkage, factors = means.new_zeros(1), means.new_ones(1), None
    expected = between / (between + shrinkage / n) * (means - centre)
    variances = shrinkage + between / (1 + between * n.mean(1, keepdim=True) / shrinkage)
    scaled = expected / variances
    if factors is not None:  # (variances + factors^T factors)^-1, by Woodbury's identity
        if factors.shape[1] > factors.shape[2]:
            factors = torch.linalg.qr(factors, "r").R
        thin = factors / variances
        inner = torch.eye(factors.shape[1]).to(x) + thin @ factors.mT
        scaled = scaled - torch.linalg.solve(inner, thin @ expected.mT).mT @ thin
    weight = scaled @ mapping.mT
    bias = -(scaled * (0.5 * expected + centre)).sum(-1, keepdim=True) - (weight * mean).sum(-1, keepdim=True)
    return torch.cat([weight, bias], -1)


class Metric(NamedTuple):
    """A map of features after which class means are what `predictive_rows` is for one example: x + gains along axes, less what
    all classes have in common, of one length. Few axes are enough: along all others it is the same for all."""

    axes: Tensor  # (F, R)
    gains: Tensor  # (R,)
    mean: Tensor  # (F,)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., F) -> (..., F), of length sqrt(F)."""
        x = x - self.mean
        return F.normalize(x + (x @ self.axes * self.gains) @ self.axes.mT, dim=-1) * x.shape[-1] ** 0.5


def metric_of(space: Space, rank: int) -> Metric:
    """The symmetric square root of the inner product that `predictive_rows` takes of one example and a query, along the `rank`
    axes where it is furthest from the multiple of the identity that it is along the rest."""
    between = space.between.double()
    gain = between / (between + 1) / (1 + between / (1 + between))
    mapping = space.map.double()
    values, axes = torch.linalg.eigh(mapping * gain @ mapping.mT)
    roots = values.clamp(min=0).sqrt()
    common = roots.median()
    kept = (roots / common).log().abs().topk(min(rank, len(roots))).indices
    return Metric(axes[:, kept].float().contiguous(), (roots[kept] / common - 1).float(), space.mean)
