"""Several runs, finished or not, side by side: one page, one CSV file, one table for the terminal; a single run will do."""

import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mcdi.errors import McdiError
from mcdi.experiments.logs import LOG, Point, read_log
from mcdi.experiments.report.plots import POINTS, dots, losses, scores
from mcdi.experiments.report.render import html_page, html_table
from mcdi.experiments.report.results import PARTS, RecipeFile, Row, read_checked, rows, shot_numbers
from mcdi.experiments.report.style import label_of, labels_of, plot_style, styles_of
from mcdi.experiments.report.summary import at, metric
from mcdi.experiments.report.table import RULE, csv_text, score_headings, show, terminal_table, without
from mcdi.utils.files import write_bytes

if TYPE_CHECKING:
    from rich.table import Table

PROVENANCE = ("commit", "version", "hardware", "torch", "date")
PAGE_ONLY = ("total (ms)", "parameters", "seeds")  # columns that a terminal has no room for
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
    """The runs in `folders`, once each. Raises McdiError for a folder without a run, without figures, and as `rows`."""
    folders = list({folder.resolve(): folder for folder in folders}.values())
    for folder in folders:
        if not (folder / "recipe.json").exists():
            raise McdiError(f"{folder} is not the folder of a run, it holds no recipe.json: give folders that `mcdi run` made")
    short = [folder.resolve().name for folder in folders]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    runs = []
    for name, folder in zip(names, folders, strict=True):
        recipe = read_checked(folder / "recipe.json", RecipeFile)
        measured = {row.method: row for row in rows(folder, finished=False)}
        methods = dict.fromkeys([*measured, *recipe.get("methods", ())])
        runs.append(Run(name, dict(_flat(recipe)), [_entry(folder, method, measured.get(method)) for method in methods]))
    if not any(e.row or e.losses for run in runs for e in run.entries):
        where = ", ".join(map(str, folders))
        raise McdiError(f"{where}: no results and no log of a training yet; run `mcdi run` or `mcdi train` first")
    return runs


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
        older = [Point(0, int(s), 0, 0.0, {"loss": v}) for s, v in stored.get(seed, []) if v is not None]
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
    figures = "".join(f", {n} {v:.4g}" for n, v in list(points[-1].figures.items())[:1])
    return f"at step {points[-1].step} of {points[-1].of}{figures}"


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


def provenance(run: Run) -> list[str]:
    """All values that the run's results have of every key of PROVENANCE."""
    every = [p for row in run.rows for p in row.provenance]
    return ["; ".join(sorted({str(p[key]) for p in every if p.get(key) is not None})) or "-" for key in PROVENANCE]


def all_rows(runs: Sequence[Run]) -> list[Row]:
    return [row for run in runs for row in run.rows]


def entries(runs: Sequence[Run]) -> Iterator[tuple[Run, Entry]]:
    """Method by method; within a method the runs as they were given."""
    for method in dict.fromkeys(e.method for run in runs for e in run.entries):
        yield from ((run, e) for run in runs for e in run.entries if e.method == method)


