"""A module of the user's as a downstream network; tasks/own.py holds the tasks that go with it."""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mcdi.errors import McdiError, explained
from mcdi.networks.base import LastLayer
from mcdi.networks.batched import State, exclusive
from mcdi.networks.last_layer import EndsInLinear, ends_in_linear
from mcdi.networks.registry import register_network
from mcdi.types import Examples
from mcdi.weights import Unit

Loss = Callable[[Tensor, Tensor], Tensor]  # outputs (S, ...) and y (S, ...) of one task -> ()
Describe = Callable[[Tensor, Tensor], Tensor]  # support sets of B tasks, x (B, S, ...) and y (B, S, ...) -> (B, C)
PROBES = 32  # inputs at which a support set is described
NOISE = 0.1  # of y in its standard deviations, that the description allows for


@register_network("own")
class OwnNetwork(EndsInLinear):
    """A copy of the user's module; theta_0 is its weights, the condition is an estimate of y at fixed probe inputs.

    Probes are inputs of training tasks. The condition there is the kernel ridge estimate of y (of the probability of every
    class), and how many examples are near; it needs no gradient and does not depend on the module. It suits inputs of few
    numbers on one scale; for images or tokens give `describe`.

    Args:
        example, target: shapes of one x and of one y.
        way, regression: number of classes, or 1 where y are real numbers.
        squeeze: the module answers (S, 1) where y is (S,).
        integer: x are integers, as tokens are.
        described: how many numbers `describe` gives.
        loss: of one task; the default is cross-entropy or the mean square.
        describe: makes the condition in place of the probes: x (B, S, ...), y (B, S, ...) -> (B, C).
        select, unit: which parameters are generated, see WeightSpace.
        head: how the last layer of a classifier is made, see `EndsInLinear`; for a Sequential that ends in a Linear layer.
    """

    needs_module = True

    def __init__(
        self,
        module: nn.Module,
        *,
        example: Sequence[int],
        target: Sequence[int],
        way: int,
        regression: bool,
        squeeze: bool,
        integer: bool = False,
        described: int | None = None,
        loss: Loss | None = None,
        describe: Describe | None = None,
        select: str = ".*",
        unit: Unit = "whole",
        head: LastLayer = "generated",
    ) -> None:
        if unit == "row":
            raise McdiError("unit = 'row' is for heads of any number of classes: choose whole, layer or a chunk width")
        if (describe is None) != (described is None):
            own, yours = "at its own probe inputs: leave describe out", "by a function of yours: give it as `describe`"
            raise McdiError(f"this generator describes support sets {own if described is None else yours}")
        generated = tuple(n for n, _ in module.named_parameters() if re.search(select, n))
        self.supports_solved = not regression and ends_in_linear(module, way, generated)
        if head != "generated" and not self.supports_solved:
            raise McdiError(
                f"head = {head!r} is for a classifier that ends in a generated Linear layer with a bias: leave it out"
            )
        classes = unit == "filter" and self.supports_solved
        super().__init__(copy.deepcopy(module).cpu().float(), unit=unit, select=select, start="module", classes=classes)
        if self.supports_solved:
            self.set_head(head)
        self.example_shape, self.target_shape = tuple(example), tuple(target)
        self.input_size = torch.Size(self.example_shape).numel()
        self.way, self.regression, self.squeeze, self.described = way, regression, squeeze, described
        self.reads_integers = integer
        self.select, self.own_loss, self.describe = select, loss, describe
        values = torch.Size(self.target_shape).numel() if regression else way
        self.condition_size = PROBES * (1 + values) if described is None else described
        self.probes = torch.zeros(PROBES, self.input_size)
        self.scale = torch.tensor([0.0, 1.0, 1.0])  # mean and std of y, width of the kernel

    @classmethod
    def from_config(cls, values: Mapping[str, Any], code: Mapping[str, Any]) -> Self:
        if "module" not in code:
            raise McdiError("this generator is for a module of your own, whose code no file holds: give it as `module`")
        return cls(**values, **code)

    def fit_probe_inputs(self, data: Examples, seed: int = 0) -> None:
        """Choose the probes from training examples (N, S, ...), and the scales of x and y."""
        x, y, g = data.x.flatten(0, 1).flatten(1), data.y.float(), torch.Generator().manual_seed(seed)
        self.probes = x[torch.randint(len(x), (PROBES,), generator=g)]
        width = torch.pdist(self.probes).median() / 2
        self.scale = torch.stack([y.mean(), y.std().clamp(min=1e-6), width.clamp(min=1e-6)])

    def condition(self, support: Examples, units: int) -> Tensor:
        condition = self._estimate(support) if self.describe is None else self.describe(*support)
        wanted = support.y.shape[0], self.condition_size  # not len(), which an export would take as a constant
        if condition.shape != wanted:
            given = f"describe gave {tuple(condition.shape)} for {wanted[0]} support sets, not {wanted}"
            raise McdiError(f"{given}: it must give as many numbers for support sets of every size")
        return condition[:, None].expand(-1, units, -1)

    def _estimate(self, support: Examples) -> Tensor:
        x, (mean, std, width) = support.x.flatten(2), self.scale.to(support.x.device)
        y = (support.y - mean) / std if self.regression else F.one_hot(support.y, self.way) - 1 / self.way
        probes = self.probes.to(x.device).expand(x.shape[0], -1, -1)
        near, own = (torch.exp(-0.5 * (torch.cdist(points, x) / width) ** 2) for points in (probes, x))
        definite = own + NOISE**2 * torch.eye(x.shape[1], device=x.device)
        value = near @ torch.linalg.solve_ex(definite, y.reshape(*x.shape[:2], -1)).result
        return torch.cat([value.flatten(1), near.sum(-1).log1p()], -1)

    def forward(self, state: State, x: Tensor, keys: Tensor | None = None) -> Tensor:
        out = super().forward(state, x, keys)
        return out[..., 0] if self.squeeze else out

    def criterion(self, out: Tensor, y: Tensor) -> Tensor:
        return super().criterion(out, y) if self.own_loss is None else torch.func.vmap(self.own_loss)(out, y)

    def config(self) -> dict[str, Any]:
        shapes = {"example": list(self.example_shape or ()), "target": list(self.target_shape)}
        sizes = {"way": self.way, "regression": self.regression, "squeeze": self.squeeze, "described": self.described}
        sizes["integer"] = self.reads_integers
        return {"kind": self.kind, **shapes, **sizes, "select": self.select, "unit": self.space.unit, "head": self.head}

    def state(self) -> dict[str, Tensor]:
        with exclusive(self.module):
            own = {f"module.{n}": t.clone() for n, t in self.module.state_dict().items()}  # tied ones share memory
        return {"probes": self.probes, "scale": self.scale, **own}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.probes, self.scale = state["probes"], state["scale"]
        try:
            self.module.load_state_dict({n.removeprefix("module."): t for n, t in state.items() if n.startswith("module.")})
        except RuntimeError as error:
            raise McdiError("the module has other parameters than the one the generator was made for: give the same") from error

    def embed(self, x: Tensor) -> Tensor:
        if self.reads_integers:
            with exclusive(self.module):
                check_integers(self.module, x if x.ndim > 1 + len(self.example_shape or ()) else x[None])
        return x

    def to(self, device: str) -> None:
        self.module.to(device)

    def __getstate__(self) -> dict[str, Any]:
        # While a thread runs the module, it holds the weights of that thread's task: they are not pickled or copied.
        with exclusive(self.module):
            return self.__dict__ | copy.deepcopy({n: part for n, part in self.__dict__.items() if isinstance(part, nn.Module)})


@torch.no_grad()
def check_integers(module: nn.Module, x: Tensor) -> None:
    """Raises McdiError for integers (B, S, ...) beyond an embedding of the module. Where torch runs many tasks at once, they
    would be rows of another task."""
    with explained("the module does not take these integers", "give those it has embeddings for", IndexError, RuntimeError):
        for part in x:
            module(part)
