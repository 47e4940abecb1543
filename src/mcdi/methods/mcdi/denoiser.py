"""The denoiser f(x_t, t, c) of the paper as one module: a network, the linear prior under it, and the schedule."""

import math
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from mcdi import core
from mcdi.errors import McdiError
from mcdi.methods.mcdi.denoisers import make_denoiser
from mcdi.methods.mcdi.prior import HeadPrior, LinearPrior, Prior
from mcdi.methods.mcdi.settings import DiffusionSettings, Part
from mcdi.methods.sampling import SupportsSampling
from mcdi.networks.base import Network
from mcdi.networks.support import prototype_rows
from mcdi.types import Examples
from mcdi.weights import WeightSpace


class ConditionSizes(NamedTuple):
    """Of what a downstream network tells of a support set: numbers a unit, how many of them a linear map may read, closed-form
    heads at its beginning, single examples at its end. Of its `support_set`: an example's shape, and classes, or 0 and numbers
    of a target."""

    condition_size: int
    summary_size: int
    heads: int
    examples: int
    shape: tuple[int, ...] = ()
    way: int = 0
    target: int = 0
    response: int = 0

    @classmethod
    def of(cls, net: Network) -> "ConditionSizes":
        sizes = net.condition_size, net.summary_size, net.condition_heads, net.condition_examples
        labels = (0, math.prod(net.target_shape)) if net.regression else (net.way, 0)
        return cls(*sizes, tuple(net.feature_shape), *labels, net.response_size)


def generated_mask(part: Part, space: WeightSpace) -> Tensor:
    """Ones for the numbers of a part of a network in units of filters, zeros elsewhere, for every kind of unit: (kinds, D)."""
    if part == "classes" and not space.any_rows:
        raise McdiError("generated = 'classes' is for classifiers: this network has no rows of classes")
    chosen = {n: part != "vectors" or len(shape) == 1 for n, (shape, _) in space.spec.items()}
    numbers = space.pack({n: torch.full((1, *shape), float(chosen[n])) for n, (shape, _) in space.spec.items()})[0]
    if part == "classes":
        numbers[: space.fixed] = 0.0
    return numbers[: space.kinds]


class Denoiser(nn.Module):
    """f of the paper: the noise estimate of the global chain, given x_t, t and the condition of a support set.

    Args:
        settings: which network and prior, and the schedule.
        space: the generated weights, D numbers a unit.
        sizes: of the condition.

    Source: Mc-Di (CVPR 2026), f_phi^G. The prior under the network is ours.
    """

    def __init__(self, settings: DiffusionSettings, space: WeightSpace, sizes: ConditionSizes) -> None:
        super().__init__()
        s = self.settings = settings
        self.sizes, self.rows_only = sizes, space.unit == "row" and not space.extra
        self.schedule = core.make_schedule(s.schedule, s.T, s.segments, s.floor)
        self.prior: Prior | None = None
        if s.prior and s.parameterisation == "x0":
            kind = HeadPrior if s.prior_input == "heads" else LinearPrior
            inputs = {"summary": sizes.summary_size, "prototypes": space.D, "heads": sizes.heads}[s.prior_input]
            self.prior = kind(space.D, inputs, space.kinds)
        options: dict[str, Any] = dict(s.options)
        if s.denoiser == "transformer" and space.unit != "row":
            options = {"ordered": True, **options}
        if s.denoiser == "cross":
            options |= {"summary": sizes.summary_size, "examples": sizes.examples}
        self.head_size = sizes.heads * space.D
        reads = self.head_size if s.combines_heads else sizes.condition_size
        if s.reads_examples:
            # Without rows of classes labels have no unit of their own: they are read as numbers.
            options |= {"blocks": space.blocks, "shape": sizes.shape, "way": sizes.way if space.any_rows else 0}
            options |= {"response": sizes.response if s.response else 0, "spread": space.statistics()[1][:, :1]}
            options["generated"] = generated_mask(s.generated, space)
            reads = math.prod(sizes.shape) + (sizes.way or sizes.target)
        self.network = make_denoiser(s.denoiser, space.D, reads, space.U, **options)
        self.row_size = space.D

    def condition(self, net: Network, support: Examples, units: int) -> Tensor:
        """What this denoiser reads of support sets: (B, U, C), or (B, S, C) where it attends to examples one by one."""
        if self.settings.reads_examples:
            return net.support_set(support, net.classes(units))
        return net.condition(support, units)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        device = fn(torch.empty(0, device=self.schedule.alpha.device)).device
        self.schedule = replace(self.schedule, alpha=self.schedule.alpha.to(device))
        return self

    def prior_mean(self, cond: Tensor, mask: Tensor) -> Tensor | None:
        """The linear map's answer to the condition alone, (B, U, D); the same at every step of a chain."""
        return None if self.prior is None else self.prior.mean_of_weights(self.prior_input(cond), mask)

    def prior_input(self, cond: Tensor) -> Tensor:
        """What the prior reads of a condition: never the single examples, whose order would count."""
        if self.settings.prior_input == "summary":
            return cond[..., : self.sizes.summary_size]
        if self.settings.prior_input == "heads":
            return cond[..., : self.head_size]
        if not self.rows_only:
            raise McdiError("only linear heads have prototypes: set prior_input = 'summary'")
        return prototype_rows(cond[..., : self.row_size - 1])

    @torch.no_grad()
    def response(self, net: Network, space: WeightSpace, x: Tensor, cond: Tensor) -> Tensor | None:
        """What the networks of standardised weights x (B, U, D) do on the support sets of `cond`, (B, S, R); None where the
        settings do not ask for it."""
        if not self.settings.response:
            return None
        size = math.prod(self.sizes.shape)
        return net.response(space.restore(x), Examples(cond[..., :size], cond[..., size:].argmax(-1)))

    def forward(
        self,
        x: Tensor,
        t: core.Time,
        cond: Tensor,
        mask: Tensor,
        prior_mean: Tensor | None = None,
        response: Tensor | None = None,
    ) -> Tensor:
        """f(x_t, t, c).

        Args:
            x: (B, U, D), standardised weights at t.
            t: (B,), in [0, T), or one number for all tasks.
            cond: of `condition`.
            mask: (B, U), which units exist.
            prior_mean: `prior_mean` of the condition, where it is known already.
            response: of `response`.

        Returns:
            (B, U, D), the noise estimate of the global chain.
        """
        reads = cond
        if self.settings.combines_heads:
            assert isinstance(self.prior, HeadPrior)
            reads = self.prior.directions(self.prior_input(cond))
        more = () if response is None else (response,)
        time = torch.full((1,), t, device=x.device) if isinstance(t, int) else t
        output = self.network(x, time / self.schedule.T, reads, mask, *more)
        if self.prior is not None:
            # What the linear map alone would answer on the chain of t's own segment: its ideal f, in x0 form.
            mean = self.prior_mean(cond, mask) if prior_mean is None else prior_mean
            assert mean is not None
            local, bar = self.schedule.factor(x, t, self.schedule.segment(t + 1)), self.schedule.factor(x, t)
            f = (1 - bar) ** 0.5 / (1 - local) * (x - local**0.5 * self.prior(x, local, mean))
            output = output + core.to_x0(f, x, t, self.schedule)
        return core.to_f(output, x, t, self.schedule, self.settings.parameterisation)


@runtime_checkable
class HasDenoiser(SupportsSampling, Protocol):
    """A method whose chain is run by a `Denoiser`; None before it is trained."""

    denoiser: Denoiser | None
