"""Options that several commands take, and how a recipe and a number of processes are read from them."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from mcdi.experiments.recipe import Recipe

console = Console(stderr=True)


def _recipe_names() -> list[str]:
    from mcdi.experiments.recipe_files import recipe_names

    return recipe_names()


RecipeName = Annotated[
    str, typer.Argument(help="A recipe's name (see `mcdi recipes`) or the path of a TOML file.", autocompletion=_recipe_names)
]
ShownRecipe = Annotated[
    str | None,
    typer.Argument(help="Print this recipe with all its values, as TOML.", metavar="NAME", autocompletion=_recipe_names),
]


def _ready_made() -> list[str]:
    from mcdi.generator.ready_made import ready_made_names

    return ready_made_names()


Model = Annotated[
    Path,
    typer.Argument(
        help="A ready-made generator (see `mcdi models`), or a folder, e.g. runs/glyphs/methods/mc-di-0.",
        autocompletion=_ready_made,
    ),
]
ShownModel = Annotated[
    str | None, typer.Argument(help="Print the card of this one.", metavar="NAME", autocompletion=_ready_made)
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run (default: runs/RECIPE).")]
Data = Annotated[
    Path | None, typer.Option("--data", help="The data set, where a recipe reads one: a folder, or a .npz of images.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes; results do not depend on it (default: all cores).")
]


def workers_of(asked: int | None, device: str) -> int:
    """Processes: as asked; else one on a GPU, all cores that this process may use on the CPU."""
    if asked or device != "cpu":
        return asked or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def begin(recipe: "Recipe", out: Path | None, device: str, workers: int | None) -> tuple[Path, str, int]:
    """Claim the folder of a run; with it the device and the number of processes."""
    from mcdi.experiments.run import open_run
    from mcdi.utils.workers import pick_device

    where, folder = pick_device(device), out or Path("runs") / recipe.name
    open_run(folder, recipe)
    return folder, where, workers_of(workers, where)


def recipe_of(name: str, seed: int | None) -> "Recipe":
    """The recipe, its generator seeds counted from `seed` where one is given."""
    from mcdi.experiments.recipe import read_recipe

    recipe = read_recipe(name)
    if seed is not None:
        seeds = tuple(seed + j for j in range(len(recipe.evaluation.seeds)))
        recipe = replace(recipe, evaluation=replace(recipe.evaluation, seeds=seeds))
    return recipe
