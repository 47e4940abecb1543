"""Which networks are generated? What all of them share; a whole small image network, a curve. Heads: heads.py."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.networks import batched
from mcdi.networks.backbones.vision import Embedder
from mcdi.networks.batched import State
from mcdi.types import Examples
from mcdi.weights import Unit, WeightSpace


class Network:
    """A downstream network: template module, which of its parameters are generated, task embedding, loss and score.

    Any module will do: give `select`, `unit` and `shared` as WeightSpace takes them, and override `criterion` for another loss.
    Classification where y is int64 (cross-entropy, accuracy); regression where it is real (mean square, clipped R^2).
    start "gaussian": theta_0 is drawn; "module": it is what the module holds (pretrained weights, norms, LoRA pairs).
    """

    kind = "network"
    reads_texts = False  # whether its examples are texts
    needs_module = False  # whether its code is a module of the user's, which no file holds
    exportable = True  # whether it is a pure function of features, which ONNX and torch.export can hold
    condition_size: int
    input_size: int  # numbers an embedded example has
    embedding_size = 0  # how many of them, the last ones, are of another network, which the condition alone reads
    way: int  # classes of the template; a head may be generated for any number
    condition_heads = 0  # how many rows of a head, D numbers each, the condition of a class begins with
    condition_examples = 0  # how many single ones of a class it ends with, at most
    example_shape: tuple[int, ...] | None = None  # of one example that is not embedded
    target_shape: tuple[int, ...] = ()  # of its y
    regression = False  # whether y are real numbers, not classes
    centred = False  # whether tasks see features less the centre of their support set; `uncentre` undoes it
    supports_ridge_blend = False  # whether its weights hold a linear head that can be blended with ridge regression
    init_std = 0.05

    @property
    def summary_size(self) -> int:
        """How many of the condition's numbers, the first ones, a linear map may read: not those of single examples."""
        return self.condition_size

    def __init__(
        self,
        module: nn.Module,
        embedder: Embedder | None = None,
        *,
        unit: Unit = "whole",
        select: str = ".*",
        start: Literal["gaussian", "module"] = "gaussian",
        shared: str = "",
    ) -> None:
        self.module, self.embedder, self.start = module.requires_grad_(False).eval(), embedder, start
        self.space = WeightSpace(module, select=select, unit=unit, shared=shared)

    def theta0(self, seed: int, units: int) -> Tensor:
        """(units, D): one start for all tasks of a family, which removes most of the weight-space symmetry."""
        generator = torch.Generator().manual_seed(seed)
        state = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        drawn = () if self.start == "module" else self.space.parameter_names
        start = {n: self._start(n, state[n], generator) if n in drawn else state[n] for n in self.space.spec}
        packed = self.space.pack({n: p[None] for n, p in start.items()})[0]
        return packed.expand(units, -1) if self.space.unit == "row" else packed

    def _start(self, name: str, p: Tensor, generator: torch.Generator) -> Tensor:
        fan_in = p[0].numel() if p.ndim > 1 else 0
        std = fan_in**-0.5 if fan_in else self.init_std
        return torch.randn(p.shape, generator=generator) * std

    def classes(self, units: int) -> int:
        """How many classes a task of so many units has."""
        return units - self.space.extra if self.space.unit == "row" else self.way

    def read(self, x: Any) -> Tensor:
        """What a user gives, as a tensor that `embed` takes."""
        return torch.as_tensor(x)

    def embed(self, x: Tensor) -> Tensor:
        return x if self.embedder is None else self.embedder(x)

    def embed_query(self, x: Tensor) -> Tensor:
        """Of inputs that are to be answered, from which no task is learnt: what `forward` reads is enough."""
        return self.embed(x)

    def inputs(self, x: Tensor) -> Tensor:
        """What `forward` reads, of examples as their family names them; called before anything is vmapped."""
        return x

    def condition(self, support: Examples, units: int) -> Tensor:
        raise NotImplementedError

    def uncentre(self, weights: Tensor, centre: Tensor) -> Tensor:
        """Weights (B, .., U, D) that answer on features x what these do on x - centre, (B, 1, F)."""
        raise McdiError(f"a {self.kind} reads no centred features: set centred = false")

    def blend_with_ridge(self, weights: Tensor, support: Examples, mask: Tensor, share: float | Tensor) -> Tensor:
        """Weights (B, n, U, D) whose heads keep `share` of themselves, one number or (B,): see support.blend_heads."""
        raise McdiError(f"share = {share} is for heads, and a {self.kind} is none: set share = 1")

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
        return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))

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

    def config(self) -> dict[str, Any]:
        """What `networks.build` makes the network of, beside `state()`."""
        raise NotImplementedError

    def embedder_config(self) -> dict[str, Any] | None:
        return None if self.embedder is None else self.embedder.config()

    def state(self) -> dict[str, Tensor]:
        return {} if self.embedder is None else dict(self.embedder.state_dict())

    def to(self, device: str) -> None:
        """Move what is frozen: the weights of tasks are wherever their examples are."""
        if self.embedder is not None:
            self.embedder.to(device)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state`."""
        if self.embedder is not None:
            self.embedder.load_state_dict(dict(state))
