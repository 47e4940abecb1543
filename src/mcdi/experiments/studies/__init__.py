"""The paper's studies, and ours, each from one command: CSV, Markdown and PNG under results/.

A study works in a prepared run (backbone, features, trajectories) and leaves its trained generators and scores there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mcdi.errors import McdiError
from mcdi.experiments.recipe import Recipe
from mcdi.experiments.studies.charts import draw
from mcdi.experiments.studies.studies import STUDIES, Study, serving
from mcdi.experiments.studies.tables import as_csv, as_markdown, lines
from mcdi.experiments.studies.transfer import add_targets, cells_for, named_targets
from mcdi.experiments.studies.variants import Context, run_cells
from mcdi.methods import FROM_WEIGHTS
from mcdi.utils.files import write_bytes
from mcdi.utils.workers import Progress

__all__ = ["STUDIES", "chosen", "known", "named_targets", "quick", "reproduce"]


def quick(recipe: Recipe) -> Recipe:
    """The recipe at a size at which a study takes seconds: it shows that everything runs, and its numbers mean nothing."""
    small, tuning = {"iterations": 4, "learners": 2, "tasks": 4}, {"tasks": 20, "lrs": [0.03], "steps": [5, 20]}
    maml = {"training": {"meta": "none", "iterations": 4, "inner_steps": 1, "learners": 4, "tasks": 1}, "tuning_tasks": 20}
    method = {**recipe.method, "adam": tuning, "reptile": {"training": small, "tuning": tuning}}
    method |= {"maml": maml, "meta-hypernetwork": maml, "ghn-3": {"training": maml["training"]}}
    method |= {name: {"training": {**small, "meta": "none", "inner_steps": 1}} for name in FROM_WEIGHTS}
    return replace(
        recipe,
        name=f"{recipe.name}-quick",
        family=replace(recipe.family, limit=24, backbone_steps=min(2, recipe.family.backbone_steps), backbone_way=8),
        preparation=replace(recipe.preparation, tasks=24, epochs=12),
        generator={**recipe.generator, "T": 6, "training": small},
        method=method,
        evaluation=replace(recipe.evaluation, tasks=24, validation=24, seeds=(0, 1)),
    )


def known(name: str) -> Study:
    """The study of that name. Raises McdiError for an unknown one."""
    if name not in STUDIES:
        raise McdiError(f"unknown study {name!r}: choose {', '.join(STUDIES)}")
    return STUDIES[name]


def chosen(methods: str, recipe: Recipe) -> tuple[str, ...]:
    """ "all" that can serve the recipe's network, or names with commas between them. Raises McdiError for one that cannot."""
    there = serving(recipe)
    names = there if methods == "all" else tuple(n.strip() for n in methods.split(","))
    for name in names:
        if name not in there:
            raise McdiError(
                f"{name!r} is no method for network = {recipe.family.network!r}: choose all, or of {', '.join(there)}"
            )
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
    """Run a study in the prepared run `folder`; the files written: STUDY-RECIPE.csv, .md and .png, and a picture if it has one.

    methods: of others than the recipe's; targets: other data sets by name, for the study transfer. What is trained or measured
    already is not done again. Raises McdiError for an unknown study.
    """
    study, context = known(name), Context(folder)
    recipe = replace(context.recipe, methods=tuple(methods or context.recipe.methods))
    cells = study.cells(recipe)
    if targets:
        add_targets(context, targets, progress)
        cells = cells_for(cells, list(targets))
    found = run_cells(context, name, cells, study.measure, workers=1 if study.quiet else workers, progress=progress)
    table = lines([(seed, rows) for seed, rows, _ in found], study.against)
    stem = results / f"{name}-{recipe.name}"
    paths = [stem.with_suffix(suffix) for suffix in (".csv", ".md", ".png")]
    write_bytes(paths[0], as_csv(table).encode())
    head = _head(name, study, recipe, [p for _, _, p in found])
    write_bytes(paths[1], (head + as_markdown(table, study.against, recipe.family.data)).encode())
    draw(study.chart, table, paths[2], f"{recipe.name}: {study.about}", recipe.family.data)
    if study.picture is not None:
        paths.append(stem.with_name(f"{stem.name}-picture.png"))
        study.picture(context, cells, paths[-1], progress)
    return paths


def _head(name: str, study: Study, recipe: Recipe, made: Sequence[Mapping[str, Any]]) -> str:
    """What a reader needs to judge or repeat the table."""
    commits, last = sorted({str(p["commit"]) for p in made}), made[-1]
    what = f"Recipe {recipe.name}, {recipe.evaluation.tasks} unseen tasks, seeds {', '.join(map(str, recipe.evaluation.seeds))}"
    where = f"commit {', '.join(commits)}, {last['date']}, {last['hardware']}, torch {last['torch']}"
    command = f"mcdi {'' if study.own else 'reproduce '}{name} {recipe.name}"
    return f"# {name}: {study.about}\n\n{what}; `{command}`, {where}.\n\n"
