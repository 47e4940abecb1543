"""The paper's studies, and ours, each from one command: CSV, Markdown and PNG under results/.

A study works in a prepared run (backbone, features, trajectories) and leaves its trained generators and scores there.
"""

from dataclasses import replace
from pathlib import Path

from mcdi import evaluate
from mcdi.config import Recipe
from mcdi.errors import McdiError
from mcdi.files import write_bytes, write_json
from mcdi.methods import Diffusion
from mcdi.reproduce.cells import Context, run_cells, trained
from mcdi.reproduce.charts import draw
from mcdi.reproduce.charts import landscape as draw_chains
from mcdi.reproduce.studies import STUDIES, Study
from mcdi.reproduce.tables import as_csv, as_markdown, lines
from mcdi.store import TrajectoryStore
from mcdi.workers import Progress

__all__ = ["STUDIES", "known", "quick", "reproduce"]


def quick(recipe: Recipe) -> Recipe:
    """The recipe at a size at which a study takes seconds: it shows that everything runs, and its numbers mean nothing."""
    small = {"iterations": 4, "learners": 2, "tasks": 4}
    method = {**recipe.method, "reptile": {"training": small, "tuning": {"tasks": 20, "lrs": [0.03], "steps": [5, 20]}}}
    method["adam"] = {"tasks": 20, "lrs": [0.03], "steps": [5, 20]}
    return replace(
        recipe,
        name=f"{recipe.name}-quick",
        family=replace(recipe.family, limit=24, backbone_steps=2, backbone_way=8),
        preparation=replace(recipe.preparation, tasks=24, epochs=12),
        generator={**recipe.generator, "T": 6, "training": small},
        method=method,
        evaluation=replace(recipe.evaluation, tasks=24, validation=24, seeds=(0, 1)),
    )


def known(name: str) -> Study:
    if name not in STUDIES:
        raise McdiError(f"unknown study {name!r}: choose {', '.join(STUDIES)}")
    return STUDIES[name]


def reproduce(name: str, folder: Path, results: Path, *, workers: int, progress: Progress) -> list[Path]:
    """Run a study in the prepared run `folder`; the files written, STUDY-RECIPE.csv, .md and .png, a later plot with a number.

    What is trained or measured already is not done again. Raises McdiError for an unknown study.
    """
    study, context = known(name), Context(folder)
    cells = study.cells(context.recipe)
    found = run_cells(context, name, cells, study.measure, workers=1 if study.quiet else workers, progress=progress)
    table = lines([(seed, rows) for seed, rows, _ in found], study.against)
    made = {str(p["commit"]) for _, _, p in found}
    hardware = found[-1][2]
    stem = results / f"{name}-{context.recipe.name}"
    head = f"# {name}: {study.about}\n\nRecipe {context.recipe.name}, {context.tasks} unseen tasks, seeds "
    head += f"{', '.join(map(str, context.recipe.evaluation.seeds))}; `mcdi reproduce {name} {context.recipe.name}`, "
    head += f"commit {', '.join(sorted(made))}, {hardware['date']}, {hardware['hardware']}, torch {hardware['torch']}.\n\n"
    write_bytes(stem.with_suffix(".csv"), as_csv(table).encode())
    write_bytes(stem.with_suffix(".md"), (head + as_markdown(table, study.against)).encode())
    paths = [stem.with_suffix(".csv"), stem.with_suffix(".md")]
    for number, chart in enumerate(study.charts):
        path = stem.with_suffix(".png") if number == 0 else stem.with_name(f"{stem.name}-{number + 1}.png")
        draw(chart, table, path, f"{context.recipe.name}: {study.about}")
        paths.append(path)
    if name == "chains":
        paths.append(_landscape(context, study, stem, progress))
    return paths


def _landscape(context: Context, study: Study, stem: Path, progress: Progress) -> Path:
    """The chains of the first seed over the loss of the first test task, in the plane of their largest variance."""
    seed = context.recipe.evaluation.seeds[0]
    shown = {}
    for cell in study.cells(context.recipe):
        method = trained(context, cell, seed, progress)
        assert isinstance(method, Diffusion)
        shown[cell.method] = method
    reference = TrajectoryStore.open(context.folder / "reference").read()
    theta0 = context.family.downstream.theta0(context.recipe.preparation.theta0_seed, reference.mask.shape[1])
    figures = evaluate.landscape(shown, context.family, reference.targets[0], theta0)
    path = stem.with_name(f"{stem.name}-landscape.png")
    draw_chains(figures, path)
    write_json(stem.with_name(f"{stem.name}-landscape.json"), figures)
    return path
