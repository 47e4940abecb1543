"""Variants of a method: how a study trains and measures them, resumes, and shares trained generators with other studies.

A trained generator is kept under the run's studies/models by what decides it (method, settings, preparation, seed), so that
studies that need the same one train it once.
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
from mcdi.experiments.run import provenance, read_run, train_method, with_seeds
from mcdi.generator.saving import load_method
from mcdi.methods import WeightGenerator, method_spec
from mcdi.methods.base import MethodSpec
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.prepare import Preparation, prepare
from mcdi.trajectories.store import TrajectoryStore
from mcdi.utils.files import read_tensors, write_tensors
from mcdi.utils.settings import make, merged
from mcdi.utils.workers import Progress, work_through


@dataclass(frozen=True)
class Variant:
    """One variant of a method: `factors` are its first columns in the table; settings, preparation and family lie over the
    recipe's, of the family only what leaves images and features as they are. every_seed: measured with every seed of the
    recipe, though its training draws nothing and happens once."""

    factors: Mapping[str, Any]
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    preparation: Mapping[str, Any] = field(default_factory=dict)
    family: Mapping[str, Any] = field(default_factory=dict)
    every_seed: bool = False

    @property
    def spec(self) -> MethodSpec:
        return method_spec(self.method)


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

    def preparation(self, variant: Variant) -> Preparation:
        return make(Preparation, merged(asdict(self.recipe.preparation), variant.preparation), "preparation")

    def store(self, variant: Variant) -> Path:
        """The trajectories of a variant: the run's own, or its own under studies/stores."""
        preparation = self.preparation(variant)
        if preparation == self.recipe.preparation:
            return self.folder / "trajectories"
        return self.folder / "studies" / "stores" / _digest(asdict(preparation))

    def settings(self, variant: Variant) -> dict[str, Any]:
        return merged(self.recipe.settings_of(variant.method), variant.settings)


# (context, variant, its trained method, seed) -> rows
Measure = Callable[[Context, Variant, WeightGenerator, int], list[Measured]]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _changed(variant: Variant) -> list[Any]:
    return [dict(variant.family)] if variant.family else []


def model_folder(context: Context, variant: Variant, seed: int) -> Path:
    """Where the generator of a variant is kept."""
    decides = [variant.method, context.settings(variant), asdict(context.preparation(variant)), *_changed(variant)]
    return context.folder / "studies" / "models" / f"{variant.method}-{_digest(decides)}-{seed}"


def trained(context: Context, variant: Variant, seed: int, progress: Progress) -> WeightGenerator:
    """The variant's generator, trained unless an earlier study has done so; its store must be prepared."""
    seed = context.recipe.evaluation.seeds[0] if variant.every_seed else seed
    target = model_folder(context, variant, seed)
    train_method(
        variant.method,
        context.settings(variant),
        context.family,
        TrajectoryStore.open(context.store(variant)),
        seed=seed,
        validation=context.recipe.evaluation.validation,
        target=target,
        device="cpu",
        label=" ".join([*(str(v) for v in variant.factors.values()), str(seed)]),
        progress=progress,
    )
    return load_method(target)


class _Work(NamedTuple):
    """What every worker of a study needs."""

    folder: Path
    study: str
    measure: Measure


def _measure(work: _Work, job: tuple[Variant, int], progress: Progress) -> None:
    variant, seed = job
    context = Context(work.folder, variant.family)
    path = _result_path(context, work.study, variant, seed)
    if path.exists():
        return
    method = trained(context, variant, seed, progress)
    rows = work.measure(context, variant, method, seed)
    scores = {str(i): row.scores for i, row in enumerate(rows) if row.scores is not None}
    described = [[{**variant.factors, **row.factors}, row.figures, row.first] for row in rows]
    write_tensors(path, scores, {"rows": described, "seed": seed, "provenance": provenance()})


def _result_path(context: Context, study: str, variant: Variant, seed: int) -> Path:
    settings, preparation = context.settings(variant), asdict(context.preparation(variant))
    decides = [settings, preparation, context.tasks, dict(variant.factors), *_changed(variant)]
    return context.folder / "studies" / study / f"{variant.method}-{_digest(decides)}-{seed}.safetensors"


def run_variants(
    context: Context, study: str, variants: Sequence[Variant], measure: Measure, *, workers: int, progress: Progress
) -> list[tuple[int, list[Measured], dict[str, Any]]]:
    """Train and measure every variant with its seeds: [(seed, rows, provenance)]; what is on disk already is not done again.
    Raises McdiError where there are no variants."""
    if not variants:
        raise McdiError(f"study {study!r} has nothing to measure on this recipe: choose another recipe")
    for store, preparation in {context.store(v): context.preparation(v) for v in variants}.items():
        if store != context.folder / "trajectories":  # the run has prepared its own
            prepare(
                context.family,
                store,
                preparation,
                split="train",
                device="cpu",
                workers=workers,
                name="trajectories",
                progress=progress,
            )
    jobs = with_seeds(context.recipe, variants, lambda variant: None if variant.every_seed else variant.method)
    for _ in work_through(_measure, _Work(context.folder, study, measure), jobs, workers=workers, progress=progress):
        pass
    out = []
    for variant, seed in jobs:
        tensors, metadata = read_tensors(_result_path(context, study, variant, seed))
        rows = [Measured(f, g, tensors.get(str(i)), *first) for i, (f, g, *first) in enumerate(metadata["rows"])]
        out.append((seed, rows, metadata["provenance"]))
    return out
