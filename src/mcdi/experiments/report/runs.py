"""Several runs, finished or not, as they lie on disk, and the settings in which they differ."""

import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from mcdi.errors import McdiError
from mcdi.experiments.logs import LOG, Point, read_log
from mcdi.experiments.report.results import Row, check, rows
from mcdi.utils.files import read_json

BLOCKS = 100  # points of a curve: each the mean of a block of steps
NO_SETTINGS = ("name", "about")
Line = list[tuple[float, float]]  # (step, loss); NaN parts what is not one curve


@dataclass(frozen=True)
class Entry:
    """A method of a run: its results, if it has any, its losses seed by seed, and in words what is still to be done."""

    method: str
    row: Row | None
    losses: list[Line]
    state: str


@dataclass(frozen=True)
class Run:
    """`settings`: the recipe, flat, {dotted key: value in words}."""

    name: str
    settings: dict[str, str]
    entries: list[Entry]

    @property
    def rows(self) -> list[Row]:
        return [e.row for e in self.entries if e.row is not None]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in `folders`, once each, named after them.

    Raises:
        McdiError: a folder that holds no run, or no run has results or the log of a training; see also `rows`.
    """
    folders = list({folder.resolve(): folder for folder in folders}.values())
    for folder in folders:
        if not (folder / "recipe.json").exists():
            raise McdiError(f"{folder} is not the folder of a run, it holds no recipe.json: give folders that `mcdi run` made")
    short = [folder.resolve().name for folder in folders]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    runs = [_run(name, folder) for name, folder in zip(names, folders, strict=True)]
    if not any(e.row or e.losses for run in runs for e in run.entries):
        where = ", ".join(map(str, folders))
        raise McdiError(f"{where}: no results and no log of a training yet; run `mcdi run` or `mcdi train` first")
    return runs


def _run(name: str, folder: Path) -> Run:
    recipe = read_json(folder / "recipe.json")
    check(recipe, {"methods?": [str]}, folder / "recipe.json")
    measured = {row.method: row for row in rows(folder, finished=False)}
    names = dict.fromkeys([*measured, *recipe.get("methods", ())])
    entries = [_entry(folder, name, measured.get(name)) for name in names]
    return Run(name, dict(_flat(recipe)), entries)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for n, inner in value.items():
            yield from _flat(inner, f"{key}.{n}" if key else n)
    else:
        yield key, value if isinstance(value, str) else json.dumps(value)


def _entry(folder: Path, method: str, row: Row | None) -> Entry:
    """A method of the run in `folder`, whose results are `row`."""
    of = re.compile(re.escape(method) + r"-(-?\d+)")
    begun = {int(m[1]): path for path in (folder / "methods").glob("*") if (m := of.fullmatch(path.name))}
    measured = row.seeds if row else ()
    stored = dict(zip(measured, row.losses, strict=True)) if row else {}
    lines, states = [], []
    for seed in sorted({*measured, *begun}):
        points = read_log(folder / "methods" / f"{method}-{seed}" / LOG)
        # Runs of earlier versions have no log, but a hundred losses in their results.
        older = [Point(0, int(s), 0, 0.0, {"loss": v}) for s, v in stored.get(seed, []) if s is not None and v is not None]
        if line := _line(points or older):
            lines.append(line)
        if seed not in measured:
            states.append(f"seed {seed} {_progress(begun[seed], points)}")
    if row and not row.latency_ms:
        states.append("latency not measured yet")
    return Entry(method, row, lines, "; ".join(states) if row or states else "not begun")


def _progress(folder: Path, points: Sequence[Point]) -> str:
    if (folder / "config.json").exists():
        return "trained, not evaluated yet"
    if not points:
        return "begun"
    last = points[-1]
    figures = "".join(f", {n} {v:.4g}" for n, v in list(last.figures.items())[:1])
    return f"at step {last.step} of {last.of}{figures}"


def _line(points: Sequence[Point]) -> Line:
    """The losses of all stages, one after the other, a gap between two."""
    line: Line = []
    start = 0
    for _, group in itertools.groupby(points, lambda p: p.stage):
        stage = list(group)
        steps = [(start + p.step, p.figures["loss"]) for p in stage if "loss" in p.figures]
        start += stage[0].of
        size = max(1, math.ceil(len(steps) / BLOCKS))
        blocks = [steps[i : i + size] for i in range(0, len(steps), size)]
        gap = [(math.nan, math.nan)] if line and blocks else []
        line += gap + [(fmean(s for s, _ in block), fmean(v for _, v in block)) for block in blocks]
    return line


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The settings that are not the same in all runs, and their values run by run; what a recipe leaves out is `default`."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in NO_SETTINGS)
    values = {key: [run.settings.get(key, "default") for run in runs] for key in keys}
    return {key: each for key, each in values.items() if len(set(each)) > 1}


def provenance(run: Run, keys: Sequence[str]) -> list[str]:
    """Of every key all values that the run's results have."""
    every = [p for row in run.rows for p in row.provenance]
    return ["; ".join(sorted({str(p[key]) for p in every if p.get(key) is not None})) or "-" for key in keys]
