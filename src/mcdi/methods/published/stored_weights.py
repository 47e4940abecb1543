"""The bases of generators that learn from stored weights in one level, and of diffusions that predict the noise."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from mcdi import core
from mcdi.errors import McdiError
from mcdi.methods.base import Log, register_method, silent
from mcdi.methods.episodes import by_learner, stored_tasks
from mcdi.methods.mcdi.denoisers import make_denoiser
from mcdi.methods.meta_training import Batch, MetaTraining, meta_train
from mcdi.methods.sampling import best_on_support
from mcdi.networks.base import Network
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.store import Stored
from mcdi.types import Examples, TaskBatch
from mcdi.utils.random import Seed, noise_streams, normal, step_generator
from mcdi.weights import WeightSpace


@dataclass(frozen=True)
class StoredWeightSettings:
    """training: one level, Adam, so many iterations a stage; only meta = "none" makes sense. Whole numbers are at least 1."""

    training: MetaTraining = MetaTraining(meta="none", iterations=1500, inner_steps=1, learners=4, tasks=24)

    def __post_init__(self) -> None:
        if self.training.meta != "none":
            raise McdiError("this generator is trained in one level: leave training.meta = 'none'")
        for f in fields(self):
            if isinstance(value := getattr(self, f.name), int) and value < 1:
                raise McdiError(f"{f.name} = {value} must be at least 1")


register = partial(register_method, needs_trajectories=True, seed_per_task=True)  # all these methods
S = TypeVar("S", bound=StoredWeightSettings)
M = TypeVar("M", bound=nn.Module)


class Stage(NamedTuple):
    """One part of a training: `module` is trained by loss(params, **batch), on batches draw(standardised theta_M (n, U, D),
    their tasks, generator)."""

    module: nn.Module
    draw: Callable[[Tensor, TaskBatch, torch.Generator], Batch]
    loss: Callable[..., Tensor]


class StoredWeightGenerator(Generic[S, M]):
    """Base class: `make_module` builds the module, `stages` train it, `standardised_weights` generates with it."""

    def __init__(self, settings: S) -> None:
        self.settings = settings
        self.net: M | None = None
        self.space: WeightSpace | None = None
        self.condition_size = 0

    @property
    def modules(self) -> list[nn.Module]:
        return [] if self.net is None else [self.net]

    def trained(self) -> tuple[M, WeightSpace]:
        """The module, and the space of its weights. Raises McdiError before `fit`."""
        if self.net is None or self.space is None:
            raise McdiError("this generator is not trained yet: call fit, or load a trained one")
        return self.net, self.space

    def make_module(self, space: WeightSpace) -> M:
        raise NotImplementedError

    def stages(self, net: Network, data: Stored) -> Iterator[Stage]:
        """One after the other: a later stage may use what an earlier one has trained."""
        raise NotImplementedError

    def standardised_weights(self, net: Network, support: Examples, mask: Tensor, seed: Seed) -> Tensor:
        """(B, U, D), or draws (B, n, U, D) of which `generate` keeps the best on the support set."""
        raise NotImplementedError

    def fit(self, family: TaskFamily, data: Stored | None, *, seed: int, log: Log = silent, folder: Path | None = None) -> Self:
        if data is None:
            raise McdiError("this method learns from trajectories: run `mcdi prepare` first")
        net, training = family.downstream, self.settings.training
        space = self.space = net.space.fitted((part.targets[:, -1], part.mask) for part in data.parts())
        self.condition_size = net.condition_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = self.make_module(space)

        def batch_at(stage: Stage, step: int) -> Batch:
            g = step_generator(seed, step)
            rows, tasks = stored_tasks(family, data, math.prod(training.shape), step, g)
            return by_learner(training.shape, **stage.draw(space.standardise(rows.targets[:, -1]), tasks, g))

        for number, stage in enumerate(self.stages(net, data)):
            batches = partial(batch_at, stage)
            meta_train(stage.module, stage.loss, batches, training, log=log, folder=folder, stage=number)
        self.net.eval()
        return self

    @torch.no_grad()
    def generate(self, net: Network, support: Examples, mask: Tensor, *, seed: Seed) -> Tensor:
        module, space = self.trained()
        if next(module.parameters()).device != mask.device:  # an export cannot trace a move
            module.to(mask.device)
        weights = self.standardised_weights(net, support, mask, seed)
        if weights.ndim == 3:
            return space.restore(weights)
        drawn = space.restore(weights.flatten(0, 1)).unflatten(0, weights.shape[:2])
        return best_on_support(net, drawn, support, mask)

    def config(self) -> dict[str, Any]:
        return {"settings": asdict(self.settings), "space": self.trained()[1].config(), "condition_size": self.condition_size}

    def state(self) -> dict[str, Tensor]:
        module, space = self.trained()
        mean, std = space.statistics()
        return {"mean": mean, "std": std, **{f"net.{n}": p for n, p in module.state_dict().items()}}

    def restore(self, config: dict[str, Any], state: dict[str, Tensor]) -> Self:
        self.space = WeightSpace.from_config(config["space"]).with_statistics(state["mean"], state["std"])
        self.condition_size = int(config["condition_size"])
        self.net = self.make_module(self.space).eval()
        self.net.load_state_dict({n.removeprefix("net."): t for n, t in state.items() if n.startswith("net.")})
        return self


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over the units that exist: (B, U), (B, U) -> ()."""
    weights = mask.to(values.dtype)
    return (values * weights).sum() / weights.sum()


