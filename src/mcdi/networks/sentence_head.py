"""A linear classifier on the features of a sentence encoder."""

import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Self

import torch
from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.networks.backbones.embedder import cl2n
from mcdi.networks.backbones.language import Encoder, LoraSettings, check_base
from mcdi.networks.backbones.texts import as_texts
from mcdi.networks.batched import State
from mcdi.networks.heads import Condition
from mcdi.networks.linear_head import LinearHead
from mcdi.networks.registry import register_network
from mcdi.utils.settings import make


def sentence_features(means: Tensor, centre: Tensor, trunk_weight: float) -> Tensor:
    """Means of states (..., 2, H), see `Encoder.means` -> features of length sqrt(F): (..., H), or (..., 2 H) where the trunk
    has a weight. centre: (F,), of the means over the training classes."""
    weights = (1.0, trunk_weight) if trunk_weight else (1.0,)
    centres = centre.view(len(weights), -1)
    parts = [w * cl2n(means[..., i, :], centres[i]) for i, w in enumerate(weights)]
    return torch.cat(parts, -1) * (len(weights) / sum(w * w for w in weights)) ** 0.5


@register_network("sentence-head", "sentences")
class SentenceHead(LinearHead):
    """A linear classifier on sentence features: the mean of a transformer's last states, centred on the training classes and
    brought to one length. The transformer may have LoRA pairs, the same ones for all tasks (`tasks.text.intents`). Beside it
    may stand the mean of the states in front of the layers with pairs, which tells more of the words and less of the meaning.

    Args:
        features, way, condition, examples: see LinearHead.
        lora: the transformer, and where its pairs are.
        base: the fingerprint of its frozen weights; another is a McdiError when the first text is read.
        trunk_weight: of the second mean; 0 leaves it out.
    """

    reads_texts = True
    options = ("condition",)

    def __init__(
        self,
        features: int,
        way: int,
        lora: LoraSettings,
        base: int,
        condition: Condition = "means",
        examples: int = 5,
        trunk_weight: float = 0.0,
    ) -> None:
        super().__init__(features, way, condition=condition, examples=examples)
        self.lora, self.base, self.trunk_weight, self.device = lora, base, trunk_weight, "cpu"
        self.centre, self.pairs = torch.zeros(features), dict[str, Tensor]()
        self._encoder: Encoder | None = None
        self._loading = threading.Lock()

    @classmethod
    def for_family(cls, settings: Any, **parts: Any) -> Self:
        options = {n: getattr(settings, n) for n in cls.options}
        own = {"lora": settings.lora, "trunk_weight": settings.trunk_weight}
        return cls(way=settings.way, examples=max(settings.shots), **own, **options, **parts)

    @classmethod
    def from_config(cls, values: Mapping[str, Any], code: Mapping[str, Any]) -> Self:
        return super().from_config({**values, "lora": make(LoraSettings, values["lora"], "lora")}, code)

    @property
    def encoder(self) -> Encoder:
        """The transformer, loaded when the first text is read: heads are made of features without it."""
        with self._loading:
            if self._encoder is None:
                encoder = Encoder(self.lora, self.way)
                check_base(encoder, self.base)
                encoder.set_pairs(self.pairs)
                encoder.to(self.device)
                self._encoder = encoder
        return self._encoder

    def read(self, x: Any) -> Tensor:
        """Sentences, see `texts.as_texts` -> features (S, F); tensors, which are features already, stay as they are. Raises
        McdiError for pairs of sentences."""
        if isinstance(x, Tensor):
            return x
        texts = as_texts(x)
        if texts and len(texts[0]) != 1:
            raise McdiError(
                f"a {self.kind} reads single sentences, not pairs: join them, or train a generator of `network = 'lora'`"
            )
        return sentence_features(self.encoder.means(texts), self.centre.to(self.device), self.trunk_weight)

    def standalone(self, state: State) -> nn.Module:
        raise McdiError(f"a {self.kind} reads text, which no file without a tokenizer can: save its weights with --out")

    def config(self) -> dict[str, Any]:
        plain = {n: v for n, v in super().config().items() if n not in ("embedder", "centred")}
        return {**plain, "lora": asdict(self.lora), "base": self.base, "trunk_weight": self.trunk_weight}

    def state(self) -> dict[str, Tensor]:
        # `tasks.text.pairs.scaled_pairs` has rounded the pairs to half precision.
        return {"centre": self.centre, **{f"pair.{n}": p.half() for n, p in self.pairs.items()}}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.centre = state["centre"]
        self.pairs = {n.removeprefix("pair."): p.float() for n, p in state.items() if n.startswith("pair.")}

    def to(self, device: str) -> None:
        self.device = device
        if self._encoder is not None:
            self._encoder.to(device)

    def __getstate__(self) -> dict[str, Any]:
        # For workers, which read features: the transformer is loaded again where it is needed.
        return {n: v for n, v in self.__dict__.items() if n not in ("_encoder", "_loading")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._encoder, self._loading = None, threading.Lock()
