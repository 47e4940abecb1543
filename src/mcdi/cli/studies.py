"""What does a user type for a study? One of many, all systems beside each other, other data sets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mcdi.cli.options import Data, Out, RecipeName, Workers, bars, recipe_of, workers_of
from mcdi.experiments import run as job

Results = Annotated[Path, typer.Option("--results", help="Where tables and plots go.")]
Quick = Annotated[bool, typer.Option("--quick", help="Seconds instead of an hour; the numbers mean nothing.")]
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
    from mcdi.experiments import studies as studies

    if study == "list":
        for name, known in studies.STUDIES.items():
            typer.echo(f"{name:<12} {known.about}")
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
    """Every system on one recipe's tasks: accuracy, milliseconds to adapt, training, parameters, memory. Resumes.

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
    """Heads for other data sets (CIFAR, STL-10, Aircraft, Pets, a folder a class), on which nothing is trained. Resumes.

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
    from mcdi.experiments import studies as studies

    known = studies.quick(recipe_of(recipe, None)) if small else recipe_of(recipe, None)
    names = studies.choose_methods(methods, known) if methods else None
    targets = studies.named_targets(target) if study == "transfer" else None
    folder, many = out or Path("runs") / known.name, workers_of(workers, "cpu")
    job.open_run(folder, known)
    with bars() as show:
        job.prepare_run(folder, data=data, device="cpu", workers=many, progress=show)
        paths = studies.reproduce(study, folder, results, workers=many, progress=show, methods=names, targets=targets)
    typer.echo("\n".join(map(str, paths)))
