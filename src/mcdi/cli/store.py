"""`mcdi store`: print what stored trajectories hold, verify them, merge them, copy them."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from mcdi.errors import McdiError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""Stored trajectories: print what they hold, verify, merge and copy them.

    A store is a folder that [bold]mcdi prepare[/] fills, such as
    runs/glyphs/trajectories: the weights at k points of an optimiser's path on
    every task, in safetensors shards, and an index.json with their checksums.
    A finished store is also read from a URL: file:///folder, s3://bucket/folder,
    hf://datasets/user/name/folder.""",
)

_AT_TARGETS = {"epochs": "epoch", "scores": "score", "losses": "loss"}  # columns with a value for each of the k targets

Store = Annotated[str, typer.Argument(help="Folder of a store, or the URL of a finished one.", show_default=False)]


@app.command()
def info(store: Store) -> None:
    """What a store holds: tasks, sizes, how good its weights are at each local target, and how it was made.

    Example: [bold]mcdi store info runs/glyphs/trajectories[/]
    """
    from mcdi.trajectories.store import TrajectoryStore

    opened = TrajectoryStore.open(store)
    sums: dict[str, Any] = {}  # tensors
    seeds: list[int] = []
    k = units = numbers = 0
    for part in opened.parts():
        k, units, numbers = part.targets.shape[1:]
        seeds += [int(part.seeds.min()), int(part.seeds.max())]
        for name, column in part.tensors().items():
            if name not in ("targets", "mask", "seeds"):
                total = column.double().sum(0)
                sums[name] = sums[name] + total if name in sums else total
    means = {name: total / len(opened) for name, total in sums.items()}
    meta, size = opened.meta, sum(shard["bytes"] for shard in opened.shards)
    table = Table(title=escape(store), show_header=False)
    for name, value in (
        ("family", meta.get("family")),
        ("split", meta.get("split")),
        ("tasks", f"{len(opened)}, seeds {min(seeds)} to {max(seeds)}"),
        ("local targets", f"k = {k}"),
        ("weights", f"{units} units x {numbers} numbers"),
        ("storage", meta.get("storage", "float32")),
        ("on disk", f"{decimal(size)} in {len(opened.shards)} shards"),
        *((name, f"mean {float(means[name].mean()):.4g}") for name in means if name not in _AT_TARGETS),
        *((name, json.dumps(meta[name])) for name in sorted(meta) if name not in ("family", "split", "storage")),
    ):
        table.add_row(name, escape(str(value)))
    targets = Table(title="mean over tasks")
    for name in ("target", *_AT_TARGETS.values()):
        targets.add_column(name, justify="right")
    for i in range(k):
        targets.add_row(str(i + 1), *(f"{float(means[name][i]):.4g}" for name in _AT_TARGETS))
    Console().print(table, targets)


@app.command()
def verify(store: Store) -> None:
    """Read every byte of a store and list what is damaged: exit code 0 when nothing is, else 1.

    Example: [bold]mcdi store verify runs/glyphs/trajectories[/]
    """
    from mcdi.trajectories.store import TrajectoryStore

    opened = TrajectoryStore.open(store)
    problems = opened.verify()
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{len(opened.shards)} shards, {len(opened)} tasks: all good")


@app.command()
def merge(
    stores: Annotated[list[str], typer.Argument(help="Stores of the same settings, without common tasks.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder of the new store; it must not exist.", show_default=False)],
) -> None:
    """Join stores, say prepared on several machines, into a new one. All are verified first.

    Example: [bold]mcdi store merge first/ second/ --out both/[/]
    """
    from mcdi.trajectories.copy import merge as merge_stores

    merged = merge_stores(stores, out)
    typer.echo(f"{out}: {len(merged.shards)} shards, {len(merged)} tasks")


@app.command()
def export(
    store: Store,
    out: Annotated[str, typer.Argument(help="Folder or URL of the copy; with --seed, a .safetensors file", show_default=False)],
    seed: Annotated[int | None, typer.Option("--seed", help="Only the weights of the task with this seed.")] = None,
    target: Annotated[int | None, typer.Option("--target", help="Which local target, 1..k (default: k, the last).")] = None,
) -> None:
    """Copy a store to a folder or a URL, or write one task's weights under the parameters' names, for load_state_dict.

    Examples: [bold]mcdi store export runs/glyphs/trajectories s3://bucket/glyphs[/],
    [bold]mcdi store export runs/glyphs/trajectories head.safetensors --seed 7 --target 1[/]
    """
    from mcdi.trajectories.copy import export as copy_store
    from mcdi.trajectories.copy import weights_of
    from mcdi.trajectories.store import TrajectoryStore
    from mcdi.utils.files import write_tensors
    from mcdi.utils.places import check_writable

    if seed is None:
        if target is not None:
            raise McdiError(f"--target {target} needs --seed: the task whose weights are written")
        copy_store(store, out)
        typer.echo(f"{out}: a copy of {store}")
        return
    check_writable(Path(out))
    weights = weights_of(TrajectoryStore.open(store), seed, target)
    write_tensors(Path(out), weights)
    shapes = ", ".join(f"{n} {tuple(w.shape)}" for n, w in weights.items())
    typer.echo(f"{out}: {shapes} of the task with seed {seed}")
