"""The base class of downstream networks, in three parts: what it reads of examples, how it is saved, what it computes."""

import copy
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mcdi.errors import McdiError, explained
from mcdi.networks import batched
from mcdi.networks.backbones.embedder import Embedder
from mcdi.networks.batched import State
from mcdi.networks.support import members
from mcdi.types import Examples
from mcdi.utils.tensors import numbers_of
from mcdi.weights import WeightSpace

Start = Literal["gaussian", "module"]
LastLayer = Literal["generated", "prototypes", "ridge"]
# Settings of a family that only some networks use, and the network that has them.
OPTIONS = {
    **dict.fromkeys(("condition", "centred", "embedding"), "linear-head"),
    **dict.fromkeys(("filters", "pixels"), "conv-net"),
    "head": "conv-net' or 'pixel-net",
}


class NetworkTraits(NamedTuple):
    """What methods ask of the network of a recipe before it is built.

    closed_form: it ends in a linear head. condition_heads: closed-form heads in its condition. rows_only: rows of a linear head
    are all its weights. embedding: tasks are embedded by another network's features. equal_lengths: its features have one norm.
    last_layer: it can solve its last layer on the features of a generated body. solved: it does. filters: its units are
    filters.
    """

    kind: str
    closed_form: bool = False
    condition_heads: int = 0
    rows_only: bool = False
    embedding: bool = False
    equal_lengths: bool = True
    last_layer: bool = False
    solved: bool = False
    filters: bool = False


