"""The mathematics of the paper (Mc-Di, CVPR 2026): schedule, local consistency loss, sampler and REPTILE.

Time runs as in the paper, from noise (t = 0) to weights (t = T). Segment i of k ends at e_i = round(i T / k), where
the chain should equal the local target theta_{i d}. A denoiser is any callable f(x, t) whose condition the caller has bound.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.utils.random import Noise, normal

Params = dict[str, Tensor]
Parameterisation = Literal["eps", "x0", "v"]
Time = TypeVar("Time", Tensor, int)  # one a task, or one for all


@dataclass(frozen=True)
class Schedule:
    """T diffusion steps in k segments.

    Args:
        alpha: (T,) fraction of the signal kept from t + 1 to t, in (0, 1), smallest near noise.
        k: number of segments, 1..T.
        max_signal: the largest sqrt(abar^i_0) allowed, so that every chain starts from noise.
    """

    alpha: Tensor
    k: int = 1
    max_signal: float = 0.1
    ends: Tensor = field(init=False)  # (k + 1,) e_0 = 0, e_1, .., e_k = T; e_i = round(i T / k), k need not divide T
    _log_bar: Tensor = field(init=False, repr=False)  # (T + 1,) log abar_t
    _log_end: Tensor = field(init=False, repr=False)  # (k + 1,) log abar_{e_i}
    _numbers: tuple[list[int], list[float]] = field(init=False, repr=False)  # ends and log abar, for single times

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.T:
            raise McdiError(f"k = {self.k} segments do not fit T = {self.T} steps: choose 1 <= k <= T")
        if not bool(((self.alpha > 0) & (self.alpha < 1)).all()):
            raise McdiError("a schedule needs 0 < alpha < 1 at every step; common betas scaled to few steps reach beta = 1")
        # Every step of every chain reads these: computed once (the class is frozen).
        ends = torch.tensor([round(i * self.T / self.k) for i in range(self.k + 1)], device=self.alpha.device)
        log_bar = torch.cat([self.alpha.log().flip(0).cumsum(0).flip(0), self.alpha.new_zeros(1)])
        for name, value in (("ends", ends), ("_log_bar", log_bar), ("_log_end", log_bar[ends])):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_numbers", (ends.tolist(), log_bar.tolist()))
        signal = float((log_bar[0] - log_bar[ends[1]]).exp().sqrt())
        if signal > self.max_signal:
            raise McdiError(
                f"segment 1 starts with a signal of {signal:.2f}, more than max_signal = {self.max_signal}: it is not noise; "
                f"use fewer segments than k = {self.k}, a lower floor, or raise max_signal"
            )

    @property
    def T(self) -> int:  # noqa: N802 - the paper's symbol
        return len(self.alpha)

    def segment(self, t: Time) -> Time:
        """The segment of arrival time t: the smallest i with e_i >= t."""
        if isinstance(t, int):
            return sum(end < t for end in self._numbers[0][1:-1]) + 1
        return (self.ends[1:-1] < t[..., None]).sum(-1) + 1  # not searchsorted, which ONNX lacks

    def bar(self, t: Tensor, i: Tensor | None = None) -> Tensor:
        """abar^i_t = prod_{j=t}^{e_i - 1} alpha_j, of t's shape; i = None is the global chain, i = k. 1 at t = e_i."""
        if i is None:  # log_bar ends at 0 = log abar_T
            return self._log_bar[t].exp()
        return (self._log_bar[t] - self._log_end[i]).exp()

    def number(self, t: int, i: int | None = None) -> float:
        """`bar` at one time."""
        ends, log_bar = self._numbers
        return math.exp(log_bar[t] - log_bar[self.T if i is None else ends[i]])

    def factor(self, x: Tensor, t: Time, i: Time | None = None) -> Tensor | float:
        """`bar` as a factor of x (B, ...): (B, 1, ..) of x's type; a number, which costs less, of one time for all tasks."""
        if isinstance(t, int):
            return self.number(t, i)
        bar = self.bar(t, i)
        return bar.reshape(bar.shape + (1,) * (x.ndim - bar.ndim)).to(x.dtype)


