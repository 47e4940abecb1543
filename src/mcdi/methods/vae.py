"""A conditional variational autoencoder over weights (CVAE: Sohn, Lee and Yan, 2015), the simplest generative alternative."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.methods.base import Log, silent
from mcdi.methods.loop import Batch, MetaTraining, meta_train
from mcdi.methods.objective import stored_tasks
from mcdi.store import Stored
from mcdi.tasks.base import Examples, TaskFamily
from mcdi.tasks.downstream import Network
from mcdi.weights import WeightSpace


@dataclass(frozen=True)
class VaeSettings:
    """latent: numbers of z a unit; width: of the two perceptrons; beta: weight of the KL term (1 = the evidence bound)."""

    latent: int = 16
    width: int = 256
    beta: float = 1.0
    training: MetaTraining = field(
        default_factory=lambda: MetaTraining(meta="none", iterations=1500, inner_steps=1, learners=4, tasks=24)
    )

    def __post_init__(self) -> None:
        if min(self.latent, self.width) < 1 or self.beta <= 0:
            raise McdiError(f"latent = {self.latent} and width = {self.width} must be at least 1, beta = {self.beta} positive")
        if self.training.meta != "none":
            raise McdiError("an autoencoder is trained in one level: leave training.meta = 'none'")


class Autoencoder(nn.Module):
    """Unit by unit, so that any number of classes is served: q(z | theta, c) and p(theta | z, c), both Gaussian."""

    def __init__(self, size: int, condition_size: int, latent: int, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(size + condition_size, width), nn.SiLU(), nn.Linear(width, 2 * latent))
        self.decoder = nn.Sequential(
            nn.Linear(latent + condition_size, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, size)
        )

    def forward(self, theta: Tensor, cond: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """theta (B, U, D), cond (B, U, C), eps (B, U, latent) -> its reconstruction, and mean and log variance of z."""
        mean, log_variance = self.encoder(torch.cat([theta, cond], -1)).chunk(2, -1)
        return self.decode(mean + (0.5 * log_variance).exp() * eps, cond), mean, log_variance

    def decode(self, z: Tensor, cond: Tensor) -> Tensor:
        return self.decoder(torch.cat([z, cond], -1))


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)), summed over the last dimension (1312.6114, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


class Vae:
    """Weights are decoded from z = 0, the middle of the prior, and the support set's condition, without a gradient."""

    gradient_free = True

    def __init__(self, settings: VaeSettings) -> None:
        self.settings = settings
        self.net: Autoencoder | None = None
        self.space: WeightSpace | None = None
        self.condition_size = 0

    def fit(self, family: TaskFamily, data: Stored | None, *, seed: int, log: Log = silent, folder: Path | None = None) -> Self:
        if data is None:
            raise McdiError("this method learns from trajectories: run `mcdi prepare` first")
        net, s = family.downstream, self.settings
        space = self.space = net.space.fitted((part.targets[:, -1], part.mask) for part in data.parts())
        self.condition_size = net.condition_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = made = self._make(space)
        shape = s.training.shape

        def batch_at(step: int) -> Batch:
            g = torch.Generator().manual_seed(seed * 1_000_003 + step)
            rows, tasks = stored_tasks(family, data, math.prod(shape), step, g)
            theta = space.standardise(rows.targets[:, -1])
            eps = torch.randn(*theta.shape[:2], s.latent, generator=g)
            cond = net.condition(tasks.support, tasks.mask.shape[1])
            return tuple(part.unflatten(0, shape) for part in (theta, cond, eps, tasks.mask))

        def loss_fn(params: dict[str, Tensor], theta: Tensor, cond: Tensor, eps: Tensor, mask: Tensor) -> Tensor:
            found, mean, log_variance = torch.func.functional_call(made, params, (theta, cond, eps))
            there = mask.to(theta.dtype)
            # The decoder's variance is the best one, the mean square of its error (sigma-VAE, 2006.13202, eq. 7).
            error = ((found - theta).square().mean(-1) * there).sum() / there.sum()
            rate = (divergence(mean, log_variance) * there).sum() / there.sum()
            return 0.5 * theta.shape[-1] * error.log() + s.beta * rate

        meta_train(made, loss_fn, batch_at, s.training, log=log, folder=folder)
        made.eval()
        return self

    def _make(self, space: WeightSpace) -> Autoencoder:
        return Autoencoder(space.D, self.condition_size, self.settings.latent, self.settings.width)

    @torch.no_grad()
    def generate(self, net: Network, support: Examples, mask: Tensor, *, seed: int) -> Tensor:
        if self.net is None or self.space is None:
            raise McdiError("this generator is not trained yet: call fit, or load a trained one")
        cond = net.condition(support, mask.shape[1])
        return self.space.restore(self.net.decode(cond.new_zeros(*cond.shape[:2], self.settings.latent), cond))

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
        self.net = self._make(self.space).eval()
        self.net.load_state_dict({n.removeprefix("net."): t for n, t in state.items() if n.startswith("net.")})
        return self
