"""REPTILE on the downstream network itself: a meta-learnt start, then tuned Adam on the support set."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from mcdi.core import Params
from mcdi.methods.base import Log, register_method, silent
from mcdi.methods.baselines.finetune import FineTune, FineTuneSettings
from mcdi.methods.meta_training import Batch, MetaTraining, meta_train
from mcdi.networks.base import Network
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.prepare import Preparation
from mcdi.trajectories.store import Stored
from mcdi.types import Examples
from mcdi.utils.settings import make


@dataclass(frozen=True)
class ReptileSettings:
    """A base learner is one task; its K steps see K different draws of examples of that task."""

    training: MetaTraining = MetaTraining(iterations=1000, inner_lr=0.1, inner_steps=5, learners=16, tasks=1, outer_lr=0.01)
    tuning: FineTuneSettings = FineTuneSettings()


@register_method("reptile", settings=ReptileSettings, label="REPTILE", colour="#1fa3b5", marker="*", gradient_free=False)
class Reptile(FineTune):
    """Fine-tuning from the meta-learnt start instead of theta_0; everything else, the tuning included, is the same.

    Source:
        Nichol, Achiam and Schulman, On First-Order Meta-Learning Algorithms, 1803.02999.
    """

    def __init__(self, settings: ReptileSettings) -> None:
        super().__init__(settings.tuning)
        self.meta = settings

    def initial(self, net: Network, units: int) -> Tensor:
        return super().initial(net, units) if self.start is None else net.space.for_units(self.start, units)

    def fit(self, family: TaskFamily, data: Stored | None, *, seed: int, log: Log = silent, folder: Path | None = None) -> Self:
        self.start = self.learn_start(family, seed=seed, log=log, folder=folder)
        return super().fit(family, data, seed=seed)

    def learn_start(self, family: TaskFamily, *, seed: int, log: Log = silent, folder: Path | None = None) -> Tensor:
        """The start (U, D), without the choice of rate and steps; arguments as of `fit`."""
        net, training = family.downstream, self.meta.training
        units = family.sample("train", [0]).mask.shape[1]
        start = nn.ParameterDict({"weights": super().initial(net, units).clone()})

        def batch_at(step: int) -> Batch:
            seeds = [seed * 1_000_003 + step * training.learners + j for j in range(training.learners)]
            shots = family.shots[step % len(family.shots)]
            draws = [family.sample("train", seeds, draw=j, shots=shots) for j in range(training.inner_steps)]
            x, y, mask = (torch.stack(parts) for parts in zip(*((*d.support, d.mask) for d in draws), strict=True))
            return {"x": net.inputs(x).unsqueeze(2), "y": y.unsqueeze(2), "mask": mask.unsqueeze(2)}

        def loss_fn(params: Params, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
            return net.loss(params["weights"].expand(len(x), -1, -1), Examples(x, y), mask).mean()

        meta_train(start, loss_fn, batch_at, training, log=log, folder=folder)
        return start["weights"].detach()

    def config(self) -> dict[str, Any]:
        return {"settings": asdict(self.meta), "tuned": self.tuned}

    def state(self) -> dict[str, Tensor]:
        return {} if self.start is None else {"start": self.start}

    def restore(self, config: dict[str, Any], state: dict[str, Tensor]) -> Self:
        self.start = state["start"]
        return super().restore(config, state)


def trajectory_start(
    family: TaskFamily,
    preparation: Preparation,
    values: Mapping[str, Any] | None = None,
    *,
    log: Log = silent,
    folder: Path | None = None,
) -> Tensor | None:
    """REPTILE's start (U, D) as theta_0 of trajectories, None where theta_0 is drawn. All classes begin at their mean, so that
    their order means nothing.

    Args:
        family, log, folder: as of `Reptile.fit`.
        preparation: of the trajectories.
        values: REPTILE's settings.
    """
    if preparation.start == "drawn":
        return None
    space, method = family.downstream.space, Reptile(make(ReptileSettings, values or {}, "reptile"))
    learnt = method.learn_start(family, seed=preparation.theta0_seed, log=log, folder=folder)
    if not space.any_rows:
        return learnt
    front, rows, behind = space.parted(learnt)
    return torch.cat([front, rows.mean(0).expand_as(rows), behind])
