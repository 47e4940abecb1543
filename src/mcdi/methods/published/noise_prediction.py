"""What do other systems' diffusions have in common? One chain, a network that predicts the noise, DDIM (2010.02502)."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mcdi import core
from mcdi.errors import McdiError
from mcdi.methods.mcdi.denoisers import make_denoiser
from mcdi.methods.published.stored_weights import FromWeights, FromWeightsSettings, over_units
from mcdi.utils.random import Seed, noise_streams, normal
from mcdi.weights import WeightSpace

CLIP = 4.0  # standard deviations of what is generated


@dataclass(frozen=True)
class FromNoiseSettings(FromWeightsSettings):
    """T linear steps, of which DDIM takes `steps`; options: of the transformer over units, whose sizes are ours. It has to pass
    the noise on, so that a width below a unit's numbers leaves it at chance."""

    T: int = 1000
    steps: int = 50
    options: dict[str, Any] = field(default_factory=lambda: {"width": 256, "depth": 2})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.steps <= self.T:
            raise McdiError(f"steps = {self.steps} must be in 1..T = {self.T}")


N = TypeVar("N", bound=FromNoiseSettings)


class FromNoise(FromWeights[N]):
    """Base; `floor`: abar at the noisy end, by default that of DDPM's betas, 1e-4 to 0.02 in a thousand steps."""

    floor = 4e-5

    def __init__(self, settings: N) -> None:
        super().__init__(settings)
        self.schedule = core.make_schedule("linear", settings.T, 1, self.floor)

    def denoiser(self, space: WeightSpace, size: int, reads: int) -> nn.Module:
        """Of units of `size` numbers; reads: numbers of a unit that it is told besides."""
        return make_denoiser("transformer", size, reads, space.U, **{**self.settings.options, "ordered": space.unit != "row"})

    def noised(self, clean: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """-> x_t, eps, t of every task."""
        t, i = core.draw(len(clean), self.schedule, g)
        eps = torch.randn(clean.shape, generator=g)
        return core.noised(clean, eps, t, i, self.schedule), eps, t

    def noise_loss(
        self, denoiser: nn.Module, params: core.Params, x: Tensor, eps: Tensor, t: Tensor, read: Tensor, mask: Tensor
    ) -> Tensor:
        """The plain mean square of the noise (2006.11239, eq. 14)."""
        f = torch.func.functional_call(denoiser, params, (x, t / self.settings.T, read, mask))
        return over_units((f - eps).square().mean(-1), mask)

    def denoised(self, f: Callable[[Tensor, Tensor], Tensor], like: Tensor, size: int, seed: Seed) -> Tensor:
        """The end of a DDIM chain from noise, (B, U, size) for a mask `like` (B, U). What a step takes for the clean end is
        clipped, as image diffusions do: near noise a small error of f is a large one of it."""
        schedule = replace(self.schedule, alpha=self.schedule.alpha.to(like.device))
        x = normal((*like.shape, size), noise_streams(seed, like.device), schedule.alpha)

        def clipped(x: Tensor, t: Tensor) -> Tensor:
            clean = core.to_x0(f(x, t / self.settings.T), x, t, schedule).clamp(-CLIP, CLIP)
            return core.to_f(clean, x, t, schedule, "x0")

        *_, (_, last) = core.sample(clipped, x, schedule, steps=self.settings.steps, eta=0.0)
        return last
