"""How does a study train and measure its many variants, so that it can be stopped at any moment and shares what it can?

A cell is one variant of a method. A trained generator is kept under the run's studies/models by what decides it (method,
settings, preparation, seed), so that studies that need the same one train it once.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mcdi.errors import McdiError
from mcdi.experiments.build import load_family
from mcdi.experiments.recipe import Recipe
from mcdi.experiments.run import provenance, read_run, train_method, with_seeds
from mcdi.generator.saving import load_method
from mcdi.methods import WeightGenerator
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.prepare import Preparation, prepare
from mcdi.trajectories.store import TrajectoryStore
from mcdi.utils.files import read_tensors, write_tensors
from mcdi.utils.settings import make, merged
from mcdi.utils.workers import Progress, work_through


@dataclass(frozen=True)
class Cell:
    """One variant: `factors` are its first columns in the table; settings, preparation and family lie over the recipe's,
    of the family only what leaves its images and features as they are. every_seed: measured with every seed of the recipe,
    though its training draws nothing and happens once."""

    factors: Mapping[str, Any]
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    preparation: Mapping[str, Any] = field(default_factory=dict)
    family: Mapping[str, Any] = field(default_factory=dict)
    every_seed: bool = False


class Measured(NamedTuple):
    """One row of one seed: further factors, plain figures, and the scores of test tasks where there are some: of all, or of
    those from number `first` on."""

    factors: dict[str, Any]
    figures: dict[str, float]
    scores: Tensor | None = None  # (tasks,)
    first: int = 0


class Context:
    """The prepared run that a study works in; `family` changes what its tasks are seen as."""

    def __init__(self, folder: Path, family: Mapping[str, Any] | None = None) -> None:
        self.folder, recipe = folder, read_run(folder)
        self.recipe = replace(recipe, family=replace(recipe.family, **(family or {})))

    @cached_property
    def family(self) -> TaskFamily:
        return load_family(self.recipe.family, self.folder)

    @property
    def tasks(self) -> int:
        return self.recipe.evaluation.tasks

    @cached_property
    def reference(self) -> Tensor:
        """theta_M of the test tasks (tasks, U, D), for distances only."""
        return TrajectoryStore.open(self.folder / "reference").read().targets[:, -1]

    def preparation(self, cell: Cell) -> Preparation:
        return make(Preparation, merged(asdict(self.recipe.preparation), cell.preparation), "preparation")

    def store(self, cell: Cell) -> Path:
        """The trajectories of a cell: the run's own, or its own under studies/stores."""
        how = self.preparation(cell)
        if how == self.recipe.preparation:
            return self.folder / "trajectories"
        return self.folder / "studies" / "stores" / digest(asdict(how))

    def settings(self, cell: Cell) -> dict[str, Any]:
        return merged(self.recipe.settings_of(cell.method), cell.settings)


Measure = Callable[[Context, Cell, WeightGenerator, int], list[Measured]]


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _changed(cell: Cell) -> list[Any]:
    return [dict(cell.family)] if cell.family else []


def model_folder(context: Context, cell: Cell, seed: int) -> Path:
    decides = [cell.method, context.settings(cell), asdict(context.preparation(cell)), *_changed(cell)]
    return context.folder / "studies" / "models" / f"{cell.method}-{digest(decides)}-{seed}"


def trained(context: Context, cell: Cell, seed: int, progress: Progress) -> WeightGenerator:
    """The cell's generator, trained unless an earlier study has done so; its store must be prepared."""
    seed = context.recipe.evaluation.seeds[0] if cell.every_seed else seed
    target = model_folder(context, cell, seed)
    label = " ".join([*(str(v) for v in cell.factors.values()), str(seed)])
    train_method(
        cell.method,
        context.settings(cell),
        context.family,
        TrajectoryStore.open(context.store(cell)),
        seed=seed,
        validation=context.recipe.evaluation.validation,
        target=target,
        device="cpu",
        label=label,
        progress=progress,
    )
    return load_method(target)


class Share(NamedTuple):
    """What every worker of a study needs to know."""

    folder: Path
    study: str
    measure: Measure


def _do(share: Share, job: tuple[Cell, int], progress: Progress) -> None:
    cell, seed = job
    context = Context(share.folder, cell.family)
    path = result_path(context, share.study, cell, seed)
    if path.exists():
        return
    method = trained(context, cell, seed, progress)
    rows = share.measure(context, cell, method, seed)
    scores = {str(i): row.scores for i, row in enumerate(rows) if row.scores is not None}
    described = [[{**cell.factors, **row.factors}, row.figures, row.first] for row in rows]
    write_tensors(path, scores, {"rows": described, "seed": seed, "provenance": provenance()})


def result_path(context: Context, study: str, cell: Cell, seed: int) -> Path:
    decides = [context.settings(cell), asdict(context.preparation(cell)), context.tasks, dict(cell.factors), *_changed(cell)]
    return context.folder / "studies" / study / f"{cell.method}-{digest(decides)}-{seed}.safetensors"


def seeds_of(recipe: Recipe, cells: Sequence[Cell]) -> list[tuple[Cell, int]]:
    """Every (cell, seed) of a study."""
    return with_seeds(recipe, cells, lambda cell: None if cell.every_seed else cell.method)


def run_cells(
    context: Context, study: str, cells: Sequence[Cell], measure: Measure, *, workers: int, progress: Progress
) -> list[tuple[int, list[Measured], dict[str, Any]]]:
    """Every (cell, seed) of a study: [(seed, rows, provenance)]; what is on disk already is not done again."""
    if not cells:
        raise McdiError(f"study {study!r} has nothing to measure on this recipe: choose another recipe")
    for store, how in {context.store(cell): context.preparation(cell) for cell in cells}.items():
        if store != context.folder / "trajectories":  # the run has prepared its own
            name = "trajectories"
            prepare(context.family, store, how, split="train", device="cpu", workers=workers, name=name, progress=progress)
    jobs = seeds_of(context.recipe, cells)
    for _ in work_through(_do, Share(context.folder, study, measure), jobs, workers=workers, progress=progress):
        pass
    found = []
    for cell, seed in jobs:
        tensors, metadata = read_tensors(result_path(context, study, cell, seed))
        rows = [Measured(f, g, tensors.get(str(i)), *first) for i, (f, g, *first) in enumerate(metadata["rows"])]
        found.append((seed, rows, metadata["provenance"]))
    return found
