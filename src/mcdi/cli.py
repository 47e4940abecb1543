"""mcdi: weights that are generated, not trained. What a user types."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mcdi import run as job
from mcdi.config import Recipe, read_recipe, recipe_names
from mcdi.errors import McdiError
from mcdi.generate_cli import generate
from mcdi.store_cli import app as store_app
from mcdi.workers import Backend, pick_device
from mcdi.workers import Progress as Steps

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""Generate the weights of a network from a handful of examples, with no gradient step.

    Start with [bold]mcdi demo[/] (seconds), then [bold]mcdi run glyphs[/] (minutes): it prepares optimiser trajectories of many
    tasks, meta-trains a local consistency diffusion (Mc-Di) on them and measures it beside honest alternatives.
    A run is one folder; the same command resumes; [bold]prepare[/], [bold]train[/], [bold]evaluate[/] do its parts.""",
)
app.add_typer(store_app, name="store")
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
Results = Annotated[Path, typer.Option("--results", help="Where tables and plots go.")]
Quick = Annotated[bool, typer.Option("--quick", help="Seconds instead of an hour; the numbers mean nothing.")]
Folder = Annotated[Path, typer.Argument(help="Folder of a run.")]
Method = Annotated[list[str] | None, typer.Option("--method", help="Only this method (repeatable) (default: the recipe's).")]


@contextmanager
def _bars() -> Iterator[Steps]:
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
    with Progress(*columns, console=console) as bars:
        known: dict[str, tuple[object, int]] = {}

        def show(what: str, done: int, total: int, figures: dict[str, float]) -> None:
            if what not in known:
                known[what] = (bars.add_task(what, total=total, figures="", rate=""), done)
            task, first = known[what]
            bar = next(t for t in bars.tasks if t.id == task)
            rate = f"{(done - first) / bar.elapsed:.1f}/s" if bar.elapsed and done > first else ""
            text = "  ".join(f"{n} {v:.4g}" for n, v in figures.items())
            bars.update(bar.id, completed=done, total=total, figures=text, rate=rate)

        try:
            yield show
        except KeyboardInterrupt:  # typer would end with a word of its own
            console.print("stopped; the same command resumes")
            raise typer.Exit(130) from None


def _workers(asked: int | None, device: str) -> int:
    return asked or (
        1 if device != "cpu" else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )


def _recipe(name: str, seed: int | None) -> Recipe:
    recipe = read_recipe(name)
    if seed is not None:
        seeds = tuple(seed + j for j in range(len(recipe.evaluation.seeds)))
        recipe = replace(recipe, evaluation=replace(recipe.evaluation, seeds=seeds))
    return recipe


def _jobs(folder: Path, methods: list[str] | None) -> list[tuple[str, int]]:
    jobs = job.jobs_of(job.read_run(folder))
    for name in methods or []:
        if name not in {n for n, _ in jobs}:
            raise McdiError(f"{name!r} is not a method of this run: choose {', '.join(dict.fromkeys(n for n, _ in jobs))}")
    return [j for j in jobs if not methods or j[0] in methods]


def _report(folder: Path) -> None:
    from mcdi import report

    path = report.write_report(folder)
    Console().print(report.rich_table(report.rows(folder)))
    typer.echo(f"report: {path}")


@app.command()
def run(
    recipe: RecipeName,
    out: Out = None,
    data: Data = None,
    seed: Seed = None,
    device: Device = "auto",
    workers: Workers = None,
) -> None:
    """The whole job: prepare, train, evaluate, and a report. Stop it whenever you like; the same command resumes.

    Example: [bold]mcdi run omniglot --data path/to/omniglot[/]
    """
    chosen, where = _recipe(recipe, seed), pick_device(device)
    folder = out or Path("runs") / chosen.name
    with _bars() as show:
        job.run(folder, chosen, data=data, device=where, workers=_workers(workers, where), progress=show)
    _report(folder)


@app.command()
def prepare(
    recipe: RecipeName,
    out: Out = None,
    data: Data = None,
    seed: Seed = None,
    device: Device = "auto",
    workers: Workers = None,
    backend: Annotated[str, typer.Option(help="local: processes. ray: the cluster at RAY_ADDRESS.")] = "local",
) -> None:
    """Only the preparation: data, backbone, and the optimiser's trajectories on every training task."""
    chosen, where = _recipe(recipe, seed), pick_device(device)
    folder = out or Path("runs") / chosen.name
    job.open_run(folder, chosen)
    with _bars() as show:
        many = _workers(workers, where)
        job.prepare_run(folder, data=data, device=where, workers=many, progress=show, backend=cast(Backend, backend))
    console.print(f"prepared: {folder}; next: mcdi train {folder}", soft_wrap=True, markup=False)


