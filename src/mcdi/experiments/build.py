"""The family of a recipe: made by its source of data, with the trainings of frozen networks logged in the run's folder."""

from pathlib import Path

from mcdi.errors import McdiError
from mcdi.experiments.logs import TrainingLog
from mcdi.tasks.family import TaskFamily
from mcdi.tasks.registry import SOURCES, FamilySettings
from mcdi.utils.workers import Progress


def make_family(settings: FamilySettings, folder: Path, *, data: Path | None, device: str, progress: Progress) -> TaskFamily:
    """The family of a recipe, built in `folder`; what is there already is not made again. Raises McdiError for `data` given to
    a source that reads none, and for what the source finds wrong."""
    spec, logs = SOURCES.get(settings.data), dict[str, TrainingLog]()
    if data is not None and not spec.reads_data:
        raise McdiError(f"data = {settings.data!r} is generated and reads no --data: leave it out, or choose another recipe")

    def logged(name: str, done: int, total: int, figures: dict[str, float]) -> None:
        if "loss" in figures:
            logs.setdefault(name, TrainingLog(folder / "logs" / f"{name}.jsonl"))(done, total, figures)
        progress(name, done, total, figures)

    return spec.build(settings, folder, data=data, device=device, progress=logged)


def load_family(settings: FamilySettings, folder: Path) -> TaskFamily:
    """The family that `make_family` built in `folder`."""
    return SOURCES.get(settings.data).load(settings, folder)
