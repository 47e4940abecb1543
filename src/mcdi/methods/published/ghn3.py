"""A graph hypernetwork, GHN-3 (2303.04143): parameters predicted from the computation graph of the network that they are for.

Its nodes are operations and parameter tensors, embedded by kind, shape and place; a Transformer, biased by the distances along
the graph, and a decoder make the tensors; the task's loss goes back through them. As published it reads no data: all tasks of
one network get the same weights, which is chance where classes are numbered at will. Our addition: a node that holds weights is
also told its unit's condition, a class's row that of its class, a tensor of a whole network that of the task. `data = false`
leaves it out and is the published method.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.methods.base import Log, register_method, silent
from mcdi.methods.episodes import fresh_tasks
from mcdi.methods.meta_training import Batch, MetaTraining, meta_train
from mcdi.methods.published.graph import Graph, graph_of
from mcdi.methods.published.graphormer import GraphHyperNetwork
from mcdi.networks.base import Network
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.store import Stored
from mcdi.types import Examples
from mcdi.weights import WeightSpace


@dataclass(frozen=True)
class GhnSettings:
    """width, layers, heads: those of GHN-3-T. tile: the largest matrix that is decoded whole, outputs and inputs; larger ones
    repeat it. Published are `width` of both; here rows are as long as features, up to those of the largest GHN-3. decay: of the
    norms of the predicted tensors, and smoothing: of the labels in training, both as published. data: our addition; false for
    one prediction for all tasks."""

    width: int = 64
    layers: int = 3
    heads: int = 8
    tile: tuple[int, int] = (64, 384)
    decay: float = 3e-5
    smoothing: float = 0.1
    data: bool = True
    training: MetaTraining = field(
        default_factory=lambda: MetaTraining(meta="none", iterations=1500, inner_steps=1, learners=32, tasks=1, outer_lr=0.001)
    )

    def __post_init__(self) -> None:
        if self.training.meta != "none":
            raise McdiError("this generator is trained in one level: leave training.meta = 'none'")
        if self.heads < 1 or self.width % self.heads or self.width % 4:
            raise McdiError(f"width = {self.width} must be a multiple of heads = {self.heads} and of 4")
        if len(self.tile) != 2 or min(self.layers, *self.tile, self.width) < 1:
            raise McdiError(
                f"layers = {self.layers}, width = {self.width}, both of tile = {list(self.tile)} must be at least 1"
            )
        if self.decay < 0 or not 0 <= self.smoothing < 1:
            raise McdiError(f"decay = {self.decay} must not be negative, smoothing = {self.smoothing} in [0, 1)")


def smoothed(net: Network, weights: Tensor, data: Examples, mask: Tensor, share: float) -> Tensor:
    """Mean loss of each task, (B,), on labels of which `share` is spread over all classes that the task has."""
    out = net.logits(weights, data.x, mask)
    loss = net.criterion(out, data.y)
    if data.y.is_floating_point() or not share:
        return loss
    there = out.isfinite()
    spread = -out.log_softmax(-1).masked_fill(~there, 0.0).sum(-1) / there.sum(-1)
    return (1 - share) * loss + share * spread.mean(1)


@register_method("ghn-3", settings=GhnSettings, label="GHN-3", colour="#0f766e", marker="s")
class Ghn:
    """Weights in one pass over the graph, without a gradient."""

    def __init__(self, settings: GhnSettings) -> None:
        self.settings = settings
        self.net: GraphHyperNetwork | None = None
        self.condition_size = 0

    def _make(self, graph: Graph, space: WeightSpace) -> GraphHyperNetwork:
        s = self.settings
        return GraphHyperNetwork(graph, space, self.condition_size, s.width, s.layers, s.heads, s.tile)

    def _condition(self, net: Network, support: Examples, mask: Tensor) -> Tensor:
        return net.condition(support, mask.shape[1]) if self.settings.data else torch.zeros(*mask.shape, 0, device=mask.device)

    def fit(self, family: TaskFamily, data: Stored | None, *, seed: int, log: Log = silent, folder: Path | None = None) -> Self:
        net, s = family.downstream, self.settings
        self.condition_size = net.condition_size if s.data else 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = made = self._make(graph_of(net.module, net.space), net.space)
        shape = s.training.shape

        def batch_at(step: int) -> Batch:
            tasks = fresh_tasks(family, math.prod(shape), step, seed)
            columns = (self._condition(net, tasks.support, tasks.mask), net.inputs(tasks.query.x), tasks.query.y, tasks.mask)
            return tuple(c.unflatten(0, shape) for c in columns)

        def loss_fn(params: dict[str, Tensor], cond: Tensor, asked: Tensor, answer: Tensor, mask: Tensor) -> Tensor:
            tensors = torch.func.functional_call(made, params, (cond, mask))
            norms = sum((t.flatten(1).norm(dim=1) for t in tensors.values()), torch.zeros(()))
            loss = smoothed(net, net.space.pack(tensors), Examples(asked, answer), mask, s.smoothing)
            return (loss + s.decay * norms).mean()

        meta_train(made, loss_fn, batch_at, s.training, log=log, folder=folder)
        return self

    @torch.no_grad()
    def generate(self, net: Network, support: Examples, mask: Tensor, *, seed: int) -> Tensor:
        if self.net is None:
            raise McdiError("this generator is not trained yet: call fit, or load a trained one")
        return self.net.space.pack(self.net.to(mask.device)(self._condition(net, support, mask), mask))

    def config(self) -> dict[str, Any]:
        assert self.net is not None
        space = self.net.space
        # Files of JSON have their keys sorted: the order of tensors, by which they are packed, is kept beside them.
        described = {"space": space.config(), "order": list(space.spec), "graph": self.net.graph.config()}
        return {"settings": asdict(self.settings), **described, "condition_size": self.condition_size}

    def state(self) -> dict[str, Tensor]:
        return {} if self.net is None else dict(self.net.state_dict())

    def restore(self, config: dict[str, Any], state: dict[str, Tensor]) -> Self:
        self.condition_size = int(config["condition_size"])
        space = config["space"]
        ordered = {**space, "parameters": {n: space["parameters"][n] for n in config["order"]}}
        self.net = self._make(Graph.from_config(config["graph"]), WeightSpace.from_config(ordered))
        self.net.load_state_dict(state)
        return self
