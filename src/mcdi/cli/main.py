"""The program `mcdi`: its commands for whole runs, and the entry point. Commands import what they need when they run."""

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer
from rich.console import Console
from rich.markup import escape

from mcdi import __version__
from mcdi.cli.generate import export, generate, push, serve
from mcdi.cli.options import (
    Data,
    Device,
    Out,
    RecipeName,
    ShownModel,
    ShownRecipe,
    Workers,
    begin,
    console,
    recipe_of,
    workers_of,
)
from mcdi.cli.progress import progress
from mcdi.cli.store import app as store_app
from mcdi.cli.studies import compare, report, reproduce, transfer
from mcdi.errors import McdiError, McdiWarning
from mcdi.utils.places import cause_of

if TYPE_CHECKING:
    from mcdi.utils.workers import Backend

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""Generate the weights of a network from a handful of examples, with no gradient step.

    Start with [bold]mcdi demo[/] (seconds), then [bold]mcdi run glyphs[/] (minutes).

    A run is one folder: optimiser trajectories, meta-training of Mc-Di and its baselines, evaluation, a report.

    The same command resumes; [bold]prepare[/], [bold]train[/] and [bold]evaluate[/] do its parts.""",
)
app.add_typer(store_app, name="store")


def _tensorboard(asked: bool) -> bool:
    """A missing package is an error at the start, not after hours of preparation."""
    if asked:
        from mcdi.experiments.logs import summary_writer

        summary_writer()
    return asked


Folder = Annotated[Path, typer.Argument(help="Folder of a run.")]
Method = Annotated[list[str] | None, typer.Option("--method", help="Only this method (repeatable) (default: the recipe's).")]
Seed = Annotated[int | None, typer.Option("--seed", help="First generator seed; the recipe's others follow it.")]
TensorBoard = Annotated[
    bool,
    typer.Option("--tensorboard", callback=_tensorboard, help="Also write event files for it, under tensorboard/ of the run."),
]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"mcdi {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _jobs(folder: Path, methods: list[str] | None) -> list[tuple[str, int]]:
    from mcdi.experiments import run as job

    recipe = job.read_run(folder)
    unknown = [name for name in methods or () if name not in recipe.methods]
    if unknown:
        raise McdiError(f"{unknown[0]!r} is not a method of this run: choose {', '.join(recipe.methods)}")
    return job.with_seeds(recipe, [n for n in recipe.methods if not methods or n in methods], str)


def _report(folder: Path) -> None:
    from mcdi.experiments.report.page import write_report
    from mcdi.experiments.report.results import rows
    from mcdi.experiments.report.table import rich_table

    page = write_report(folder)
    Console().print(rich_table(rows(folder)))
    typer.echo(f"report: {page}")


@app.command()
def run(
    recipe: RecipeName,
    out: Out = None,
    data: Data = None,
    seed: Seed = None,
    device: Device = "auto",
    workers: Workers = None,
    tensorboard: TensorBoard = False,
) -> None:
    """The whole job: prepare, train, evaluate, and a report. Stop it whenever you like; the same command resumes.

    Example: [bold]mcdi run omniglot --data path/to/omniglot[/]
    """
    from mcdi.experiments import run as job

    folder, where, count = begin(recipe_of(recipe, seed), out, device, workers)
    with progress(console) as show:
        job.prepare_run(folder, data=data, device=where, workers=count, progress=show)
        shared = job.Jobs(folder, where, tensorboard=tensorboard)
        job.train_and_evaluate(shared, _jobs(folder, None), workers=count, progress=show)
        job.finish(folder, progress=show)
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
    from mcdi.experiments import run as job

    folder, where, count = begin(recipe_of(recipe, seed), out, device, workers)
    with progress(console) as show:
        job.prepare_run(folder, data=data, device=where, workers=count, progress=show, backend=cast("Backend", backend))
    console.print(f"prepared: {folder}; next: mcdi train {folder}", soft_wrap=True, markup=False)


@app.command()
def train(
    folder: Folder, method: Method = None, device: Device = "auto", workers: Workers = None, tensorboard: TensorBoard = False
) -> None:
    """Meta-train the methods of a prepared run; they are saved under FOLDER/methods/NAME-SEED, with a log of every training."""
    from mcdi.experiments import run as job
    from mcdi.utils.workers import pick_device

    shared = job.Jobs(folder, pick_device(device), score=False, tensorboard=tensorboard)
    jobs, count = _jobs(folder, method), workers_of(workers, shared.device)
    with progress(console) as show:
        job.train_and_evaluate(shared, jobs, workers=count, progress=show)
    console.print(f"trained: {folder}/methods; next: mcdi evaluate {folder}", soft_wrap=True, markup=False)


@app.command()
def evaluate(folder: Folder, method: Method = None, workers: Workers = None) -> None:
    """Measure the trained methods of a run on unseen tasks, and write the table and report.html."""
    from mcdi.experiments import run as job

    jobs, count = _jobs(folder, method), workers_of(workers, "cpu")
    with progress(console) as show:
        job.train_and_evaluate(job.Jobs(folder, train=False), jobs, workers=count, progress=show)
        job.finish(folder, progress=show)
    _report(folder)


for command in (reproduce, compare, transfer, generate, export, push, report, serve):
    app.command()(command)


@app.command()
def demo(
    what: Annotated[str, typer.Argument(help="sines, or symbols: the ready-made generator of whole networks.")] = "sines",
    out: Annotated[Path, typer.Option("--out", help="Where the picture goes.")] = Path("mcdi-demo.png"),
    seed: Annotated[int, typer.Option(help="Decides everything.")] = 0,
) -> None:
    """A proof of concept in seconds: all weights of a small network generated for unseen curves or symbols, compared with
    trained ones."""
    from mcdi.experiments.demo import run_demo
    from mcdi.experiments.symbols import run_symbols
    from mcdi.utils.places import check_writable

    shown = {"sines": run_demo, "symbols": run_symbols}
    if what not in shown:
        raise McdiError(f"there is no demo {what!r}: choose {' or '.join(shown)}")
    check_writable(out)
    with progress(console) as show:
        table = shown[what](out, seed=seed, progress=show)
    Console().print(table)
    typer.echo(f"picture: {out}")


@app.command()
def recipes(recipe: ShownRecipe = None) -> None:
    """The recipes that come with the package, or all values of one, as TOML that [bold]mcdi run[/] takes.

    Example: [bold]mcdi recipes natural > mine.toml[/]
    """
    from dataclasses import asdict

    from mcdi.experiments.recipe_files import read_tables, recipe_names, to_toml

    if recipe is None:
        names = recipe_names()
        for name in names:
            typer.echo(f"{name:<{max(map(len, names))}}  {read_tables(name)['about']}")
        return
    values = asdict(recipe_of(recipe, None))
    typer.echo(f"# All values of the recipe {recipe}, for `mcdi run FILE.toml`.")
    typer.echo(f'# A file with base = "{recipe}" needs only the values that differ.')
    typer.echo("\n".join(to_toml(values)))


@app.command()
def models(model: ShownModel = None) -> None:
    """The ready-made generators, which need no training, or the card of one.

    Example: [bold]mcdi generate symbols --support my-symbols/[/]
    """
    from mcdi.generator.ready_made import about, card_of, ready_made_names

    if model is not None:
        typer.echo(card_of(model))
        return
    for name in ready_made_names():
        typer.echo(f"{name}  {about(name)}")


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None
) -> None:
    """Ours as one line, others as Python prints them."""
    if issubclass(category, McdiWarning):
        console.print(f"note: {message}", soft_wrap=True, markup=False, highlight=False)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))


def main() -> None:
    """Entry point: a user's error is one sentence and exit code 1; a bug keeps its traceback."""
    warnings.showwarning = _show_warning
    try:
        app()
    except McdiError as error:
        _end(str(error))
    except OSError as error:  # of a path that nothing has checked
        if not isinstance(error.filename, str):
            raise
        _end(f"{error.filename} cannot be used: {cause_of(error, Path(error.filename))}")


def _end(sentence: str) -> NoReturn:
    console.print(f"[bold red]error:[/] {escape(sentence)}", soft_wrap=True, highlight=False)
    sys.exit(1)
