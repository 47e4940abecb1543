"""What is a linear head on frozen features? Its condition, its closed forms, its gradient."""

from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from mcdi.networks.backbones.vision import Embedder
from mcdi.networks.base import Network
from mcdi.networks.batched import State
from mcdi.networks.support import blend_heads, class_means, least_squares, least_squares_rows, prototype_rows, single_examples
from mcdi.types import Examples

Condition = Literal["means", "spread", "examples", "heads"]


CLOSED_FORM_HEADS = 2  # of least squares, of prototypes


class LinearHead(Network):
    """A linear classifier on frozen features: one unit a class, its weight row and its bias; any number of classes.

    The condition of a class of n examples is its mean support feature c, c / n, its row r of the least-squares classifier
    of the support set times 1 - 1/n, |c|^2 / F and log n. From one example a class r adds nothing to c that holds on
    unseen classes; from several it knows which directions tell the classes apart. condition "spread" adds the variance
    of the class's examples (F), "examples" up to `examples` of them one by one (F + 1 each, see single_examples); "heads"
    begins with its rows of two heads that the support set itself gives (`closed_form_heads`), for generators that add up such.

    centred: tasks see features less the centre of their support set, so that a generator knows nothing of where in feature
    space a task lies: moved features give moved heads. It is what another data set or style changes first.

    embedding: E features of another network stand behind the F of the backbone. The condition is then made of these alone, but
    for the `closed_form_heads`; the head and whatever else is a head reads the backbone's.
    """

    kind = "linear-head"
    supports_ridge_blend = True

    def __init__(
        self,
        features: int,
        way: int,
        embedder: Embedder | None = None,
        condition: Condition = "means",
        examples: int = 5,
        centred: bool = False,
        embedding: int = 0,
    ) -> None:
        super().__init__(nn.Linear(features, way), embedder, unit="row")
        if embedder is not None and embedder.embedding is not None:
            embedding = embedder.embedding.backbone.features
        self.features, self.embedding_size, self.input_size = features, embedding, features + embedding
        self.way, self.condition_kind, self.centred = way, condition, centred
        self.condition_heads = CLOSED_FORM_HEADS if condition == "heads" else self.condition_heads
        self.condition_examples = examples if condition == "examples" else 0
        self.condition_size = self.summary_size + self.condition_examples * ((embedding or features) + 1)

    @property
    def summary_size(self) -> int:
        seen = self.embedding_size or self.features
        beside = seen if self.condition_kind == "spread" else 0
        return self.condition_heads * self.space.D + 3 * seen + 3 + beside

    def theta0(self, seed: int, units: int) -> Tensor:
        # The same Gaussian row for every class: the order of classes means nothing, so theta_0 must not know it.
        row = torch.randn(self.space.D, generator=torch.Generator().manual_seed(seed)) * self.init_std
        return row.expand(units, -1)

    def frozen_features(self, x: Tensor) -> Tensor:
        """What the head reads of a network as it stands, before anything is generated: -> (B, S, F)."""
        return x[..., : self.features]

    def embed_query(self, x: Tensor) -> Tensor:
        return self.embed(x) if self.embedder is None or not self.embedding_size else self.embedder.own(x)

    def closed_form(self, support: Examples, way: int, ridge: float = 1.0) -> Tensor:
        """The least-squares classifier of the support set as rows of this head: -> (B, way, D)."""
        return least_squares_rows(self.frozen_features(support.x), support.y, way, ridge)

    def uncentre(self, weights: Tensor, centre: Tensor) -> Tensor:
        centre = centre[..., : self.features]
        moved = (weights[..., :-1] * centre.reshape(-1, *[1] * (weights.ndim - 2), centre.shape[-1])).sum(-1, keepdim=True)
        return torch.cat([weights[..., :-1], weights[..., -1:] - moved], -1)

    def with_default_units(self, rows: Tensor, units: int) -> Tensor:
        """Weights of rows (B, way, F + 1) alone: what stands beside them is where it starts, FiLM that changes nothing, say.
        A head without a bias has no place for the last number, and is what is left."""
        rows = rows[..., : self.space.D]
        rest = self.theta0(0, units)[rows.shape[1] :].to(rows)
        return torch.cat([rows, rest.expand(rows.shape[0], -1, -1)], 1)

    def closed_form_heads(self, features: Tensor, y: Tensor, way: int) -> Tensor:
        """Rows of the least-squares classifier and of prototypes for a head that reads `features`, without what all classes
        have in common, which changes no probability: (B, S, F), (B, S) -> (B, way, CLOSED_FORM_HEADS * D)."""
        means, _ = class_means(features, y, way)
        rows = torch.stack([least_squares_rows(features, y, way), prototype_rows(means) / self.features], 2)
        return (rows - rows.mean(1, keepdim=True)).flatten(2)

    def blend_with_ridge(self, weights: Tensor, support: Examples, mask: Tensor, share: float | Tensor) -> Tensor:
        share = share[:, None, None, None] if isinstance(share, Tensor) else share
        way = self.classes(weights.shape[-2])
        rows, rest = weights.split([way, weights.shape[-2] - way], -2)
        heads = self.closed_form(support, way)[:, None]
        return torch.cat([blend_heads(rows, heads, mask[:, None, :way], share, self.features), rest], -2)

    def condition(self, support: Examples, units: int) -> Tensor:
        said = self.summary(support.x, support.y, units)
        return self.with_examples(said, support.x[..., -self.embedding_size :], support.y, units)

    def with_examples(self, said: Tensor, features: Tensor, y: Tensor, way: int) -> Tensor:
        """What is said of units (B, U, ..), and behind it the single examples where the condition has them; units that are no
        classes have none of their own."""
        if not self.condition_examples:
            return said
        single = single_examples(features, y, way, self.condition_examples).flatten(2)
        return torch.cat([said, F.pad(single, (0, 0, 0, said.shape[1] - way))], -1)

    def summary(self, features: Tensor, y: Tensor, way: int) -> Tensor:
        """The condition without single examples: (B, S, F), (B, S) -> (B, way, summary_size)."""
        x = features[..., -self.embedding_size :]  # all of it where there is no other network
        mean, count = class_means(x, y, way)
        count = count.clamp(min=1)[..., None]
        rows = least_squares(x, y, way) * (1 - 1 / count)
        # c / n beside c: a linear map of both may trust the mean of more examples more.
        parts = [mean, mean / count, rows, mean.square().mean(-1, keepdim=True), count.log()]
        if self.condition_heads:
            parts.insert(0, self.closed_form_heads(features[..., : self.features], y, way))
        if self.condition_kind == "spread":
            square, _ = class_means(x.square(), y, way)
            parts.append((square - mean.square()).clamp(min=0) * count / (count - 1).clamp(min=1))
        return torch.cat(parts, -1)

    def forward(self, state: State, x: Tensor, keys: Tensor | None = None) -> Tensor:
        # baddbmm: the vmapped functional_call computes the same (a test compares them) but slower for one matrix.
        return torch.baddbmm(state["bias"][:, None], x[..., : self.features], state["weight"].transpose(1, 2))

    def gradients(self, state: State, data: Examples, mask: Tensor, keys: Tensor | None = None) -> State:
        """Closed form, p - y: classes lie in rows, so that softmax and both products run along the many examples."""
        if type(self).criterion is not Network.criterion:
            return super().gradients(state, data, mask, keys)
        x = data.x[..., : self.features]
        logits = torch.baddbmm(state["bias"][..., None], state["weight"], x.transpose(1, 2))
        wrong = logits.masked_fill_(~mask[..., None], float("-inf")).softmax(1)
        wrong.scatter_add_(1, data.y[:, None], wrong.new_full((1, 1, 1), -1.0).expand(*data.y[:, None].shape))
        wrong /= data.y.shape[1]
        return {"weight": torch.bmm(wrong, x), "bias": wrong.sum(-1)}

    def _masked(self, out: Tensor, mask: Tensor) -> Tensor:
        return out.masked_fill(~mask[:, None, : out.shape[-1]], float("-inf"))

    def config(self) -> dict[str, Any]:
        fields = {"features": self.features, "way": self.way, "condition": self.condition_kind, "centred": self.centred}
        fields |= {"embedding": self.embedding_size} if self.embedding_size else {}
        return {"kind": self.kind, **fields, "examples": self.condition_examples, "embedder": self.embedder_config()}
