"""A linear classifier on frozen features, the default network; its gradient has a closed form."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from mcdi.networks.backbones.embedder import Classifier, Embedder
from mcdi.networks.base import Network, NetworkTraits
from mcdi.networks.batched import State
from mcdi.networks.heads import CLOSED_FORM_HEADS, Condition, Head, linear
from mcdi.networks.registry import register_network
from mcdi.types import Examples


@register_network("linear-head", "images", "vectors")
class LinearHead(Head):
    """A linear classifier on frozen features; any number of classes.

    Args:
        features, way, condition, examples: see heads.Head.
        embedder: the backbone; its `embedding`, if it has one, sets `embedding`.
        centred: tasks see features less the centre of their support set. The generator then has no information on where in
            feature space a task lies, which is what another data set or style changes first; moved features give moved heads.
        embedding: E features of another network behind the F. The condition is made of these alone, except for the closed-form
            heads; everything that is a head reads the backbone's.
    """

    options: tuple[str, ...] = ("condition", "centred", "embedding")

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
        if embedder is not None and embedder.embedding is not None:
            embedding = embedder.embedding.backbone.features
        options: dict[str, Any] = {"condition": condition, "examples": examples, "embedding": embedding}
        heads = CLOSED_FORM_HEADS if condition == "heads" else 0
        super().__init__(nn.Linear(features, way), features, way, embedder, heads=heads, **options)
        self.input_size, self.centred = features + embedding, centred

    @classmethod
    def for_family(cls, settings: Any, **parts: Any) -> Self:
        options = {n: getattr(settings, n) for n in ("condition", "centred") if hasattr(settings, n)}
        return cls(way=settings.way, examples=max(settings.shots), **options, **parts)

    @classmethod
    def traits(cls, settings: Any) -> NetworkTraits:
        heads = CLOSED_FORM_HEADS if getattr(settings, "condition", "") == "heads" else 0
        embedding, centred = bool(getattr(settings, "embedding", "")), getattr(settings, "centred", False)
        return NetworkTraits(cls.kind, True, heads, rows_only=True, embedding=embedding, equal_lengths=not centred)

    def embed_query(self, x: Tensor) -> Tensor:
        return self.embed(x) if self.embedder is None or not self.embedding_size else self.embedder.backbone_features(x)

    def forward(self, state: State, x: Tensor, keys: Tensor | None = None) -> Tensor:
        return linear(state, x[..., : self.features])

    def standalone(self, state: State) -> nn.Module:
        """From features; with a backbone from images, see `backbones.embedder.Classifier`."""
        head = self.with_state(state)
        return head if self.embedder is None else Classifier(self.embedder, head)

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

    def config(self) -> dict[str, Any]:
        fields = {"features": self.features, "way": self.way, "condition": self.condition_kind, "centred": self.centred}
        fields |= {"embedding": self.embedding_size} if self.embedding_size else {}
        return self._described(**fields, examples=self.condition_examples)
