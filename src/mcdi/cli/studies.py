"""`mcdi reproduce`, `compare` and `transfer`: studies on the folder of a run; `mcdi report`: runs compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mcdi.cli.options import Data, Out, RecipeName, Workers, begin, console, recipe_of
from mcdi.cli.progress import progress

Results = Annotated[Path, typer.Option("--results", help="Where tables and plots go.")]
Quick = Annotated[bool, typer.Option("--quick", help="A test of the command in seconds; its figures mean nothing.")]
Methods = Annotated[str, typer.Option("--methods", help="all, or names with commas between them.")]


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
    from mcdi.experiments import studies

    if study == "list":
        for name, about in studies.ABOUT.items():
            typer.echo(f"{name:<{max(map(len, studies.ABOUT))}}  {about}")
        return
    studies.find_study(study)
    _study(study, recipe, out, data, results, small, workers)


def compare(
    recipe: RecipeName = "glyphs",
    methods: Methods = "all",
    out: Out = None,
    data: Data = None,
    results: Results = Path("results"),
    small: Quick = False,
    workers: Workers = None,
) -> None:
    """Every method on one recipe's tasks: accuracy, milliseconds to adapt, training, parameters, memory. Resumes.

    Example: [bold]mcdi compare natural --data FILE --methods prototypes,adam,maml,mc-di[/]
    """
    _study("compare", recipe, out, data, results, small, workers, methods)


def transfer(
    target: Annotated[list[str], typer.Option("--target", help="NAME=PATH of another data set (repeatable).")],
    recipe: RecipeName = "natural",
    methods: Methods = "all",
    out: Out = None,
    data: Data = None,
    results: Results = Path("results"),
    small: Quick = False,
    workers: Workers = None,
) -> None:
    """Heads for data sets on which nothing is trained: CIFAR, STL-10, Aircraft, Pets, or a folder of images a class. Resumes.

    Example: [bold]mcdi transfer natural --data FILE --target cifar10=data/cifar-10-batches-bin[/]
    """
    _study("transfer", recipe, out, data, results, small, workers, methods, target)


def _study(
    study: str,
    recipe: str,
    out: Path | None,
    data: Path | None,
    results: Path,
    small: bool,
    workers: int | None,
    methods: str = "",
    target: Sequence[str] = (),
) -> None:
    from mcdi.experiments import run as job
    from mcdi.experiments import studies
    from mcdi.methods import method_spec
    from mcdi.utils.places import check_folder_writable

    settings = studies.quick(recipe_of(recipe, None)) if small else recipe_of(recipe, None)
    check_folder_writable(results)
    names = studies.choose_methods(methods, settings) if methods else None
    targets = studies.named_targets(target) if study == "transfer" else None
    folder, where, count = begin(settings, out, "cpu", workers)
    with progress(console) as show:
        # Heads for other data sets are not compared with trained weights: only some methods read any.
        if study == "transfer" and not any(method_spec(n).needs_trajectories for n in names or settings.methods):
            job.prepare_family(folder, data=data, device=where, progress=show)
        else:
            job.prepare_run(folder, data=data, device=where, workers=count, progress=show)
        paths = studies.reproduce(study, folder, results, workers=count, progress=show, methods=names, targets=targets)
    typer.echo("\n".join(map(str, paths)))


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs, finished or unfinished.", metavar="RUN...")],
    out: Annotated[
        Path, typer.Option("--out", help="The page, an .html file; a .csv file of the same name is written too.")
    ] = Path("comparison.html"),
) -> None:
    """Compare runs: settings that differ, accuracy, latency, training and its losses. One run will do.

    Example: [bold]mcdi report runs/glyphs runs/glyphs-longer[/]
    """
    from mcdi.experiments.report.compare import read_runs, rich_comparison, write_comparison
    from mcdi.utils.places import check_writable

    check_writable(out, out.with_suffix(".csv"))
    runs = read_runs(folders)
    paths = write_comparison(runs, out)
    Console().print(rich_comparison(runs))
    typer.echo("\n".join(map(str, paths)))
