"""The files of a family in the folder of a run, and trainings of frozen networks that go on after a stop."""

from collections.abc import Callable, Iterable
from pathlib import Path

from mcdi.utils.files import read_tensors, write_tensors
from mcdi.utils.workers import Progress

BACKBONE, FEATURES = "backbone.safetensors", "features.safetensors"


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
