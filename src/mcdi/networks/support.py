"""Statistics of support sets, whatever the order and number of their examples: class means, ridge regression, checks."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mcdi.errors import McdiError


def support_batch(
    x: Tensor, y: Tensor, *, way: int, any_way: bool, regression: bool, target: tuple[int, ...] = (), dims: int = 0
) -> tuple[Tensor, Tensor, int, bool]:
    """Check a user's support set, and give it a batch dimension where it has none.

    Args:
        x: (S, ...), (B, S, ...), or one example (...).
        y: (S, *target), (B, S, *target) or (*target).
        way: classes that the generator was trained for.
        any_way: whether it makes weights for other numbers of classes too.
        regression, target: whether y are real numbers, and the shape of one.
        dims: dimensions of one x, at least.

    Returns:
        x (B, S, ...), y (B, S, *target), the number of classes, and whether the batch dimension was added.

    Raises:
        McdiError: labels that do not fit x, the number of classes or the kind of task.
    """
    single = y.ndim <= 1 + len(target)
    if y.ndim == len(target):  # one example
        x, y = x[None], y[None]
    if single:
        x, y = x[None], y[None]
    if y.ndim != 2 + len(target) or x.ndim < 2 + dims or x.shape[:2] != y.shape[:2] or y.shape[2:] != target or y.shape[1] == 0:
        raise McdiError(
            f"support x {tuple(x.shape)} and y {tuple(y.shape)} do not match: give (S, ...) and (S,), or batches of both"
        )
    if y.is_floating_point() != regression:
        raise McdiError("labels must be integers 0, 1, .. for a classifier and real numbers for a curve")
    if not regression:
        least, most = y.aminmax()
        given, way = way, int(most) + 1
        present = members(y, way).any(1)
        if int(least) < 0 or not bool(present.all()):
            missing = (~present).any(0).nonzero().flatten().tolist()
            wrong = f"{missing[0]} has no example in some task" if missing else f"{int(least)} is negative"
            raise McdiError(f"labels must be 0..{way - 1}, each with an example in every task; {wrong}")
        if not any_way and way != given:
            raise McdiError(f"this generator makes networks for {given} classes, not {way}")
    return x, y, way, single


def members(labels: Tensor, way: int) -> Tensor:
    """Which class every example is of: (B, S) -> (B, S, way) bool. F.one_hot would fix the number of classes of an export."""
    return labels[..., None] == torch.arange(way, device=labels.device)


def class_means(features: Tensor, labels: Tensor, way: int) -> tuple[Tensor, Tensor]:
    """Mean feature and number of examples of every class: (B, S, F), (B, S) -> (B, way, F), (B, way)."""
    member = members(labels, way).to(features.dtype)
    count = member.sum(1)
    return torch.bmm(member.transpose(1, 2), features) / count.clamp(min=1)[..., None], count


def centre_of(features: Tensor, labels: Tensor, way: int) -> Tensor:
    """The mean of the class means, whatever the number of examples of each: (B, S, F), (B, S) -> (B, 1, F)."""
    means, count = class_means(features, labels, way)
    return means.sum(1, keepdim=True) / (count > 0).sum(1)[:, None, None]


def prototype_rows(means: Tensor) -> Tensor:
    """Class means (.., F) -> rows (.., F + 1) of a linear classifier: w = 2 c, b = -|c|^2 (1703.05175)."""
    return torch.cat([2 * means, -(means**2).sum(-1, keepdim=True)], -1)


def least_squares(features: Tensor, labels: Tensor, way: int, ridge: float = 1.0) -> Tensor:
    """Ridge regression of the one-hot labels, in closed form in the S x S dual (R2-D2, 1805.08136).

    Args:
        features: (B, S, F).
        labels: (B, S).
        ridge: in units of a feature vector's mean square.

    Returns:
        Rows (B, way, F + 1): weights times F, which brings them to the features' scale, then the bias.
    """
    member = members(labels, way).to(features.dtype)
    centre, frequency = features.mean(1, keepdim=True), member.mean(1, keepdim=True)
    x, size = features - centre, features.shape[-1]
    gram = torch.bmm(x, x.transpose(1, 2)) / size + ridge * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    # The ridge makes gram positive definite: solve_ex checks nothing, which an export cannot do.
    weights = torch.bmm(torch.linalg.solve_ex(gram, member - frequency).result.transpose(1, 2), x)
    return torch.cat([weights, frequency.transpose(1, 2) - torch.bmm(weights, centre.transpose(1, 2)) / size], -1)


def least_squares_rows(features: Tensor, labels: Tensor, way: int, ridge: float = 1.0) -> Tensor:
    """`least_squares` as rows of a head that reads these features: (B, S, F), (B, S) -> (B, way, F + 1)."""
    rows = least_squares(features, labels, way, ridge)
    return torch.cat([rows[..., :-1] / features.shape[-1], rows[..., -1:]], -1)


def blend_heads(rows: Tensor, others: Tensor, mask: Tensor, mixing_weight: float | Tensor, size: int) -> Tensor:
    """A convex combination of a head and another one that is scaled to its norm.

    What all rows have in common changes no probability: it is left as it is, and does not count for the norm.

    Args:
        rows, others: (.., way, D).
        mask: (.., way), which classes exist.
        mixing_weight: of `rows`, one number or (.., 1, 1); 1 leaves them as they are.
        size: the first numbers of a row, its weights, whose norm counts.

    Returns:
        (.., way, D).
    """
    present = mask[..., None].to(rows.dtype)

    def centred(head: Tensor) -> Tensor:
        return (head - (head * present).sum(-2, keepdim=True) / present.sum(-2, keepdim=True)) * present

    own, other = centred(rows), centred(others)
    norm, other_norm = (head[..., :size].square().sum((-2, -1), keepdim=True).sqrt() for head in (own, other))
    return rows + (1 - mixing_weight) * (other * (norm / other_norm.clamp(min=1e-12)) - own)


def spreads(features: Tensor, labels: Tensor, way: int) -> tuple[Tensor, Tensor, Tensor]:
    """Three numbers of every feature, whatever the order of classes, (B, S, F) -> (B, F) each: the mean of the class means,
    their spread, the spread within classes."""
    means, _ = class_means(features, labels, way)
    own = means.gather(1, labels[..., None].expand(-1, -1, features.shape[-1]))
    return means.mean(1), means.std(1, correction=0), (features - own).square().mean(1).sqrt()


def append_unit_features(rows: Tensor, shared: Tensor, extra: int) -> Tensor:
    """Conditions of classifier rows (B, way, R), and of `extra` shared units that all get `shared` (B, C).

    -> (B, way + extra, R + C + 1 + extra). The two fill different columns, and flags name the kind of a unit: one linear map of
    them is another map for each kind.
    """
    width = rows.shape[-1]
    blocks = torch.cat([F.pad(rows, (0, shared.shape[-1])), F.pad(shared, (width, 0))[:, None].expand(-1, extra, -1)], 1)
    flags = torch.eye(1 + extra, dtype=rows.dtype, device=rows.device)
    flags = torch.cat([flags[:1].expand(rows.shape[1], -1), flags[1:]])
    return torch.cat([blocks, flags.expand(blocks.shape[0], -1, -1)], -1)


def single_examples(features: Tensor, labels: Tensor, way: int, most: int) -> Tensor:
    """The first `most` examples of every class, each with a 1 behind it; zeros where there are fewer: (B, way, most, F + 1)."""
    member = members(labels, way).to(labels.dtype)
    number = ((member.cumsum(1) - 1) * member).sum(-1)  # of its class, from 0
    out = features.new_zeros(features.shape[0], way, most + 1, features.shape[-1] + 1)
    task = torch.arange(features.shape[0], device=features.device)[:, None]
    out[task, labels, number.clamp(max=most)] = F.pad(features, (0, 1), value=1.0)
    return out[:, :, :most]
