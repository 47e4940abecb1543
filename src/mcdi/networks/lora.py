"""A language model's LoRA pairs and classifier rows as a downstream network."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.networks.backbones.language import POOLED, Encoder, LoraSettings, check_base
from mcdi.networks.backbones.texts import as_texts
from mcdi.networks.base import NetworkTraits
from mcdi.networks.batched import State, exclusive
from mcdi.networks.heads import CLOSED_FORM_HEADS, Condition, Head
from mcdi.networks.registry import register_network
from mcdi.networks.support import least_squares_rows, spreads
from mcdi.types import Examples
from mcdi.utils.names import exactly
from mcdi.utils.settings import make


@register_network("lora", "texts")
class LoraClassifier(Head):
    """A head row a class, and with generate = "both" the LoRA pairs of a frozen transformer's last layers: units of one length.

    An example is the trunk's states of a text, as `Encoder.read` gives them, or its index in `feature_bank`, which holds those
    of many texts: states are a hundred times as large as what a condition reads of them.

    theta_0 holds the pairs of the module, the same for all tasks, and a head of zeros: what peft starts from (A drawn, B
    zero), or pairs that LoRA pre-training (`pretrain_lora`) has trained on the training sets. The condition of a row is
    Head's on what the head reads of the frozen model; that of a piece of a pair describes both pooled features over the
    support set: their mean, the spread of the class means and the spread within classes. Flags name the piece. With condition
    "examples" a class has the first `examples` of its texts behind that, one by one, as the head reads them; the denoiser
    "cross" shows all of them to every row and piece.

    Args:
        way, condition, examples: see heads.Head; condition is "means" or "examples".
        base: the fingerprint that the frozen model must have; another is a McdiError.
    """

    feature_dims = 2
    statistics = 3  # numbers a feature in the condition of a pair
    exportable = False
    reads_texts = supports_adapters = True
    condition_heads = CLOSED_FORM_HEADS
    options = ("condition",)

    def __init__(
        self, lora: LoraSettings, way: int, base: int | None = None, condition: Condition = "means", examples: int = 0
    ) -> None:
        self.encoder = Encoder(lora, way)
        self.base = check_base(self.encoder, base)
        tail = self.encoder.tail
        names = [n for n, _ in tail.named_parameters()]
        self.adapted = [n for n in names if "lora_" in n]
        shared = self.adapted if lora.generate == "both" else []
        chosen = [n for n in names if n in shared or n.startswith(f"model.{self.encoder.head}.")]
        features = int(self.encoder.whole.config.hidden_size)
        told: dict[str, Any] = {"condition": condition, "examples": examples, "heads": CLOSED_FORM_HEADS}
        told["shared_statistics"] = POOLED * self.statistics * features
        generated: dict[str, Any] = {"select": exactly(chosen), "start": "module", "shared": exactly(shared)}
        super().__init__(tail, features, way, **told, **generated)
        self.input_size = features + 1
        self.centre, self.spread = torch.zeros(POOLED, features), torch.ones(POOLED, 1)
        self.feature_bank: Tensor | None = None

    @classmethod
    def for_family(cls, settings: Any, **parts: Any) -> Self:
        return cls(settings.lora, settings.way, condition=settings.condition, examples=max(settings.shots), **parts)

    @classmethod
    def traits(cls, settings: Any) -> NetworkTraits:
        rows_only = settings.lora.generate == "rows"
        return NetworkTraits(cls.kind, True, CLOSED_FORM_HEADS, rows_only=rows_only, equal_lengths=False)

    @classmethod
    def from_config(cls, values: Mapping[str, Any], code: Mapping[str, Any]) -> Self:
        return super().from_config({**values, "lora": make(LoraSettings, values["lora"], "lora")}, code)

    def __reduce__(self) -> tuple[Any, ...]:
        # For workers: the model is loaded again, not sent.
        return _rebuilt, (self._arguments(), self.state(), self.feature_bank)

    def theta0(self, seed: int, units: int) -> Tensor:
        with exclusive(self.module):
            held = dict(self.module.named_parameters())
        start = self.space.pack({n: held[n][None] for n in self.space.spec})[0]
        return torch.cat([start[:1].expand(self.classes(units), -1), start[self.way :]])

    def with_generated_pairs(self) -> "LoraClassifier":
        """The same network with the pairs generated too; itself, where they are."""
        if self.space.extra:
            return self
        arguments = {**self._arguments(), "lora": replace(self.encoder.settings, generate="both")}
        return _rebuilt(arguments, self.state(), self.feature_bank)

    def read(self, x: Any) -> Tensor:
        """Texts, see `texts.as_texts` -> their states; tensors stay as they are."""
        return x if isinstance(x, Tensor) else self.encoder.read(as_texts(x))

    def set_feature_bank(self, bank: Tensor, training: Tensor) -> None:
        """Keep the states of many texts (N, POOLED + L, H + 1); features are centred on the mean of `training` ones (n,)."""
        pooled = bank[training, :POOLED, :-1].float()
        self.feature_bank, self.centre = bank, pooled.mean(0)
        self.spread = (pooled - self.centre).square().mean((0, 2))[:, None].sqrt()

    def inputs(self, x: Tensor) -> Tensor:
        """`states`; of indices only the pooled rows where no pairs are generated: no layer is run for those."""
        if self.space.extra or x.is_floating_point():
            return self.states(x)
        return self._kept(x, slice(POOLED))

    def states(self, x: Tensor) -> Tensor:
        """What the tail reads, of states or indices; states of the bank are cut to their longest text."""
        if x.is_floating_point():
            return x.float()
        lengths = self._kept(x, slice(POOLED, None), slice(-1, None)).sum((-1, -2))
        return self._kept(x, slice(POOLED + int(lengths.max())))

    def _kept(self, x: Tensor, rows: slice, columns: slice = slice(None)) -> Tensor:
        """Some rows and columns of the states with these indices, on the device of the indices."""
        if self.feature_bank is None:
            raise McdiError("examples are indices of texts, and this network has no feature bank: give it states")
        return self.feature_bank[x.to(self.feature_bank.device), rows, columns].to(x.device).float()

    def pooled(self, x: Tensor) -> Tensor:
        """Both pooled features of every example, centred and scaled: (B, S, ...) -> (B, S, POOLED, H)."""
        return (self._read_by_head(x) - self.centre.to(x.device)) / self.spread.to(x.device)

    def _read_by_head(self, x: Tensor) -> Tensor:
        if self.encoder.settings.start == "drawn":
            raise McdiError("what the head reads was computed with trained pairs, these are drawn: set lora.start = 'trained'")
        states = x if x.is_floating_point() else self._kept(x, slice(POOLED))
        return states[..., :POOLED, :-1].float()

    def frozen_features(self, x: Tensor) -> Tensor:
        """What the head reads of the frozen model, neither centred nor scaled: (B, S, ...) -> (B, S, H)."""
        return self._read_by_head(x)[..., 0, :]

    def condition_features(self, x: Tensor) -> Tensor:
        return self.pooled(x)[..., 0, :]

    def shared_condition(self, support: Examples, way: int) -> Tensor:
        return torch.cat(spreads(self.pooled(support.x).flatten(2), support.y, way), -1)

    def closed_form(self, support: Examples, way: int, ridge: float = 1.0) -> Tensor:
        return self._raw(least_squares_rows(self.pooled(support.x)[..., 0, :], support.y, way, ridge))

    def closed_form_heads(self, features: Tensor, y: Tensor, way: int) -> Tensor:
        """Of features that are centred and scaled, for a head that reads them as they are."""
        return self._raw(super().closed_form_heads(features, y, way).unflatten(-1, (CLOSED_FORM_HEADS, -1))).flatten(2)

    def _raw(self, rows: Tensor) -> Tensor:
        """Rows (.., F + 1) that read centred and scaled features -> rows (.., D) of the same logits, but for one number."""
        weight = rows[..., :-1] / self.spread[0].to(rows)
        bias = rows[..., -1:] - (weight @ self.centre[0].to(rows))[..., None]
        return torch.cat([weight, bias], -1)[..., : self.space.D]  # heads of decoders have no bias

    def forward(self, state: State, x: Tensor, keys: Tensor | None = None) -> Tensor:
        if self.space.extra:
            return super().forward(state, self.inputs(x), keys)
        weight, *bias = (state[n] for n in self.space.spec)
        out = self.frozen_features(self.inputs(x)) @ weight.transpose(1, 2)
        return out + bias[0][:, None] if bias else out

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, **self._arguments(), "lora": asdict(self.encoder.settings), "base": self.base}

    def _arguments(self) -> dict[str, Any]:
        condition = {"condition": self.condition_kind, "examples": self.condition_examples}
        return {"lora": self.encoder.settings, "way": self.way, **condition}

    def to(self, device: str) -> None:
        self.encoder.to(device)

    @property
    def pairs(self) -> dict[str, nn.Parameter]:
        """The LoRA pairs that theta_0 holds, by name."""
        return self.encoder.pairs

    def state(self) -> dict[str, Tensor]:
        return {"centre": self.centre, "spread": self.spread, **{f"start.{n}": p.detach() for n, p in self.pairs.items()}}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.centre, self.spread = state["centre"], state["spread"]
        if self.encoder.settings.start == "trained":
            self.encoder.set_pairs({n: state[f"start.{n}"] for n in self.pairs})


def _rebuilt(arguments: Mapping[str, Any], state: dict[str, Tensor], bank: Tensor | None) -> LoraClassifier:
    network = LoraClassifier(**arguments)
    network.load_state(state)
    network.feature_bank = bank
    return network
