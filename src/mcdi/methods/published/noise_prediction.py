"""The base of published weight diffusions: one chain, a network that predicts the noise, DDIM."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mcdi import core
from mcdi.errors import McdiError
from mcdi.methods.mcdi.denoisers import make_denoiser
from mcdi.methods.meta_training import Batch
from mcdi.methods.published.stored_weights import STORED_WEIGHTS, StoredWeightGenerator, StoredWeightSettings, masked_mean
from mcdi.utils.random import Seed, noise_streams, normal
from mcdi.weights import WeightSpace

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


NOISE_PREDICTION: dict[str, Any] = {**STORED_WEIGHTS, "slow": True}  # of the specs of all these methods
N = TypeVar("N", bound=NoisePredictionSettings)
M = TypeVar("M", bound=nn.Module)


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

        def clipped(x: Tensor, t: Tensor) -> Tensor:
            clean = core.to_x0(f(x, t / self.settings.T), x, t, schedule).clamp(-CLIP, CLIP)
            return core.to_f(clean, x, t, schedule, "x0")

        *_, (_, last) = core.sample(clipped, x, schedule, steps=self.settings.steps, eta=0.0)
        return last
