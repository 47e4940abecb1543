"""What linear, FiLM and LoRA heads share: rows of a linear classifier, their condition, and their closed forms."""

from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.networks.backbones.embedder import Embedder
from mcdi.networks.base import Network
from mcdi.networks.batched import State
from mcdi.networks.support import (
    append_unit_features,
    blend_heads,
    class_means,
    least_squares,
    least_squares_rows,
    prototype_rows,
    single_examples,
)
from mcdi.types import Examples

Condition = Literal["means", "spread", "examples", "heads"]
CLOSED_FORM_HEADS = 2  # least squares and prototypes


class Head(Network):
    """A network that ends in a linear classifier on frozen features: one unit a class, its weight row and its bias.

    Weights may have further units that all classes share, `space.extra`, such as FiLM or LoRA pairs. The condition of a class
    of n examples is its mean feature c, c / n, its row r of the least-squares classifier of the support set times 1 - 1/n,
    |c|^2 / F and log n. From one example a class r adds nothing to c that generalises to unseen classes; from several it tells
    which directions separate the classes.

    Args:
        features: F, numbers that the classifier reads.
        condition: "means" is the above; "spread" adds the variance of the class's examples (F); "examples" adds up to
            `examples` of them one by one (F + 1 each); "heads" begins with the class's rows of closed-form heads.
        heads: closed-form heads in the condition.
        embedding: numbers of another network's features that stand behind the F; the condition then reads these alone.
        shared_statistics: numbers that describe the shared units in the condition.
    """

    supports_closed_form = supports_ridge_blend = True

    def __init__(
        self,
        module: nn.Module,
        features: int,
        way: int,
        embedder: Embedder | None = None,
        *,
        condition: Condition = "means",
        examples: int = 0,
        heads: int = 0,
        embedding: int = 0,
        shared_statistics: int = 0,
        **space: Any,
    ) -> None:
        super().__init__(module, embedder, unit="row", **space)
        self.features, self.way = features, way
        self.embedding_size, self.condition_heads = embedding, heads
        self.condition_kind, self.condition_examples = condition, examples if condition == "examples" else 0
        size = embedding or features
        self.class_size = heads * self.space.D + 3 * size + 3 + (size if condition == "spread" else 0)  # of no single example
        self._shared_size = shared_statistics + self.space.kinds if self.space.extra else 0
        self.condition_size = self.summary_size + self.condition_examples * (size + 1)

    @property
    def summary_size(self) -> int:
        return self.class_size + self._shared_size

    def theta0(self, seed: int, units: int) -> Tensor:
        # The same Gaussian row for every class: the order of classes means nothing, so theta_0 must not depend on it.
        row = torch.randn(self.space.D, generator=torch.Generator().manual_seed(seed)) * self.init_std
        return F.pad(row.expand(self.classes(units), -1), (0, 0, 0, self.space.extra))

    def frozen_features(self, x: Tensor) -> Tensor:
        """What the classifier reads before anything is generated: embedded examples (B, S, X) -> (B, S, F)."""
        return x[..., : self.features]

    def condition_features(self, x: Tensor) -> Tensor:
        """What the condition is made of: (B, S, X) -> (B, S, F), with those of an embedding behind them."""
        return x

    def shared_condition(self, support: Examples, way: int) -> Tensor:
        """What the condition says of the shared units: (B, shared_statistics)."""
        raise NotImplementedError

    def condition(self, support: Examples, units: int) -> Tensor:
        way, features = self.classes(units), self.condition_features(support.x)
        heads = self.closed_form_heads(features[..., : self.features], support.y, way) if self.condition_heads else None
        x = features[..., -self.embedding_size :]  # all of them where there is no other network
        summary = self._class_summary(x, support.y, way, heads)
        if self.space.extra:
            summary = append_unit_features(summary, self.shared_condition(support, way), self.space.extra)
        if not self.condition_examples:
            return summary
        single = single_examples(x, support.y, way, self.condition_examples).flatten(2)
        return torch.cat([summary, F.pad(single, (0, 0, 0, summary.shape[1] - way))], -1)  # zeros for other units

    def _class_summary(self, x: Tensor, y: Tensor, way: int, heads: Tensor | None) -> Tensor:
        """The condition of classes without single examples: (B, S, F), (B, S), closed-form heads -> (B, way, class_size)."""
        mean, count = class_means(x, y, way)
        count = count.clamp(min=1)[..., None]
        rows = least_squares(x, y, way) * (1 - 1 / count)
        # c / n besides c: a linear map of both can weight the mean of more examples more.
        parts = [mean, mean / count, rows, mean.square().mean(-1, keepdim=True), count.log()]
        parts = parts if heads is None else [heads, *parts]
        if self.condition_kind == "spread":
            square, _ = class_means(x.square(), y, way)
            parts.append((square - mean.square()).clamp(min=0) * count / (count - 1).clamp(min=1))
        return torch.cat(parts, -1)

    def closed_form(self, support: Examples, way: int, ridge: float = 1.0) -> Tensor:
        """The least-squares classifier of the support set as rows of this head: -> (B, way, D) (R2-D2, 1805.08136)."""
        return least_squares_rows(self.frozen_features(support.x), support.y, way, ridge)

    def closed_form_heads(self, features: Tensor, y: Tensor, way: int) -> Tensor:
        """Rows of the least-squares classifier and of prototypes for a head that reads `features`, without what all classes
        have in common, which changes no probability: (B, S, F), (B, S) -> (B, way, CLOSED_FORM_HEADS * D)."""
        means, _ = class_means(features, y, way)
        rows = torch.stack([least_squares_rows(features, y, way), prototype_rows(means) / self.features], 2)
        return (rows - rows.mean(1, keepdim=True)).flatten(2)

    def uncentre(self, weights: Tensor, centre: Tensor) -> Tensor:
        """Weights (B, .., U, D) that answer on features x as these do on x - centre, (B, 1, F)."""
        centre = centre[..., : self.features]
        moved = (weights[..., :-1] * centre.reshape(-1, *[1] * (weights.ndim - 2), centre.shape[-1])).sum(-1, keepdim=True)
        return torch.cat([weights[..., :-1], weights[..., -1:] - moved], -1)

    def with_default_units(self, rows: Tensor, units: int) -> Tensor:
        """Classifier rows (B, way, F + 1), and the other units as theta_0 has them, such as FiLM that changes nothing.

        -> (B, U, D). A head without a bias drops the last number of every row.
        """
        rows = rows[..., : self.space.D]
        rest = self.theta0(0, units)[rows.shape[1] :].to(rows)
        return torch.cat([rows, rest.expand(rows.shape[0], -1, -1)], 1)

    def blend_with_ridge(self, weights: Tensor, support: Examples, mask: Tensor, mixing_weight: float | Tensor) -> Tensor:
        """Weights (B, n, U, D) whose rows are blended with those of the least-squares classifier, see support.blend_heads.

        mixing_weight: of the generated rows, one number or (B,); 1 blends nothing.
        """
        part = mixing_weight[:, None, None, None] if isinstance(mixing_weight, Tensor) else mixing_weight
        way = self.classes(weights.shape[-2])
        rows, rest = weights.split([way, weights.shape[-2] - way], -2)
        heads = self.closed_form(support, way)[:, None]
        return torch.cat([blend_heads(rows, heads, mask[:, None, :way], part, self.features), rest], -2)

    def _masked(self, out: Tensor, mask: Tensor) -> Tensor:
        return out.masked_fill(~mask[:, None, : out.shape[-1]], float("-inf"))


def as_head(net: Network, need: str) -> Head:
    """The same network, typed as a head. Raises McdiError where it is none; `need` is the cure."""
    if not isinstance(net, Head):
        raise McdiError(f"a {net.kind} has no linear head: {need}")
    return net


def blend_with_ridge(net: Network, weights: Tensor, support: Examples, mask: Tensor, mixing_weight: float | Tensor) -> Tensor:
    """`Head.blend_with_ridge`; 1 leaves weights of any network as they are. Raises McdiError for less of what is no head."""
    if not isinstance(mixing_weight, Tensor) and mixing_weight == 1:
        return weights
    cure = "nothing to blend with ridge regression, set mixing_weight = 1"
    return as_head(net, cure).blend_with_ridge(weights, support, mask, mixing_weight)


def linear(state: State, x: Tensor) -> Tensor:
    """Outputs of every task's own linear classifier: (B, S, F) -> (B, S, way)."""
    # baddbmm: the vmapped functional_call computes the same (a test compares them) but slower for one matrix.
    return torch.baddbmm(state["bias"][:, None], x, state["weight"].transpose(1, 2))
