"""The paper's studies, and ours, each from one command: CSV, Markdown and PNG under results/. A study works in a prepared run
(backbone, features, trajectories) and leaves its trained generators and scores there."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mcdi.errors import McdiError
from mcdi.experiments.recipe import Recipe
from mcdi.experiments.run import Context
from mcdi.experiments.studies.studies import ABOUT, STUDIES, find_study, fitting_methods
from mcdi.experiments.studies.tables import as_csv, as_markdown, draw, lines
from mcdi.experiments.studies.transfer import add_targets, named_targets
from mcdi.experiments.studies.variants import run_variants
from mcdi.methods import all_methods
from mcdi.methods.baselines.finetune import FineTuneSettings
from mcdi.methods.meta_training import MetaTraining
from mcdi.utils.files import write_bytes
from mcdi.utils.settings import merged
from mcdi.utils.workers import Progress

__all__ = ["ABOUT", "STUDIES", "choose_methods", "find_study", "named_targets", "quick", "reproduce"]

_TRAINING, _TUNING = {"iterations": 4, "learners": 2, "tasks": 4}, {"tasks": 20, "lrs": [0.03], "steps": [5, 20]}


def quick(recipe: Recipe) -> Recipe:
    """The recipe at a size at which a study takes seconds: it shows that everything runs, and its numbers mean nothing."""
    own = {name: _quick_settings(spec.settings) for name, spec in all_methods().items() if not spec.shared_settings}
    return replace(
        recipe,
        name=f"{recipe.name}-quick",
        family=recipe.family.quick(),
        preparation=replace(recipe.preparation, tasks=24, epochs=12),
        generator={**recipe.generator, "T": 6, "training": _TRAINING},
        method=merged(recipe.method, {name: values for name, values in own.items() if values}),
        evaluation=replace(recipe.evaluation, tasks=24, validation=24, seeds=(0, 1)),
    )


def _quick_settings(kind: type) -> dict[str, Any]:
    """Few iterations for every meta-training in a method's settings, and few tasks for every tuning."""
    small: dict[str, Any] = dict(_TUNING) if kind is FineTuneSettings else {}
    for field in fields(kind):
        default = field.default_factory() if callable(field.default_factory) else field.default
        if isinstance(default, MetaTraining):
            small[field.name] = _TRAINING | {"tasks": min(default.tasks, _TRAINING["tasks"])}
        elif isinstance(default, FineTuneSettings):
            small[field.name] = _TUNING
        elif field.name == "tuning_tasks":
            small[field.name] = _TUNING["tasks"]
    return small


def choose_methods(methods: str, recipe: Recipe) -> tuple[str, ...]:
    """ "all" that fit the recipe's network, or names with commas between them. Raises McdiError for one that does not fit."""
    fitting = fitting_methods(recipe)
    names = fitting if methods == "all" else tuple(n.strip() for n in methods.split(","))
    if unknown := [name for name in names if name not in fitting]:
        cure = f"choose all, or of {', '.join(fitting)}"
        raise McdiError(f"{unknown[0]!r} is no method for network = {recipe.family.network!r}: {cure}")
    return names


def reproduce(
    name: str,
    folder: Path,
    results: Path,
    *,
    workers: int,
    progress: Progress,
    methods: Sequence[str] | None = None,
    targets: Mapping[str, Path] | None = None,
) -> list[Path]:
    """Run a study in a prepared run. What is trained or measured already is not done again.

    Args:
        workers: processes; a study with timings takes one.
        methods: others than the recipe's.
        targets: other data sets by name, for the study transfer.

    Returns:
        The files: STUDY-RECIPE.csv, .md and .png, and a picture if the study has one.
    """
    study, context = find_study(name), Context(folder)
    recipe = replace(context.recipe, methods=tuple(methods or context.recipe.methods))
    variants = study.variants(recipe)
    if targets:
        add_targets(context, targets, progress)
        variants = [replace(v, factors={**v.factors, "target": target}) for target in targets for v in variants]
    measured = run_variants(context, name, variants, study.measure, workers=1 if study.timed else workers, progress=progress)
    table = lines([(seed, rows) for seed, rows, _ in measured], study.against)
    stem = results / f"{name}-{recipe.name}"
    paths = [stem.with_suffix(suffix) for suffix in (".csv", ".md", ".png")]
    write_bytes(paths[0], as_csv(table).encode())
    # What a reader needs to judge or repeat the table.
    commits, last = sorted({str(p["commit"]) for _, _, p in measured}), measured[-1][2]
    seeds = ", ".join(map(str, recipe.evaluation.seeds))
    about = f"Recipe {recipe.name}, {recipe.evaluation.tasks} unseen tasks, seeds {seeds}"
    source = f"commit {', '.join(commits)}, {last['date']}, {last['hardware']}, torch {last['torch']}"
    command = f"mcdi {'' if study.command else 'reproduce '}{name} {recipe.name}"
    head = f"# {name}: {ABOUT[name]}\n\n{about}; `{command}`, {source}.\n\n"
    write_bytes(paths[1], (head + as_markdown(table, study.against, recipe.family.data)).encode())
    draw(study.chart, table, paths[2], f"{recipe.name}: {ABOUT[name]}", recipe.family.data)
    if study.picture is not None:
        paths.append(stem.with_name(f"{stem.name}-picture.png"))
        study.picture(context, variants, paths[-1], progress)
    return paths
