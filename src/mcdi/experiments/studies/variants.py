"""Variants of a method: how a study trains and measures them, and resumes. A trained generator is kept under the run's
studies/models by what decides it (method, settings, preparation, seed), so that studies that need the same one train it
once."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mcdi.errors import McdiError
from mcdi.experiments.run import Context, learnt_start, provenance, train_method, with_seeds
from mcdi.generator.saving import load_method
from mcdi.methods import WeightGenerator, method_spec
from mcdi.methods.base import MethodSpec
from mcdi.trajectories.prepare import Preparation, prepare
from mcdi.utils.files import read_tensors, write_tensors
from mcdi.utils.settings import make, merged
from mcdi.utils.workers import Progress, work_through

# Settings of a family that leave its weights and their trajectories as they are.
SAME_TRAJECTORIES = ("condition", "head")


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

    @property
    def own_network(self) -> dict[str, Any]:
        """Settings of the family with which weights or their trajectories are others."""
        return {n: v for n, v in self.family.items() if n not in SAME_TRAJECTORIES}


class Measured(NamedTuple):
    """One row of one seed: further factors, plain figures, and the scores of test tasks where there are some: of all, or of
    those from number `first` on."""

    factors: dict[str, Any]
    figures: dict[str, float]
    scores: Tensor | None = None  # (tasks,)
    first: int = 0


# (context, variant, its trained method, seed) -> rows
Measure = Callable[[Context, Variant, WeightGenerator, int], list[Measured]]


def _described(preparation: Preparation) -> dict[str, Any]:
    """Its values, without those that old runs did not have and that change nothing."""
    return {n: v for n, v in asdict(preparation).items() if (n, v) != ("start", "drawn")}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def on_variant(context: Context, variant: Variant) -> Context:
    """The run as a variant changes it; its trajectories are the run's, or its own under studies/stores where it has another
    preparation or network."""
    recipe, store = context.recipe, context.store
    preparation = make(Preparation, merged(asdict(recipe.preparation), variant.preparation), "preparation")
    family = variant.own_network if variant.spec.needs_trajectories else {}
    if preparation != recipe.preparation or family:
        decides = _described(preparation)
        store = context.folder / "studies" / "stores" / _digest([decides, family] if family else decides)
    method = merged(recipe.method, {variant.method: variant.settings})
    own = replace(recipe.family, **variant.family)
    return Context(context.folder, replace(recipe, family=own, preparation=preparation, method=method), store)


def _decides(context: Context, variant: Variant, *more: Any) -> list[Any]:
    """What a generator of a variant depends on, and `more`."""
    recipe = on_variant(context, variant).recipe
    family = [dict(variant.family)] if variant.family else []
    return [recipe.settings_of(variant.method), _described(recipe.preparation), *more, *family]


def model_folder(context: Context, variant: Variant, seed: int) -> Path:
    """Where the generator of a variant is kept."""
    digest = _digest([variant.method, *_decides(context, variant)])
    return context.folder / "studies" / "models" / f"{variant.method}-{digest}-{seed}"


def _label(variant: Variant, seed: int) -> str:
    """Of its lines of progress."""
    return " ".join([*(str(v) for v in variant.factors.values()), str(seed)])


def trained(context: Context, variant: Variant, seed: int, progress: Progress) -> WeightGenerator:
    """The variant's generator, trained unless an earlier study has done so; its store must be prepared."""
    seed = context.recipe.evaluation.seeds[0] if variant.every_seed else seed
    target = model_folder(context, variant, seed)
    train_method(on_variant(context, variant), variant.method, seed, target, log=partial(progress, _label(variant, seed)))
    return load_method(target)


def _measure(shared: tuple[Path, str, Measure], job: tuple[Variant, int], progress: Progress) -> None:
    (folder, study, measure), (variant, seed) = shared, job
    context = on_variant(Context(folder), variant)
    path = _result_path(context, study, variant, seed)
    if path.exists():
        return
    method = trained(context, variant, seed, progress)
    progress(f"{_label(variant, seed)}: measured", 0, 1, {})
    rows = measure(context, variant, method, seed)
    progress(f"{_label(variant, seed)}: measured", 1, 1, {})
    scores = {str(i): row.scores for i, row in enumerate(rows) if row.scores is not None}
    described = [[{**variant.factors, **row.factors}, row.figures, row.first] for row in rows]
    write_tensors(path, scores, {"rows": described, "seed": seed, "provenance": provenance()})


def _result_path(context: Context, study: str, variant: Variant, seed: int) -> Path:
    digest = _digest(_decides(context, variant, context.tasks, dict(variant.factors)))
    return context.folder / "studies" / study / f"{variant.method}-{digest}-{seed}.safetensors"


def run_variants(
    context: Context, study: str, variants: Sequence[Variant], measure: Measure, *, workers: int, progress: Progress
) -> list[tuple[int, list[Measured], dict[str, Any]]]:
    """[(seed, rows, provenance)] of variants with their seeds, made or read. Raises McdiError if there are no variants."""
    if not variants:
        raise McdiError(f"study {study!r} has nothing to measure on this recipe: choose another recipe")
    changed = [on_variant(context, variant) for variant in variants]
    for c in {c.store: c for c in changed if c.store != context.store}.values():
        theta0 = learnt_start(c, progress)
        prepare(c.family, c.store, c.recipe.preparation, theta0=theta0, workers=workers, progress=progress)
    jobs = with_seeds(context.recipe, variants, lambda variant: None if variant.every_seed else variant.method)
    for _ in work_through(_measure, (context.folder, study, measure), jobs, workers=workers, progress=progress):
        pass
    out = []
    for variant, seed in jobs:
        tensors, metadata = read_tensors(_result_path(context, study, variant, seed))
        rows = [Measured(f, g, tensors.get(str(i)), *first) for i, (f, g, *first) in enumerate(metadata["rows"])]
        out.append((seed, rows, metadata["provenance"]))
    return out
