"""`mcdi report`: runs compared."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

Folders = Annotated[list[Path], typer.Argument(help="Folders of runs, finished or unfinished.", metavar="RUN...")]
Page = Annotated[Path, typer.Option("--out", help="The page, an .html file; a .csv file of the same name is written too.")]


def report(folders: Folders, out: Page = Path("comparison.html")) -> None:
    """Compare runs: settings that differ, accuracy, latency, training and its losses. One run will do.

    Example: [bold]mcdi report runs/glyphs runs/glyphs-longer[/]
    """
    from mcdi.experiments.report import read_runs, rich_comparison, write_comparison

    runs = read_runs(folders)
    paths = write_comparison(runs, out)
    Console().print(rich_comparison(runs))
    typer.echo("\n".join(map(str, paths)))
