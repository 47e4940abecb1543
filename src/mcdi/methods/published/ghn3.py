"""GHN-3, a graph hypernetwork: parameters predicted from the computation graph of the network that they are for. Nodes
are operations and parameter tensors, embedded by kind, shape and position. A Transformer, biased by the distances along
the graph, and a decoder predict the tensors, trained by the task's loss. As published it reads no data: all tasks of
one network get the same weights, which is chance where classes are numbered at random. Our addition: a node that holds
weights also reads its unit's condition, that of its class in a row, that of the task in a tensor of a whole network."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from mcdi.core import Params
from mcdi.errors import McdiError
from mcdi.methods.base import Log, register_method, silent
from mcdi.methods.episodes import by_learner, fresh_tasks
from mcdi.methods.meta_training import Batch, MetaTraining, meta_train
from mcdi.methods.published.graphormer import Graph, GraphHyperNetwork, graph_of
from mcdi.networks.base import Network
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.store import Stored
from mcdi.types import Examples
from mcdi.weights import WeightSpace

DECAY, SMOOTHING = 3e-5, 0.1  # of the norms of predicted tensors, of the labels in training; as published


@dataclass(frozen=True)
class GhnSettings:
    """width, layers, heads: those of GHN-3-T. tile: the largest matrix that is decoded whole, outputs and inputs; larger ones
    repeat it. Published are `width` of both; here rows are as long as features, up to those of the largest GHN-3. data:
    our addition; false is the published method, one prediction for all tasks."""

    width: int = 64
    layers: int = 3
    heads: int = 8
    tile: tuple[int, int] = (64, 384)
    data: bool = True
    training: MetaTraining = MetaTraining(meta="none", iterations=1500, inner_steps=1, learners=32, tasks=1, outer_lr=0.001)

    def __post_init__(self) -> None:
        if self.training.meta != "none":
            raise McdiError("this generator is trained in one level: leave training.meta = 'none'")
        if self.heads < 1 or self.width % self.heads or self.width % 4:
            raise McdiError(f"width = {self.width} must be a multiple of heads = {self.heads} and of 4")
        if len(self.tile) != 2 or min(self.layers, *self.tile, self.width) < 1:
            given = f"layers = {self.layers}, width = {self.width}, both of tile = {list(self.tile)}"
            raise McdiError(f"{given} must be at least 1")


def smoothed_loss(net: Network, weights: Tensor, data: Examples, mask: Tensor, smoothing: float) -> Tensor:
    """Mean loss of each task, (B,), on labels of which `smoothing` is spread over all classes that the task has."""
    out = net.logits(weights, data.x, mask)
    loss = net.criterion(out, data.y)
    if data.y.is_floating_point() or not smoothing:
        return loss
    classes = out.isfinite()
    uniform = -out.log_softmax(-1).masked_fill(~classes, 0.0).sum(-1) / classes.sum(-1)
    return (1 - smoothing) * loss + smoothing * uniform.mean(1)


@register_method("ghn-3", settings=GhnSettings, label="GHN-3", colour="#0f766e", marker="s")
class Ghn3:
    """Weights in one pass over the graph. Source: Knyazev et al., Can We Scale Transformers to Predict Parameters of
    Diverse ImageNet Models?, 2303.04143."""

    def __init__(self, settings: GhnSettings) -> None:
        self.settings = settings
        self.net: GraphHyperNetwork | None = None
        self.condition_size = 0

    def _make_module(self, graph: Graph, space: WeightSpace) -> GraphHyperNetwork:
        s = self.settings
        return GraphHyperNetwork(graph, space, self.condition_size, s.width, s.layers, s.heads, s.tile)

    def _condition(self, net: Network, support: Examples, mask: Tensor) -> Tensor:
        return net.condition(support, mask.shape[1]) if self.settings.data else torch.zeros(*mask.shape, 0, device=mask.device)

    def fit(self, family: TaskFamily, data: Stored | None, *, seed: int, log: Log = silent, folder: Path | None = None) -> Self:
        net, s = family.downstream, self.settings
        self.condition_size = net.condition_size if s.data else 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = module = self._make_module(graph_of(net.module, net.space), net.space)
        shape = s.training.shape

        def batch_at(step: int) -> Batch:
            support, query, mask, _ = fresh_tasks(family, math.prod(shape), step, seed)
            return by_learner(shape, cond=self._condition(net, support, mask), x=net.inputs(query.x), y=query.y, mask=mask)

        def loss_fn(params: Params, cond: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
            tensors = torch.func.functional_call(module, params, (cond, mask))
            norms = sum((t.flatten(1).norm(dim=1) for t in tensors.values()), torch.zeros(()))
            loss = smoothed_loss(net, net.space.pack(tensors), Examples(x, y), mask, SMOOTHING)
            return (loss + DECAY * norms).mean()

        meta_train(module, loss_fn, batch_at, s.training, log=log, folder=folder)
        return self

    @torch.no_grad()
    def generate(self, net: Network, support: Examples, mask: Tensor, *, seed: int) -> Tensor:
        if self.net is None:
            raise McdiError("this generator is not trained yet: call fit, or load a trained one")
        return self.net.space.pack(self.net.to(mask.device)(self._condition(net, support, mask), mask))

    def config(self) -> dict[str, Any]:
        assert self.net is not None
        space = self.net.space
        # JSON files have sorted keys: the order of tensors, by which they are packed, is saved apart.
        config = {"space": space.config(), "order": list(space.spec), "graph": self.net.graph._asdict()}
        return {"settings": asdict(self.settings), **config, "condition_size": self.condition_size}

    def state(self) -> dict[str, Tensor]:
        return {} if self.net is None else dict(self.net.state_dict())

    def restore(self, config: dict[str, Any], state: dict[str, Tensor]) -> Self:
        self.condition_size = int(config["condition_size"])
        space = config["space"]
        ordered = {**space, "parameters": {n: space["parameters"][n] for n in config["order"]}}
        self.net = self._make_module(Graph.from_config(config["graph"]), WeightSpace.from_config(ordered))
        self.net.load_state_dict(state)
        return self