class TaskEmbedding:
    """What a network reads of examples, and the condition: what a generator is told of a support set."""

    embedder: Embedder | None = None
    condition_size: int  # numbers a unit
    input_size: int  # numbers an embedded example has
    embedding_size = 0  # how many of them, the last ones, are of another network, which the condition alone reads
    condition_heads = 0  # closed-form heads, D numbers each, that the condition of a class begins with
    condition_examples = 0  # single examples of a class that it ends with, at most
    example_shape: tuple[int, ...] | None = None  # of one example that is not embedded
    target_shape: tuple[int, ...] = ()  # of its y
    regression = False  # whether y are real numbers, not classes
    centred = False  # whether tasks see features less the centre of their support set
    reads_texts = False  # whether users give texts
    reads_integers = False  # whether examples that are not embedded are integers
    feature_dims = 1  # dimensions of an embedded example

    @property
    def summary_size(self) -> int:
        """How many of the condition's numbers, the first ones, a linear map may read: not those of single examples."""
        return self.condition_size

    def read(self, x: Any) -> Tensor:
        """What a user gives, as a tensor that `embed` takes."""
        return numbers_of(x, "the examples")

    def embed(self, x: Tensor) -> Tensor:
        """Raw examples (..., *shape) -> what `condition` and `forward` read (..., input_size)."""
        return x if self.embedder is None else self.embedder(x)

    def embed_query(self, x: Tensor) -> Tensor:
        """Of inputs to be answered, from which no task is learnt: what `forward` reads is enough."""
        return self.embed(x)

    def inputs(self, x: Tensor) -> Tensor:
        """What `forward` reads, of examples as their family names them; called before anything is vmapped."""
        return x

    def condition(self, support: Examples, units: int) -> Tensor:
        """Support sets (B, S, input_size), (B, S) -> (B, units, condition_size)."""
        raise NotImplementedError

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Of one example that `condition`, `support_set` and `forward` read."""
        return (self.input_size,) if self.example_shape is None else self.example_shape

    def support_set(self, support: Examples, way: int) -> Tensor:
        """The examples one by one, for generators that attend to them: (B, S, X + Y). The first X numbers are an example of
        `feature_shape`, the last Y its class, one-hot, or its target."""
        x, y = support.x.flatten(2), support.y
        labels = y.reshape(*y.shape[:2], -1) if self.regression else members(y, way)
        return torch.cat([x, labels.to(x.dtype)], -1)


class SavedNetwork(TaskEmbedding):
    """How a file describes a network: `from_config(config()).load_state(state())` makes it again."""

    kind = "network"
    needs_module = False  # whether its code is a module of the user's, which no file holds

    def config(self) -> dict[str, Any]:
        """Its `kind`, and what `from_config` takes, as plain values."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, values: Mapping[str, Any], code: Mapping[str, Any]) -> Self:
        """The network that `config` described. code: what no file holds, for networks that need some."""
        if code:
            raise McdiError(f"a {cls.kind} needs no code of yours: leave out {', '.join(code)}")
        embedder = values.get("embedder")
        return cls(**values if embedder is None else {**values, "embedder": Embedder.from_config(embedder)})

    def _described(self, **fields: Any) -> dict[str, Any]:
        """A `config` of these fields and the embedder."""
        return {"kind": self.kind, **fields, "embedder": None if self.embedder is None else self.embedder.config()}

    def state(self) -> dict[str, Tensor]:
        """Its frozen tensors."""
        return {} if self.embedder is None else self.embedder.saved()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state`."""
        if self.embedder is not None:
            self.embedder.restore(state)

    def to(self, device: str) -> None:
        """Move what is frozen: the weights of tasks are wherever their examples are."""
        if self.embedder is not None:
            self.embedder.to(device)


class Network(SavedNetwork):
    """A downstream network whose weights are generated: a template module, its weight space, loss and score.

    Any module will do; override `criterion` for another loss. Classification where y is int64 (cross-entropy, accuracy);
    regression where it is real (mean square, clipped R^2).

    Args:
        module: the template; it is frozen and set to evaluation mode.
        embedder: frozen backbone in front of it.
        start: theta_0 is drawn ("gaussian"), or what the module holds ("module": pretrained weights, LoRA pairs).
        space: `unit`, `select` and `shared` of WeightSpace: which parameters are generated, and in what units.
    """

    way: int  # classes of the template; a head may be generated for any number
    init_std = 0.05
    supports_closed_form = False  # whether it is a `heads.Head`: a formula gives a linear head of it
    supports_ridge_blend = False  # whether generated heads can be blended with ridge regression
    supports_adapters = False  # whether generated weights can be saved as a peft adapter
    supports_solved = False  # whether it has `solved`, its last layer in closed form on its own features
    has_filters = False  # whether its units are filters, where a recipe names it
    solves_last_layer = False  # whether generated weights are completed by it
    exportable = True  # whether `condition` is a pure function of features, which a file can hold
    options: tuple[str, ...] = ()  # which of OPTIONS it uses

    def __init__(self, module: nn.Module, embedder: Embedder | None = None, *, start: Start = "gaussian", **space: Any) -> None:
        self.module, self.embedder, self.start = module.requires_grad_(False).eval(), embedder, start
        self.space = WeightSpace(module, **space)

    @classmethod
    def for_family(cls, settings: Any, **parts: Any) -> Self:
        """The network of a recipe: of the family's settings, and what its source passes (`features`, `embedder` for images)."""
        return cls(**{"way": settings.way, **parts})

    @classmethod
    def check_family(cls, settings: Any) -> None:
        """Raises McdiError for settings of a family that this network does not go with."""
        for field in fields(settings):
            value = getattr(settings, field.name)
            if field.name in OPTIONS and field.name not in cls.options and value != field.default:
                fitting = OPTIONS[field.name]
                raise McdiError(f"{field.name} = {value!r} is for network = {fitting!r}, not {cls.kind!r}: leave it out")

    @classmethod
    def traits(cls, settings: Any) -> NetworkTraits:
        """What methods ask of the network that a family's settings describe."""
        solved = cls.supports_solved and getattr(settings, "head", "generated") != "generated"
        has = {"last_layer": cls.supports_solved, "solved": solved, "filters": cls.has_filters}
        return NetworkTraits(cls.kind, cls.supports_closed_form, cls.condition_heads, **has)

    def theta0(self, seed: int, units: int) -> Tensor:
        """(units, D): one start for all tasks of a family, which removes most of the weight-space symmetry."""
        generator = torch.Generator().manual_seed(seed)
        with batched.exclusive(self.module):
            state = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        drawn = () if self.start == "module" else self.space.parameter_names
        start = {n: self._start(n, state[n], generator) if n in drawn else state[n] for n in self.space.spec}
        packed = self.space.pack({n: p[None] for n, p in start.items()})[0]
        if self.space.unit == "filter" and self.space.any_rows:  # the order of classes means nothing
            front, rows, _ = self.space.parted(packed)
            return torch.cat([front, rows[-1:].expand(self.classes(units), -1)])
        return packed.expand(units, -1) if self.space.unit == "row" else packed

    def _start(self, name: str, p: Tensor, generator: torch.Generator) -> Tensor:
        std = p[0].numel() ** -0.5 if p.ndim > 1 else self.init_std
        return torch.randn(p.shape, generator=generator) * std

    def classes(self, units: int) -> int:
        """How many classes a task of so many units has."""
        classes = self.space.classes(units)
        return self.way if classes is None else classes

    def forward(self, state: State, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Every task's own outputs: {name: (B, *shape)}, (B, S, ...) -> (B, S, ...); keys as in batched.apply."""
        return batched.apply(self.module, state, x, keys)

    def criterion(self, out: Tensor, y: Tensor) -> Tensor:
        """Mean loss of each task, (B, S, ...), (B, S, ...) -> (B,)."""
        if y.is_floating_point():
            return ((out - y) ** 2).flatten(1).mean(1)
        return F.cross_entropy(out.transpose(1, 2), y, reduction="none").mean(1)  # few classes: softmax runs along S

    def losses(self, state: State, data: Examples, mask: Tensor, keys: Tensor | None = None) -> Tensor:
        """`criterion` of each task's own network on its own data: -> (B,)."""
        return self.criterion(self._masked(self.forward(state, data.x, keys), mask), data.y)

    def gradients(self, state: State, data: Examples, mask: Tensor, keys: Tensor | None = None) -> State:
        """d losses / d parameters of every task, by autograd; a network with a closed form overrides it."""
        leaves = {n: state[n].detach().requires_grad_() for n in self.space.parameter_names}
        with torch.enable_grad():
            total = self.losses({**state, **leaves}, data, mask, keys).sum()
        return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values()), materialize_grads=True), strict=True))

    def solved(self, weights: Tensor, support: Examples, how: LastLayer | None = None) -> Tensor:
        """Weights (B, U, D) with the last layer in closed form on the support set, differentiable in the others.

        how: None is the network's own choice. Raises McdiError for networks without it (`supports_solved`).
        """
        raise McdiError(f"the last layer of a {self.kind} cannot be solved: set head = 'generated', or network = 'conv-net'")

    def standalone(self, state: State) -> nn.Module:
        """The network of one task, {name: (*shape)}, as a module that needs nothing else. Raises McdiError for networks that
        cannot do without what is around them."""
        if self.embedder is not None or self.reads_texts:
            raise McdiError(f"a {self.kind} is no module by itself: use `mcdi export`, or generate a linear-head or a conv-net")
        return self.with_state(state)

    def with_state(self, state: State) -> nn.Module:
        """A copy of the module with the weights of one task, which may have another number of classes."""
        with batched.exclusive(self.module):
            module = copy.deepcopy(self.module)
        for name, value in state.items():
            owner, _, own = name.rpartition(".")
            getattr(module.get_submodule(owner), own).data = value
        return module

    def load_into(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Give `module` the weights of one task, and all that this network does not generate."""
        with batched.exclusive(self.module):
            held = self.module.state_dict()
            names = {id(p): n for n, p in self.module.named_parameters()}
            tied = {n: names[id(p)] for n, p in self.module.named_parameters(remove_duplicate=False)}
        state = {n: weights.get(tied.get(n, n), t) for n, t in held.items()}
        with explained("the weights do not fit this module", "give one like the generator's", RuntimeError, AttributeError):
            module.load_state_dict(state)

    response_size = 0  # numbers that `response` gives of an example

    def response(self, weights: Tensor, support: Examples) -> Tensor:
        """What networks do on their own support sets, for chains that see it: (B, U, D) -> (B, S, response_size), the same
        however classes are numbered."""
        raise McdiError(f"a {self.kind} does not say what its weights do: set response = false")

    def predict(self, weights: Tensor, x: Tensor) -> Tensor:
        """Outputs from packed weights: (B, U, D), (B, S, ...) -> (B, S, ...)."""
        return self.forward(self.space.unpack(weights), x)

    def logits(self, weights: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """`predict`, with -inf for classes that a task does not have."""
        return self._masked(self.predict(weights, x), mask)

    def loss(self, weights: Tensor, data: Examples, mask: Tensor) -> Tensor:
        """Mean loss of each task on `data`: (B, U, D), (B, S, ...) -> (B,)."""
        return self.losses(self.space.unpack(weights), data, mask)

    def score(self, weights: Tensor, data: Examples, mask: Tensor) -> Tensor:
        """Accuracy, or R^2 clipped to [0, 1], of each task: -> (B,)."""
        out = self.logits(weights, data.x, mask)
        if data.y.is_floating_point():
            out, y = (values.reshape(*values.shape[:2], -1) for values in (out, data.y))
            residual, spread = ((out - y) ** 2).sum(1), ((y - y.mean(1, keepdim=True)) ** 2).sum(1)
            return (1 - residual / spread.clamp(min=1e-9)).clamp(0, 1).mean(-1)
        return (out.argmax(-1) == data.y).float().mean(1)

    def _masked(self, out: Tensor, mask: Tensor) -> Tensor:
        return out