def make_schedule(kind: str = "cosine", T: int = 20, k: int = 1, floor: float = 2e-3, **check: float) -> Schedule:
    """A schedule whose global chain starts at abar_0 = `floor` (our choice: the paper names no schedule).

    Args:
        kind: "cosine": abar_t is cos^2 of an even grid; "linear": betas linear in t; "constant": equal alphas.
        T, k, check: numbers of steps and segments; `max_signal`.
    """
    if not 0 < floor < 1 or T < 1:
        raise McdiError(f"a schedule needs 0 < floor < 1 and T >= 1, not floor = {floor}, T = {T}")
    step = torch.arange(T, dtype=torch.float64, device="cpu")  # whatever the default is
    if kind == "cosine":
        bar = torch.cos(math.acos(math.sqrt(floor)) * (1 - torch.cat([step, step.new_full((1,), T)]) / T)) ** 2
        alpha = bar[:-1] / bar[1:]
    elif kind == "linear":
        low, high = 0.0, 1.0
        for _ in range(200):  # bisection: prod_t (1 - beta (T - t) / T) falls monotonically in beta
            beta = (low + high) / 2
            low, high = (beta, high) if float((1 - beta * (T - step) / T).log().sum().exp()) > floor else (low, beta)
        alpha = 1 - high * (T - step) / T
    elif kind == "constant":
        alpha = torch.full_like(step, floor ** (1 / T))
    else:
        raise McdiError(f"unknown schedule {kind!r}: choose cosine, linear or constant")
    return Schedule(alpha.float(), k, **check)


def noised(theta: Tensor, eps: Tensor, t: Tensor, i: Tensor, schedule: Schedule) -> Tensor:
    """x_t = sqrt(abar^i_t) theta_{i d} + sqrt(1 - abar^i_t) eps. theta, eps: (B, U, D); t, i: (B,), 0 <= t <= e_i."""
    bar = schedule.factor(theta, t, i)
    return bar**0.5 * theta + (1 - bar) ** 0.5 * eps


def to_f(output: Tensor, x: Tensor, t: Time, schedule: Schedule, kind: Parameterisation) -> Tensor:
    """The noise estimate f of the global chain from a network's output: eps, x0 or v (Salimans and Ho, 2202.00512).

    x0: f = (x - sqrt(abar) x0) / sqrt(1 - abar);  v = sqrt(abar) f - sqrt(1 - abar) x0, so f = sqrt(abar) v + sqrt(1 - abar) x.
    """
    if kind == "eps":
        return output
    bar = schedule.factor(x, t)
    if kind == "x0":
        return (x - bar**0.5 * output) / (1 - bar) ** 0.5
    if kind == "v":
        return bar**0.5 * output + (1 - bar) ** 0.5 * x
    raise McdiError(f"unknown parameterisation {kind!r}: choose eps, x0 or v")


def to_x0(f: Tensor, x: Tensor, t: Time, schedule: Schedule) -> Tensor:
    """x0 = (x_t - sqrt(1 - abar_t) f) / sqrt(abar_t), the global chain's one-step estimate of theta_M."""
    bar = schedule.factor(x, t)
    return (x - (1 - bar) ** 0.5 * f) / bar**0.5


def draw(n: int, schedule: Schedule, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """n pairs (t, i) for training: i uniform in 1..k, t uniform in [0, e_i)."""
    i = torch.randint(1, schedule.k + 1, (n,), generator=generator, device=generator.device)
    u = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float32)
    return (u * schedule.ends[i]).long().clamp(max=schedule.T - 1), i


def local_consistency_loss(f: Tensor, eps: Tensor, t: Tensor, i: Tensor, schedule: Schedule, weight: str = "paper") -> Tensor:
    """The local consistency loss L^loc_i = || sqrt(1 - abar^i_t) f(x_t, t) - sqrt(1 - abar_t) eps ||^2, per element.

    With i = k everywhere it is the vanilla loss weighted by 1 - abar_t: on theta_M only it is Mv-Di, on every theta_{i d}
    (each treated as the end point after T steps) it is Tw-Di.

    Args:
        f, eps: (B, U, D) noise estimate of the global chain, and the noise in x_t.
        t, i: (B,) times and segments.
        weight: "paper", or "x0": divided by abar_t (not clamped), the squared error of x0 for k = 1.
    """
    if weight not in ("paper", "x0"):
        raise McdiError(f"unknown loss weight {weight!r}: choose paper or x0")
    bar, local = schedule.factor(f, t), schedule.factor(f, t, i)
    loss = ((1 - local) ** 0.5 * f - (1 - bar) ** 0.5 * eps) ** 2
    return loss / bar if weight == "x0" else loss