CLIP = 4.0  # standard deviations of what is generated


@dataclass(frozen=True)
class NoisePredictionSettings(StoredWeightSettings):
    """T linear steps, of which DDIM takes `steps`; options: of the transformer over units, whose sizes are ours. It has to pass
    the noise on, so that a width below a unit's numbers leaves it at chance."""

    T: int = 1000
    steps: int = 50
    options: dict[str, Any] = field(default_factory=lambda: {"width": 256, "depth": 2})

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= self.T:
            raise McdiError(f"steps = {self.steps} must be in 1..T = {self.T}")
        super().__post_init__()


N = TypeVar("N", bound=NoisePredictionSettings)


class NoisePredictionGenerator(StoredWeightGenerator[N, M]):
    """Base class; `floor`: abar at the noisy end, by default that of DDPM's betas, 1e-4 to 0.02 in a thousand steps."""

    floor = 4e-5

    def __init__(self, settings: N) -> None:
        super().__init__(settings)
        self.schedule = core.make_schedule("linear", settings.T, 1, self.floor)

    def make_denoiser(self, space: WeightSpace, size: int, condition_size: int) -> nn.Module:
        """Of units of `size` numbers, which reads `condition_size` numbers of each besides."""
        options = {**self.settings.options, "ordered": space.unit != "row"}
        return make_denoiser("transformer", size, condition_size, space.U, **options)

    def add_noise(self, clean: Tensor, g: torch.Generator) -> Batch:
        """x_t (B, U, D), their noise eps and the time t (B,) of every task."""
        t, i = core.draw(len(clean), self.schedule, g)
        eps = torch.randn(clean.shape, generator=g)
        return {"x": core.noised(clean, eps, t, i, self.schedule), "eps": eps, "t": t}

    def noise_loss(
        self, denoiser: nn.Module, params: core.Params, x: Tensor, eps: Tensor, t: Tensor, cond: Tensor, mask: Tensor
    ) -> Tensor:
        """The mean square error of the predicted noise (2006.11239, eq. 14)."""
        f = torch.func.functional_call(denoiser, params, (x, t / self.settings.T, cond, mask))
        return masked_mean((f - eps).square().mean(-1), mask)

    def ddim(self, f: Callable[[Tensor, Tensor], Tensor], mask: Tensor, size: int, seed: Seed) -> Tensor:
        """The end of a DDIM chain (2010.02502) from noise, (B, U, size), for a mask (B, U). The estimate of the clean end is
        clipped at every step, as in image diffusions: near pure noise a small error of f is a large one of the estimate."""
        schedule = replace(self.schedule, alpha=self.schedule.alpha.to(mask.device))
        x = normal((*mask.shape, size), noise_streams(seed, mask.device), schedule.alpha)

        def clipped(x: Tensor, t: int) -> Tensor:
            times = torch.full(x.shape[:1], t / self.settings.T, device=x.device)
            clean = core.to_x0(f(x, times), x, t, schedule).clamp(-CLIP, CLIP)
            return core.to_f(clean, x, t, schedule, "x0")

        *_, (_, last) = core.sample(clipped, x, schedule, steps=self.settings.steps, eta=0.0)
        return last
