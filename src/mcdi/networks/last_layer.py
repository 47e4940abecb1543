"""Whole networks that end in a linear layer: it can be solved in closed form on the features of the layers before it."""

from typing import get_args

import torch
from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.networks.base import LastLayer, Network
from mcdi.networks.batched import State, apply
from mcdi.networks.grouped import plain
from mcdi.networks.support import class_means, least_squares_rows, prototype_rows
from mcdi.types import Examples

RIDGE_SCALE = 10.0  # of the logits of ridge regression, whose targets are 0 and 1: R2-D2 learns it (1805.08136, section 3.2)


class EndsInLinear(Network):
    """A classifier whose module is a Sequential that ends in a Linear layer with a row a class.

    head: of generated weights. The last layer is "generated", or solved on the generated body's own features of the support
    set: "prototypes" (1703.05175) or "ridge" regression (1805.08136).
    """

    supports_solved = True
    head: LastLayer = "generated"

    def set_head(self, head: LastLayer) -> None:
        """Choose how the last layer of generated weights is made."""
        if head not in get_args(LastLayer):
            raise McdiError(f"head = {head!r} is unknown: choose {', '.join(get_args(LastLayer))}")
        assert isinstance(self.module, nn.Sequential)
        self.head, self.solves_last_layer = head, head != "generated"
        self.body, last = self.module[:-1], self.module[-1]
        assert isinstance(last, nn.Linear)
        self.last, self.response_size = f"{len(self.module) - 1}", last.in_features + 3

    def body_input(self, x: Tensor) -> Tensor:
        """What the body reads of examples (B, S, ...)."""
        return x

    def features_of(self, state: State, x: Tensor) -> Tensor:
        """What the last layer of every task reads: (B, S, ...) -> (B, S, F)."""
        own = {n: t for n, t in state.items() if not n.startswith(f"{self.last}.")}
        return apply(self.body, own, self.body_input(x))

    def solved(self, weights: Tensor, support: Examples, how: LastLayer | None = None) -> Tensor:
        if not self.supports_solved:
            return super().solved(weights, support, how)
        state = self.space.unpack(weights)
        features, way = self.features_of(state, support.x), self.classes(weights.shape[1])
        if (how or self.head) == "prototypes":
            rows = prototype_rows(class_means(features, support.y, way)[0])
        else:
            rows = RIDGE_SCALE * least_squares_rows(features, support.y, way)
        # Probabilities stay the same, and no logit is a small difference of large numbers, which 8-bit weights would blur.
        rows = rows - rows.mean(1, keepdim=True)
        solved = {f"{self.last}.weight": rows[..., :-1], f"{self.last}.bias": rows[..., -1]}
        return self.space.pack({**state, **solved})

    def response(self, weights: Tensor, support: Examples) -> Tensor:
        """Activations, probability of the own class, the largest other one, and the loss of every example."""
        state = self.space.unpack(self.solved(weights, support) if self.solves_last_layer else weights)
        features = self.features_of(state, support.x)
        weight, bias = state[f"{self.last}.weight"], state[f"{self.last}.bias"]
        logits = features @ weight.transpose(1, 2) + bias[:, None]
        own, p = support.y[..., None], logits.softmax(-1)
        others = p.scatter(-1, own, 0.0).amax(-1, keepdim=True)
        return torch.cat([features, p.gather(-1, own), others, -logits.log_softmax(-1).gather(-1, own)], -1)


def ends_in_linear(module: nn.Module, way: int, generated: tuple[str, ...]) -> bool:
    """Whether a module is a plain Sequential that ends in a Linear layer with `way` rows and a bias, both of them `generated`.
    What the code of a subclass or of a hook makes of its features is unknown."""
    if type(module) is not nn.Sequential or not plain(module) or len(module) < 2:
        return False
    last = module[-1]
    if type(last) is not nn.Linear or not plain(last) or last.bias is None:
        return False
    return last.out_features == way and {f"{len(module) - 1}.{n}" for n in ("weight", "bias")} <= set(generated)
