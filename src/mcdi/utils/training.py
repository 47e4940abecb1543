"""The learning-rate schedule of every training loop, and the tensors from which a stopped training is resumed."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from mcdi.errors import McdiError

_PREFIX = "optimiser."  # of the optimiser's tensors: optimiser.{position of the parameter}.{name}


def cosine_rate(step: int, steps: int, peak: float, *, warmup: float = 0.0, floor: float = 0.0) -> float:
    """The learning rate of a step in 0..steps - 1: a cosine that falls from `peak` to zero, times a linear rise over a fraction
    `warmup` of the steps, plus `floor`."""
    rise = min((step + 1) / (warmup * steps), 1.0) if warmup else 1.0
    return peak * rise * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + floor


def training_state(tensors: Mapping[str, Tensor], optimiser: Optimizer) -> dict[str, Tensor]:
    """The state of a training as flat tensors, which safetensors can hold: what is trained, by name (a module's `state_dict()`,
    or parameters and their average), and the optimiser's state. References, no copies: write them before the next step."""
    state = dict(tensors)
    for i, p in enumerate(_parameters(optimiser)):
        moments = optimiser.state.get(p, {})
        state |= {f"{_PREFIX}{i}.{n}": torch.as_tensor(value) for n, value in moments.items() if value is not None}
    return state


def restore_training(
    tensors: Mapping[str, Tensor], optimiser: Optimizer, state: Mapping[str, Tensor], name: str = "this state"
) -> None:
    """Inverse of `training_state`, in place: a resumed training ends with the weights of an uninterrupted one. Raises McdiError
    when `state`, called `name` in the message, is of another network."""
    saved = {n: t for n, t in state.items() if not n.startswith(_PREFIX)}
    if {n: t.shape for n, t in saved.items()} != {n: t.shape for n, t in tensors.items()}:
        raise McdiError(f"{name} is a checkpoint of another network: delete it or choose another --out")
    with torch.no_grad():
        for n, t in tensors.items():
            t.copy_(saved[n])
    parameters = _parameters(optimiser)
    for n in state.keys() - saved.keys():
        position, key = n.removeprefix(_PREFIX).split(".", 1)
        p = parameters[int(position)]
        counts_on = p.device if optimiser.defaults.get("fused") else "cpu"
        # Files do not keep the memory layout, in which fused optimisers walk through parameters and moments alike.
        copied = state[n].to(counts_on, copy=True) if key == "step" else torch.empty_like(p).copy_(state[n])
        optimiser.state[p][key] = copied


def _parameters(optimiser: Optimizer) -> list[Tensor]:
    return [p for group in optimiser.param_groups for p in group["params"]]
