"""What can be said of a set of labelled examples, whatever their order and number?"""

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from mcdi.errors import McdiError


def support_batch(
    x: Tensor, y: Tensor, *, way: int, any_way: bool, regression: bool, target: tuple[int, ...] = ()
) -> tuple[Tensor, Tensor, int, bool]:
    """A user's support set, as batches x (B, S, ...), y (B, S), with its number of classes and whether it was one task alone.

    any_way: whether weights can be made for other numbers of classes than `way`; regression: whether y are real numbers;
    target: the shape of one y. Raises McdiError for labels that do not fit.
    """
    single = y.ndim == 1 + len(target)
    if single:
        x, y = x[None], y[None]
    if y.ndim != 2 + len(target) or x.shape[:2] != y.shape[:2] or y.shape[2:] != target or y.shape[1] == 0:
        raise McdiError(
            f"support x {tuple(x.shape)} and y {tuple(y.shape)} do not match: give (S, ...) and (S,), or batches of both"
        )
    if y.is_floating_point() != regression:
        raise McdiError("labels must be integers 0, 1, .. for a classifier and real numbers for a curve")
    if not regression:
        given, way = way, int(y.max()) + 1
        missing = (~members(y, way).any(1)).any(0).nonzero().flatten().tolist()
        if int(y.min()) < 0 or missing:
            wrong = f"{missing[0]} has no example in some task" if missing else f"{int(y.min())} is negative"
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
    return torch.einsum("bsw,bsf->bwf", member, features) / count.clamp(min=1)[..., None], count


def centre_of(features: Tensor, labels: Tensor, way: int) -> Tensor:
    """The mean of the class means, whatever the number of examples of each: (B, S, F), (B, S) -> (B, 1, F)."""
    means, count = class_means(features, labels, way)
    return means.sum(1, keepdim=True) / (count > 0).sum(1)[:, None, None]


def prototype_rows(means: Tensor) -> Tensor:
    """Class means (.., F) -> rows (.., F + 1) of a linear classifier: w = 2 c, b = -|c|^2 (1703.05175)."""
    return torch.cat([2 * means, -(means**2).sum(-1, keepdim=True)], -1)


def least_squares(features: Tensor, labels: Tensor, way: int, ridge: float = 1.0) -> Tensor:
    """The linear classifier that ridge regression of the one-hot labels finds: (B, S, F), (B, S) -> rows (B, way, F + 1).

    Closed form in the S x S dual (R2-D2, 1805.08136). `ridge` is in units of a feature vector's mean square; the weights
    are times F, which brings them to the features' scale, the bias comes last.
    """
    member = members(labels, way).to(features.dtype)
    centre, share = features.mean(1, keepdim=True), member.mean(1, keepdim=True)
    x, size = features - centre, features.shape[-1]
    gram = x @ x.transpose(1, 2) / size + ridge * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    # The ridge makes gram positive definite: there is no error to look for, which an export could not do.
    weights = (x.transpose(1, 2) @ torch.linalg.solve_ex(gram, member - share).result).transpose(1, 2)
    return torch.cat([weights, share.transpose(1, 2) - weights @ centre.transpose(1, 2) / size], -1)


def least_squares_rows(features: Tensor, labels: Tensor, way: int, ridge: float = 1.0) -> Tensor:
    """`least_squares` as rows of a head that reads these features: (B, S, F), (B, S) -> (B, way, F + 1)."""
    rows = least_squares(features, labels, way, ridge)
    return torch.cat([rows[..., :-1] / features.shape[-1], rows[..., -1:]], -1)


def blend_heads(rows: Tensor, towards: Tensor, mask: Tensor, mixing_weight: float | Tensor, size: int) -> Tensor:
    """A head mixed with another, at its own scale.

    What all rows have in common changes no probability: it is left out of the mix and of the scale.

    Args:
        rows: (.., way, D), the head that sets the scale: the norm of the first `size` numbers of its rows, the weights.
        towards: (.., way, D), the other.
        mask: (.., way), which classes exist.
        mixing_weight: of `rows`; a tensor has the shape (.., 1, 1).
        size: weights of a row, in front of the bias.

    Returns:
        (.., way, D).
    """
    exists = mask[..., None].to(rows.dtype)

    def centred(head: Tensor) -> Tensor:
        return (head - (head * exists).sum(-2, keepdim=True) / exists.sum(-2, keepdim=True)) * exists

    own, other = centred(rows), centred(towards)
    length, far = (head[..., :size].square().sum((-2, -1), keepdim=True).sqrt() for head in (own, other))
    return rows + (1 - mixing_weight) * (other * (length / far.clamp(min=1e-12)) - own)


def spreads(features: Tensor, labels: Tensor, way: int) -> tuple[Tensor, Tensor, Tensor]:
    """Three numbers of every feature, whatever the order of classes, (B, S, F) -> (B, F) each: the mean of the class means,
    their spread, the spread within classes."""
    means, _ = class_means(features, labels, way)
    own = means.gather(1, labels[..., None].expand(-1, -1, features.shape[-1]))
    return means.mean(1), means.std(1, correction=0), (features - own).square().mean(1).sqrt()


def append_unit_features(rows: Tensor, said: Tensor, extra: int) -> Tensor:
    """The condition of rows (B, way, R) and of `extra` units that are none, of all of which `said` (B, C) holds:
    -> (B, way + extra, R + C + 1 + extra). The two fill different places, and flags name the kind, so that one linear map is
    one for each."""
    blocks = torch.cat([F.pad(rows, (0, said.shape[-1])), F.pad(said, (rows.shape[-1], 0))[:, None].expand(-1, extra, -1)], 1)
    flags = torch.eye(1 + extra, dtype=rows.dtype, device=rows.device)
    flags = torch.cat([flags[:1].expand(rows.shape[1], -1), flags[1:]])
    return torch.cat([blocks, flags.expand(blocks.shape[0], -1, -1)], -1)


def single_examples(features: Tensor, labels: Tensor, way: int, most: int) -> Tensor:
    """The first `most` examples of every class, each with a 1 behind it; zeros where there are fewer: (B, way, most, F + 1)."""
    member = members(labels, way).to(labels.dtype)
    place = ((member.cumsum(1) - 1) * member).sum(-1)  # how many of its class came before
    out = features.new_zeros(features.shape[0], way, most + 1, features.shape[-1] + 1)
    task = torch.arange(features.shape[0], device=features.device)[:, None]
    out[task, labels, place.clamp(max=most)] = F.pad(features, (0, 1), value=1.0)
    return out[:, :, :most]
