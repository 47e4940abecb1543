"""What training loops share: the learning-rate schedule, and files from which a stopped training is resumed."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from mcdi.errors import McdiError
from mcdi.utils.files import read_tensors, write_tensors
from mcdi.utils.workers import Progress

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


BACKBONE, FEATURES = "backbone.safetensors", "features.safetensors"  # files of a family in the folder of a run


def checkpoint_of(folder: Path, name: str) -> Path:
    """Where the state of a training lies until what it makes is written."""
    return folder / f"{name}.checkpoint.safetensors"


def run_training(losses: Callable[..., Iterable[float]], steps: int, folder: Path, name: str, progress: Progress) -> None:
    """Train to the end, from the checkpoint of a stopped run if there is one.

    Args:
        losses: (start=, checkpoint=) -> the loss of every step after those done; see train_backbone.
        steps: in all.
        folder, name: of the checkpoint; progress is reported under that name, with the loss.
    """
    path, start = checkpoint_of(folder, name), None
    if path.exists():
        state, metadata = read_tensors(path)
        start = (int(metadata["step"]), state)
    made = losses(start=start, checkpoint=lambda step, state: write_tensors(path, state, {"step": step}))
    for step, loss in enumerate(made, 1 + (start[0] if start else 0)):
        progress(name, step, steps, {"loss": loss})