def cells(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    measured = all_rows(runs)
    kinds = {metric(row.family)[0::3] for row in measured}
    name, unit = kinds.pop() if len(kinds) == 1 else ("score", "")
    shots = shot_numbers(measured)
    costs = ("generate (ms)", "total (ms)", "training (s)", "parameters", "seeds")
    header = ["method", "run", *score_headings(name, unit, shots), *costs]
    body = []
    for run, e in entries(runs):
        text = [""] * (len(shots) + len(costs))
        if (row := e.row) is not None:
            own = "" if unit else metric(row.family)[3]  # where families differ, every score says its unit
            text = [show(s, [row]) + own if (s := row.shots.get(shot)) else "-" for shot in shots]
            text += [f"{row.latency_ms['generate']:.3g}", f"{row.total_ms:.3g}"] if row.latency_ms else ["-", "-"]
            text += [f"{row.fit_seconds:.1f}", f"{row.parameters:,}", str(len(row.seeds))]
        body.append([label_of(e.method), run.name, *text])
    return header, body


def states(runs: Sequence[Run]) -> list[list[str]]:
    """Of every method that is not finished: its label, its run and its progress."""
    return [[label_of(e.method), run.name, e.state] for run, e in entries(runs) if e.state]


def rich_comparison(runs: Sequence[Run]) -> "Table":
    """The table for a terminal of 80 columns, and below it what is still to be done."""
    left = "\n".join(f"{method} of {run}: {state}" for method, run, state in states(runs))
    header, body = without(*cells(runs), PAGE_ONLY)
    return terminal_table(about(runs), header, body, left, left=2, needed=len(header))


def about(runs: Sequence[Run]) -> str:
    """What is compared, and what makes a comparison unfair."""
    all_entries = list(entries(runs))
    names = ", ".join(run.name for run in runs)
    measured = sum(e.row is not None for _, e in all_entries)
    text = [f"{len(runs)} run{'s'[: len(runs) > 1]} ({names}), {measured} of {len(all_entries)} methods measured."]
    if tasks := [key for key in differences(runs) if key.startswith("family.") or key == "evaluation.tasks"]:
        text.append(f"The runs do not meet the same tasks ({', '.join(tasks)} differ): compare their scores with care.")
    every = [p for row in all_rows(runs) for p in row.provenance]
    if mixed := [key for key in ("hardware", "torch") if len({str(p.get(key)) for p in every}) > 1]:
        text.append(f"They were measured with different {' and '.join(mixed)}: compare their times with care.")
    return " ".join(text)


def accuracies(runs: Sequence[Run]) -> str:
    measured = all_rows(runs)
    if len(runs) == 1 or len({metric(row.family) for row in measured}) != 1:
        return scores(measured) if len(runs) == 1 and measured else ""
    panels = {
        at(shot): {run.name: {r.label: r.shots[shot] for r in run.rows if shot in r.shots} for run in runs}
        for shot in shot_numbers(measured)
    }
    height = 1.1 + sum(0.5 + 0.1 * len(runs) + 0.17 * sum(map(len, series.values())) for series in panels.values())
    alt, note = "Score of every method in every run with its interval", POINTS.format(metric(measured[0].family)[0])
    return dots(alt, note, height, panels, measured, styles_of(run.name for run in runs))


def _losses(runs: Sequence[Run]) -> str:
    """One run: all methods in one panel. Several: a panel for every method, as losses of two methods are not comparable."""
    styles = styles_of(run.name for run in runs)
    panels: dict[str, list[tuple[str, str, Line]]] = {}
    for run, e in entries(runs):
        label = label_of(e.method)
        title, name, colour = ("", label, plot_style(e.method)[0]) if len(runs) == 1 else (label, run.name, styles[run.name][0])
        for line in e.losses:
            panels.setdefault(title, []).append((name, colour, line))
    note = ", a point the mean of up to a hundredth of its steps; a gap is where a method's next network begins"
    return losses(panels, note) if panels else ""


def comparison_csv(runs: Sequence[Run]) -> str:
    """A line a method of a run, every number unrounded; the settings that differ are columns of their own."""
    lines: list[dict[str, Any]] = []
    for run, e in entries(runs):
        line: dict[str, Any] = {"run": run.name, "method": e.method, "state": e.state or "finished"}
        if (row := e.row) is not None:
            line |= {"family": row.family, "tasks": row.tasks, "seeds": " ".join(map(str, row.seeds))}
            line |= {"parameters": row.parameters, "fit_seconds": row.fit_seconds}
            line |= {f"{part}_ms": row.latency_ms.get(part, "") for part in PARTS}
            for shot, score in row.shots.items():
                line |= {f"mean_{shot}": score.mean, f"ci95_{shot}": score.ci95, f"std_{shot}": score.std}
        line |= dict(zip(PROVENANCE, provenance(run), strict=True))
        line |= {key: values[runs.index(run)] for key, values in differences(runs).items()}
        lines.append(line)
    return csv_text(lines)


def write_comparison(runs: Sequence[Run], path: Path) -> list[Path]:
    """The page at `path`, an .html file, and the numbers in a .csv file of the same name."""
    if path.suffix != ".html":
        raise McdiError(f"--out {path} must end in .html; the CSV file gets the same name")
    names = [run.name for run in runs]
    settings = html_table(["setting", *names], [[key, *values] for key, values in differences(runs).items()], "text")
    sections = {
        "Results": html_table(*cells(runs), "runs", note=RULE, marked=labels_of("proposed")),
        "Under way": html_table(["method", "run", "state"], states(runs), "text") if states(runs) else "",
        "Scores": accuracies(runs),
        "Settings that differ": settings if differences(runs) else "",
        "Training": _losses(runs),
        "Provenance": html_table(["run", *PROVENANCE], [[r.name, *provenance(r)] for r in runs], "text"),
    }
    write_bytes(path, html_page(f"Comparison of {', '.join(names)}", [about(runs)], sections))
    write_bytes(path.with_suffix(".csv"), comparison_csv(runs).encode())
    return [path, path.with_suffix(".csv")]