@app.command()
def train(folder: Folder, method: Method = None, device: Device = "auto", workers: Workers = None) -> None:
    """Meta-train the methods of a prepared run; they are saved under FOLDER/methods/NAME-SEED."""
    where = pick_device(device)
    with _bars() as show:
        job.train_and_evaluate(
            folder, _jobs(folder, method), workers=_workers(workers, where), device=where, progress=show, score=False
        )
    console.print(f"trained: {folder}/methods; next: mcdi evaluate {folder}", soft_wrap=True, markup=False)


@app.command()
def evaluate(folder: Folder, method: Method = None, workers: Workers = None) -> None:
    """Measure the trained methods of a run on unseen tasks, and write the table and report.html."""
    with _bars() as show:
        jobs = _jobs(folder, method)
        job.train_and_evaluate(folder, jobs, workers=_workers(workers, "cpu"), device="cpu", progress=show, train=False)
        job.finish(folder, progress=show)
    _report(folder)


@app.command()
def reproduce(
    study: Annotated[str, typer.Argument(help="A study, or `list`.")],
    recipe: RecipeName = "glyphs",
    out: Out = None,
    data: Data = None,
    results: Results = Path("results"),
    small: Quick = False,
    workers: Workers = None,
) -> None:
    """One of the paper's studies, or of ours: CSV, Markdown and PNG. Stop it whenever you like; the same command resumes.

    Example: [bold]mcdi reproduce ablation omniglot --data path/to/omniglot[/]
    """
    from mcdi import reproduce as studies

    if study == "list":
        for name, known in studies.STUDIES.items():
            typer.echo(f"{name:<12} {known.about}")
        return
    studies.known(study)
    _study(study, recipe, out, data, results, small, workers)


@app.command()
def compare(
    recipe: RecipeName = "glyphs",
    methods: Annotated[str, typer.Option("--methods", help="all, or names with commas between them.")] = "all",
    out: Out = None,
    data: Data = None,
    results: Results = Path("results"),
    small: Quick = False,
    workers: Workers = None,
) -> None:
    """Every system on one recipe's tasks: accuracy, milliseconds to adapt, training, parameters, memory. Resumes.

    Example: [bold]mcdi compare natural --data FILE --methods prototypes,adam,maml,mc-di[/]
    """
    _study("compare", recipe, out, data, results, small, workers, methods)


def _study(
    study: str,
    recipe: str,
    out: Path | None,
    data: Path | None,
    results: Path,
    small: bool,
    workers: int | None,
    methods: str = "",
) -> None:
    from mcdi import reproduce as studies

    known = studies.quick(_recipe(recipe, None)) if small else _recipe(recipe, None)
    names = studies.chosen(methods, known) if methods else None
    folder, many = out or Path("runs") / known.name, _workers(workers, "cpu")
    job.open_run(folder, known)
    with _bars() as show:
        job.prepare_run(folder, data=data, device="cpu", workers=many, progress=show)
        paths = studies.reproduce(study, folder, results, workers=many, progress=show, methods=names)
    typer.echo("\n".join(map(str, paths)))


app.command()(generate)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where the picture goes.")] = Path("mcdi-demo.png"),
    seed: Annotated[int, typer.Option(help="Decides everything.")] = 0,
) -> None:
    """Does it really work? In seconds: all weights of a small network generated for unseen curves, beside trained ones."""
    from mcdi.demo import run_demo

    with _bars() as show:
        table = run_demo(out, seed=seed, progress=show)
    Console().print(table)
    typer.echo(f"picture: {out}")


@app.command()
def recipes(show: Annotated[str | None, typer.Argument(help="Print this recipe, resolved, as JSON.")] = None) -> None:
    """The recipes that come with the package."""
    from dataclasses import asdict

    if show is not None:
        typer.echo(json.dumps(asdict(read_recipe(show)), indent=1))
        return
    for name in recipe_names():
        typer.echo(f"{name:<16} {read_recipe(name).about}")


def main() -> None:
    """Entry point: a user's error is one sentence and exit code 1; a bug keeps its traceback."""
    try:
        app()
    except McdiError as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
