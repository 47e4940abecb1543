"""What do commands share? Their options, how a recipe and workers are read from them, progress bars."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mcdi.experiments.logs import summary_writer
from mcdi.experiments.recipe import Recipe, read_recipe
from mcdi.utils.workers import Progress as Steps

console = Console(stderr=True)

RecipeName = Annotated[str, typer.Argument(help="A recipe's name (see `mcdi recipes`) or the path of a TOML file.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run (default: runs/RECIPE).")]
Data = Annotated[
    Path | None, typer.Option("--data", help="The data set, where a recipe reads one: a folder, or a .npz of images.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="First generator seed; the recipe's others follow it.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes; results do not depend on it (default: all cores).")
]


def _tensorboard(asked: bool) -> bool:
    """Whether it is there is found out now, not after hours of preparation."""
    if asked:
        summary_writer()
    return asked


TensorBoard = Annotated[
    bool,
    typer.Option("--tensorboard", callback=_tensorboard, help="Also write event files for it, under tensorboard/ of the run."),
]


@contextmanager
def bars() -> Iterator[Steps]:
    """Progress bars with rates and time left, one for each thing under way; Ctrl-C is exit code 130."""
    columns = [
        SpinnerColumn(),
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:>9}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    ]
    with Progress(*columns, console=console) as shown:
        known: dict[str, tuple[object, int]] = {}

        def show(what: str, done: int, total: int, figures: dict[str, float]) -> None:
            if what not in known:
                known[what] = (shown.add_task(what, total=total, figures="", rate=""), done)
            task, first = known[what]
            bar = next(t for t in shown.tasks if t.id == task)
            rate = f"{(done - first) / bar.elapsed:.1f}/s" if bar.elapsed and done > first else ""
            text = "".join(f"{n} {v:.4g}" for n, v in list(figures.items())[:1])  # a line has room for one; logs have all
            shown.update(bar.id, completed=done, total=total, figures=text, rate=rate)

        try:
            yield show
        except KeyboardInterrupt:  # typer would end with a word of its own
            console.print("stopped; the same command resumes")
            raise typer.Exit(130) from None


def workers_of(asked: int | None, device: str) -> int:
    return asked or (
        1 if device != "cpu" else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )


def recipe_of(name: str, seed: int | None) -> Recipe:
    recipe = read_recipe(name)
    if seed is not None:
        seeds = tuple(seed + j for j in range(len(recipe.evaluation.seeds)))
        recipe = replace(recipe, evaluation=replace(recipe.evaluation, seeds=seeds))
    return recipe
