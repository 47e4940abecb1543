"""What have generators in common that are a module trained on stored weights, in one level, and answer without the store?"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.methods.base import Log, silent
from mcdi.methods.episodes import stored_tasks
from mcdi.methods.meta_training import Batch, MetaTraining, meta_train
from mcdi.methods.sampling import best_on_support
from mcdi.networks.base import Network
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.store import Stored
from mcdi.types import Examples, TaskBatch
from mcdi.utils.random import Seed
from mcdi.weights import WeightSpace


@dataclass(frozen=True)
class FromWeightsSettings:
    """training: one level, Adam, so many iterations a stage; only meta = "none" makes sense."""

    training: MetaTraining = MetaTraining(meta="none", iterations=1500, inner_steps=1, learners=4, tasks=24)

    def __post_init__(self) -> None:
        if self.training.meta != "none":
            raise McdiError("this generator is trained in one level: leave training.meta = 'none'")


S = TypeVar("S", bound=FromWeightsSettings)
Draw = Callable[[Tensor, TaskBatch, torch.Generator], Batch]


class Stage(NamedTuple):
    """`module` is trained by loss(params, *batch), on batches draw(standardised theta_M (n, U, D), their tasks, generator)."""

    module: nn.Module
    draw: Draw
    loss: Callable[..., Tensor]


class FromWeights(Generic[S]):
    """Base: `make` says what the module is, `stages` how it is trained, `answer` what it says of a support set."""

    def __init__(self, settings: S) -> None:
        self.settings = settings
        self.net: nn.Module | None = None
        self.space: WeightSpace | None = None
        self.condition_size = 0

    @property
    def modules(self) -> list[nn.Module]:
        return [] if self.net is None else [self.net]

    def make(self, space: WeightSpace) -> nn.Module:
        raise NotImplementedError

    def stages(self, net: Network, space: WeightSpace, data: Stored) -> Iterator[Stage]:
        """One after the other: a later stage may read what an earlier one has learnt."""
        raise NotImplementedError

    def answer(self, net: Network, support: Examples, mask: Tensor, seed: Seed) -> Tensor:
        """Standardised weights, (B, U, D), or (B, n, U, D) of which the best on the support set is taken."""
        raise NotImplementedError

    def fit(self, family: TaskFamily, data: Stored | None, *, seed: int, log: Log = silent, folder: Path | None = None) -> Self:
        if data is None:
            raise McdiError("this method learns from trajectories: run `mcdi prepare` first")
        net, how = family.downstream, self.settings.training
        space = self.space = net.space.fitted((part.targets[:, -1], part.mask) for part in data.parts())
        self.condition_size = net.condition_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = self.make(space)
        for number, stage in enumerate(self.stages(net, space, data)):
            batch_at = partial(self._batch_at, family, data, stage.draw, seed)
            meta_train(stage.module, stage.loss, batch_at, how, log=log, folder=folder, stage=number)
        self.net.eval()
        return self

    def _batch_at(self, family: TaskFamily, data: Stored, draw: Draw, seed: int, step: int) -> Batch:
        assert self.space is not None
        shape = self.settings.training.shape
        g = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows, tasks = stored_tasks(family, data, math.prod(shape), step, g)
        drawn = draw(self.space.standardise(rows.targets[:, -1]), tasks, g)
        return tuple(part.unflatten(0, shape) for part in drawn)

    @torch.no_grad()
    def generate(self, net: Network, support: Examples, mask: Tensor, *, seed: Seed) -> Tensor:
        if self.net is None or self.space is None:
            raise McdiError("this generator is not trained yet: call fit, or load a trained one")
        if next(self.net.parameters()).device != mask.device:  # an export cannot trace a move
            self.net.to(mask.device)
        found = self.answer(net, support, mask, seed)
        if found.ndim == 3:
            return self.space.restore(found)
        drawn = self.space.restore(found.flatten(0, 1)).unflatten(0, found.shape[:2])
        return best_on_support(net, drawn, support, mask)

    def config(self) -> dict[str, Any]:
        assert self.space is not None
        return {"settings": asdict(self.settings), "space": self.space.config(), "condition_size": self.condition_size}

    def state(self) -> dict[str, Tensor]:
        assert self.net is not None and self.space is not None
        mean, std = self.space.statistics()
        return {"mean": mean, "std": std, **{f"net.{n}": p for n, p in self.net.state_dict().items()}}

    def restore(self, config: dict[str, Any], state: dict[str, Tensor]) -> Self:
        self.space = WeightSpace.from_config(config["space"]).with_statistics(state["mean"], state["std"])
        self.condition_size = int(config["condition_size"])
        self.net = self.make(self.space).eval()
        self.net.load_state_dict({n.removeprefix("net."): t for n, t in state.items() if n.startswith("net.")})
        return self


def over_units(each: Tensor, mask: Tensor) -> Tensor:
    """The mean over the units that are there: (B, U), (B, U) -> ()."""
    there = mask.to(each.dtype)
    return (each * there).sum() / there.sum()