def sample(
    f: Callable[[Tensor, int], Tensor],
    x: Tensor,
    schedule: Schedule,
    *,
    steps: int | None = None,
    eta: float = 1.0,
    noise: float = 1.0,
    chain: str = "segment",
    stop: int | None = None,
    generator: Noise = None,
) -> Iterator[tuple[int, Tensor]]:
    """Denoise x (B, U, D) from t = 0; yields (time reached, x) after each step.

    With b = abar^i, i the segment of the arrival time u:
    eps^ = sqrt((1 - b_t) / (1 - abar_t)) f,  theta^ = (x - sqrt(1 - b_t) eps^) / sqrt(b_t), and the step to u is
        x_u = sqrt(b_u) theta^ + sqrt(1 - b_u - s^2) eps^ + noise * s * z,   s = eta sqrt((1-b_u)/(1-b_t) (1 - b_t/b_u)).

    Args:
        steps, stop: number of steps, at most T (None: T); segment at whose end the chain ends, on theta_{i d} (None: k).
        eta: 1 is DDPM (its mean is the global ancestral mean for both chains; only the variance differs), 0 is DDIM.
        noise: factor of the noise; 0 gives the mean.
        chain: "segment": noise vanishes at every e_i, where x equals theta_{i d}; "global": i = k, inexact DDIM for i < k.
    """
    if chain not in ("segment", "global"):
        raise McdiError(f"unknown chain {chain!r}: choose segment or global")
    if stop is not None and not 1 <= stop <= schedule.k:
        raise McdiError(f"stop = {stop} names no local target: choose 1 <= stop <= k = {schedule.k}")
    last = schedule.T if stop is None else int(schedule.ends[stop])
    steps = last if steps is None else steps
    if not 1 <= steps <= schedule.T:
        raise McdiError(f"steps = {steps} is outside 1..T = {schedule.T}")
    steps = min(steps, last)
    times = [round(j * last / steps) for j in range(steps + 1)]
    for t, u in itertools.pairwise(times):
        i = schedule.segment(u) if chain == "segment" else stop
        b_now, b_then, bar = schedule.number(t, i), schedule.number(u, i), schedule.number(t)
        eps = math.sqrt((1 - b_now) / (1 - bar)) * f(x, t)
        theta = (x - math.sqrt(1 - b_now) * eps) / math.sqrt(b_now)
        s = eta * math.sqrt((1 - b_then) / (1 - b_now) * (1 - b_now / b_then))
        x = math.sqrt(b_then) * theta + math.sqrt(max(1 - b_then - s**2, 0.0)) * eps
        if noise and eta and u < last:
            x = x + noise * s * normal(x.shape, generator, x)
        yield u, x


def reptile_displacement(
    params: Params, loss_fn: Callable[..., Tensor], batches: tuple[Tensor, ...], inner_lr: float, inner: str = "sgd"
) -> tuple[Params, Tensor]:
    """B base learners phi_i, copies of phi, take K steps phi_i <- phi_i - eta grad L_i (Reptile, 1803.02999).
    Returns mean_i (phi_i - phi), and the losses (K, B).

    Args:
        loss_fn, batches: loss_fn(params, *batch) -> (); tensors (K, B, ...).
        inner: "sgd", or "adam": a new Adam without momentum (beta1 = 0) for each learner, as in the Reptile paper.
    """
    if inner not in ("sgd", "adam"):
        raise McdiError(f"unknown inner optimiser {inner!r}: choose sgd or adam")
    grad, keep, losses = torch.func.grad_and_value(loss_fn), 0.999, []
    phi = {n: p.detach().expand(batches[0].shape[1], *p.shape) for n, p in params.items()}
    square = {n: torch.zeros_like(p) for n, p in phi.items()}
    for j, batch in enumerate(zip(*batches, strict=True), 1):
        grads, loss = torch.func.vmap(grad)(phi, *batch)
        if inner == "adam":
            square = {n: torch.lerp(g**2, square[n], keep) for n, g in grads.items()}
            grads = {n: g / ((square[n] / (1 - keep**j)).sqrt() + 1e-8) for n, g in grads.items()}
        phi = {n: p - inner_lr * grads[n] for n, p in phi.items()}
        losses.append(loss)
    return {n: p.mean(0) - params[n].detach() for n, p in phi.items()}, torch.stack(losses)
