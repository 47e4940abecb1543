"""One learnt network for all tasks, of which only the last layer is each task's own, in closed form: what a generated network
has to beat. ProtoNet and R2-D2 of the network whose weights are generated."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from mcdi.core import Params
from mcdi.errors import McdiError
from mcdi.methods.base import Log, register_method, silent
from mcdi.methods.episodes import fresh_batch
from mcdi.methods.meta_training import Batch, MetaTraining, meta_train
from mcdi.networks.base import Network, NetworkTraits
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.store import Stored
from mcdi.types import Examples


@dataclass(frozen=True)
class SharedBodySettings:
    """head: the closed form; training: on fresh tasks, one level."""

    head: Literal["prototypes", "ridge"] = "prototypes"
    training: MetaTraining = MetaTraining("none", iterations=3000, inner_steps=1, learners=1, tasks=32, outer_lr=0.005)


_FACTS: dict[str, Any] = {"settings": SharedBodySettings, "baseline": True, "networks": "last layer"}


@register_method("protonet", label="ProtoNet", colour="#9c6b4f", marker="P", fixed={"head": "prototypes"}, **_FACTS)
@register_method("r2-d2", label="R2-D2", colour="#c9a227", marker="h", fixed={"head": "ridge"}, **_FACTS)
class SharedBody:
    """A network for all tasks, trained through the closed form of its last layer on every task's support set.

    Source: Snell et al., Prototypical Networks, 1703.05175; Bertinetto et al., R2-D2, 1805.08136.
    """

    def __init__(self, settings: SharedBodySettings) -> None:
        self.settings, self.local_targets = settings, 1
        self.start: Tensor | None = None  # (U, D)

    def check_network(self, traits: NetworkTraits) -> None:
        if not traits.last_layer:
            raise McdiError(f"the last layer of a {traits.kind} cannot be solved: leave out protonet and r2-d2")

    def fit(self, family: TaskFamily, data: Stored | None, *, seed: int, log: Log = silent, folder: Path | None = None) -> Self:
        net, s = family.downstream, self.settings
        shared = nn.ParameterDict({"weights": net.theta0(seed, net.space.U).clone()})

        def batch_at(step: int) -> Batch:
            return fresh_batch(family, s.training.shape, step, seed)

        def loss(params: Params, x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor, mask: Tensor) -> Tensor:
            weights = params["weights"].expand(len(mask), -1, -1)
            return net.loss(net.solved(weights, Examples(x, y), s.head), Examples(query_x, query_y), mask).mean()

        meta_train(shared, loss, batch_at, s.training, log=log, folder=folder)
        self.start = shared["weights"].detach()
        return self

    @torch.no_grad()
    def generate(self, net: Network, support: Examples, mask: Tensor, *, seed: int) -> Tensor:
        assert self.start is not None
        start = net.space.for_units(self.start.to(mask.device), mask.shape[1])
        return net.solved(start.expand(len(mask), -1, -1), support, self.settings.head)

    def config(self) -> dict[str, Any]:
        return {"settings": asdict(self.settings)}

    def state(self) -> dict[str, Tensor]:
        return {} if self.start is None else {"start": self.start}

    def restore(self, config: dict[str, Any], state: dict[str, Tensor]) -> Self:
        self.start = state["start"]
        return self
