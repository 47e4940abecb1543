"""The meta-training of a generator's parameters phi: one loop for every generator, REPTILE or single level."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from mcdi.core import reptile_displacement
from mcdi.errors import McdiError
from mcdi.methods.base import Log
from mcdi.utils.files import read_tensors, write_tensors
from mcdi.utils.settings import check_fields
from mcdi.utils.training import cosine_rate, restore_training, training_state

Batch = dict[str, Tensor]  # the arguments of a loss by name; (K, B, tasks, ...) each in batch_at


@dataclass(frozen=True)
class MetaTraining:
    """The paper's eta (`inner_lr`), zeta (`outer_lr`) and K (`inner_steps`); the rest it does not give.

    meta "reptile": `learners` = B copies of phi, each on a batch of `tasks` tasks of its own, K steps of the `inner`
    optimiser, then the outer step. "none": single level, Adam on the same B * K * tasks examples at once, so that both
    see the same data. The outer rate falls to zero along a cosine, after a linear rise over a fraction `warmup` of the
    iterations. `clip` is the largest norm of the (meta-)gradient, longer ones are shortened to it; 0 takes them as they are.
    `ema` averages phi over the iterations, and the average is kept.
    """

    meta: Literal["reptile", "none"] = "reptile"
    iterations: int = 1500
    inner_lr: float = 0.005
    inner_steps: int = 3
    inner: Literal["sgd", "adam"] = "sgd"
    learners: int = 4
    tasks: int = 24
    outer: Literal["adam", "literal"] = "adam"
    outer_lr: float = 0.001
    warmup: float = 0.0
    clip: float = 0.0
    ema: float = 0.995
    checkpoint_every: int = 100

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the tasks of one iteration: (K, B, tasks)."""
        return self.inner_steps, self.learners, self.tasks

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.warmup < 1:
            raise McdiError(f"warmup = {self.warmup} is a fraction of the iterations: choose 0 <= warmup < 1")
        if self.clip < 0:
            raise McdiError(f"clip = {self.clip} is a norm: choose 0 or more, 0 to clip nothing")
        if min(self.inner_lr, self.outer_lr) <= 0 or not 0 <= self.ema < 1:
            raise McdiError(
                f"inner_lr = {self.inner_lr} and outer_lr = {self.outer_lr} must be positive, ema = {self.ema} in [0, 1)"
            )
        if min(self.iterations, self.inner_steps, self.learners, self.tasks) < 1:
            raise McdiError("iterations, inner_steps, learners and tasks must be at least 1")


class OuterStep:
    """Update of phi after the inner loop. "literal": phi + zeta * mean(phi_i - phi), as in the paper; "adam": Adam at rate
    zeta on the meta-gradient -mean(phi_i - phi) / (eta K), because the paper's rates move phi by about 1e-5 a step."""

    def __init__(self, params: list[Tensor], kind: str, outer_lr: float) -> None:
        if kind not in ("literal", "adam"):
            raise McdiError(f"unknown outer step {kind!r}: choose literal or adam")
        rule = torch.optim.SGD if kind == "literal" else torch.optim.Adam
        self.kind, self.optimiser = kind, rule(params, lr=outer_lr)

    def __call__(self, displacement: list[Tensor], inner_lr: float, inner_steps: int) -> None:
        scale = 1.0 if self.kind == "literal" else 1.0 / (inner_lr * inner_steps)
        for p, d in zip(self.optimiser.param_groups[0]["params"], displacement, strict=True):
            p.grad = -d * scale
        self.optimiser.step()


def meta_train(
    net: nn.Module,
    loss_fn: Callable[..., Tensor],
    batch_at: Callable[[int], Batch],
    settings: MetaTraining,
    *,
    log: Log,
    folder: Path | None,
    stage: int = 0,
) -> None:
    """Train `net` in place. loss_fn(params, **batch) -> (); batch_at(step) -> a batch decided by step alone.
    stage: of a method that trains several networks, each with a checkpoint of its own.

    With a folder, phi, its average and the outer optimiser are written every `checkpoint_every` iterations and after the
    last, in one atomic file; a run that finds it goes on from there and ends with the same phi. The log hears the loss, the
    rate lr of the outer step and, of several inner steps, the loss at the last. Raises McdiError on a NaN loss.
    """
    phi = {n: p.detach().clone() for n, p in net.named_parameters()}
    average = {n: p.clone() for n, p in phi.items()}
    outer = OuterStep(list(phi.values()), settings.outer if settings.meta == "reptile" else "adam", settings.outer_lr)
    path = None if folder is None else folder / f"checkpoint{stage or ''}.safetensors"
    done, tensors = 0, {f"phi.{n}": p for n, p in phi.items()} | {f"average.{n}": p for n, p in average.items()}
    if path is not None and path.exists():
        state, metadata = read_tensors(path)
        restore_training(tensors, outer.optimiser, state, str(path))
        done = int(metadata["step"])
        if done == settings.iterations:
            log(done, done, metadata["figures"])  # so that a log hears of every network
    for step in range(done, settings.iterations):
        batch = batch_at(step)
        loss_of, values = _by_position(loss_fn, tuple(batch)), tuple(batch.values())
        lr = cosine_rate(step, settings.iterations, settings.outer_lr, warmup=settings.warmup)
        outer.optimiser.param_groups[0]["lr"] = lr
        if settings.meta == "reptile":
            displacement, losses = reptile_displacement(phi, loss_of, values, settings.inner_lr, settings.inner)
            clip = settings.clip * settings.inner_lr * settings.inner_steps  # the meta-gradient is the displacement over these
            outer(_clipped(displacement.values(), clip), settings.inner_lr, settings.inner_steps)
        else:
            grads, losses = torch.func.grad_and_value(loss_of)(phi, *(b.flatten(0, 2) for b in values))
            outer(_clipped([-g for g in grads.values()], settings.clip), 1.0, 1)
        loss = float(losses.detach().mean())
        if not math.isfinite(loss):
            rates = f"outer_lr = {settings.outer_lr} or inner_lr = {settings.inner_lr}"
            raise McdiError(f"the loss became {loss} at iteration {step + 1}: lower {rates}")
        keep = min(settings.ema, (step + 1) / (step + 10))  # a short memory at first, or phi's random start would linger
        torch._foreach_lerp_(list(average.values()), list(phi.values()), 1 - keep)
        inner = {"inner_loss": float(losses[-1].mean())} if len(losses.shape) == 2 and len(losses) > 1 else {}
        figures = {"loss": loss, **inner, "lr": lr}
        log(step + 1, settings.iterations, figures)
        if path is not None and ((step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.iterations):
            described = {"step": step + 1, "figures": figures}
            write_tensors(path, training_state(tensors, outer.optimiser), described)  # after the log: it has all steps
    with torch.no_grad():
        for n, p in net.named_parameters():
            p.copy_(average[n])


def _clipped(tensors: Iterable[Tensor], norm: float) -> list[Tensor]:
    """The tensors, together no longer than `norm`; 0: as they are."""
    whole = list(tensors)
    if norm:
        factor = (norm / torch.nn.utils.get_total_norm(whole)).clamp(max=1)
        whole = [t * factor for t in whole]
    return whole


def _by_position(loss_fn: Callable[..., Tensor], names: tuple[str, ...]) -> Callable[..., Tensor]:
    """loss_fn(params, **batch) as a function of the batch's tensors in order, which core stacks and vmaps."""
    return lambda params, *tensors: loss_fn(params, **dict(zip(names, tensors, strict=True)))
