"""Several runs side by side: one page, one CSV file, one table for the terminal; a single run will do."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcdi.errors import McdiError
from mcdi.experiments.report.plots import dots, losses, scores
from mcdi.experiments.report.render import html_figure, html_page, html_table, legend
from mcdi.experiments.report.results import PARTS, Row, shot_numbers
from mcdi.experiments.report.runs import Entry, Line, Run, differences, provenance
from mcdi.experiments.report.style import is_proposed, label_of, plot_style, styles_of
from mcdi.experiments.report.summary import at, metric
from mcdi.experiments.report.table import RULE, show, terminal_table
from mcdi.utils.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

PROVENANCE = ("commit", "version", "hardware", "torch", "date")
PAGE_ONLY = ("total (ms)", "parameters", "seeds")  # columns that a terminal has no room for


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
    per_shot = [f"{name}, {at(shot)}{unit and ' (%)'}" for shot in shots]
    header = ["method", "run", *per_shot, "generate (ms)", "total (ms)", "training (s)", "parameters", "seeds"]
    body = []
    for run, e in entries(runs):
        row = e.row
        text = [""] * (len(shots) + 5)
        if row is not None:
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
    header, body = cells(runs)
    left = "\n".join(f"{method} of {run}: {state}" for method, run, state in states(runs))
    kept = [i for i, name in enumerate(header) if name not in PAGE_ONLY]
    shown = [[line[i] for i in kept] for line in body]
    return terminal_table(about(runs), [header[i] for i in kept], shown, left, marked=_marked(runs), left=2, needed=len(kept))


def _marked(runs: Sequence[Run]) -> set[str]:
    return {label_of(e.method) for _, e in entries(runs) if is_proposed(e.method)}


def about(runs: Sequence[Run]) -> str:
    """What is compared, and what makes a comparison unfair."""
    all_entries = list(entries(runs))
    names = ", ".join(run.name for run in runs)
    measured = sum(e.row is not None for _, e in all_entries)
    text = [f"{len(runs)} run{'s'[: len(runs) > 1]} ({names}), {measured} of {len(all_entries)} methods measured."]
    tasks = [key for key in differences(runs) if key.startswith("family.") or key == "evaluation.tasks"]
    if tasks:
        text.append(f"The runs do not meet the same tasks ({', '.join(tasks)} differ): compare their scores with care.")
    mixed = [key for key in ("hardware", "torch") if len({str(p.get(key)) for r in all_rows(runs) for p in r.provenance}) > 1]
    if mixed:
        text.append(f"They were measured with different {' and '.join(mixed)}: compare their times with care.")
    return " ".join(text)


def accuracies(runs: Sequence[Run]) -> str:
    measured = all_rows(runs)
    if len(runs) == 1 or len({metric(row.family) for row in measured}) != 1:
        return scores(measured) if len(runs) == 1 and measured else ""
    styles = styles_of(run.name for run in runs)
    panels = {
        at(shot): {run.name: {r.label: r.shots[shot] for r in run.rows if shot in r.shots} for run in runs}
        for shot in shot_numbers(measured)
    }
    height = 1.1 + sum(0.5 + 0.1 * len(runs) + 0.17 * sum(map(len, series.values())) for series in panels.values())

    def draw(figure: "Figure") -> None:
        dots(figure, panels, measured, styles)
        legend(figure)

    note = (
        f"Points are the mean {metric(measured[0].family)[0]} on unseen tasks, bars the 95 % interval; further right is better."
    )
    return html_figure("Score of every method in every run with its interval", note, height, draw)


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
    differing = differences(runs)
    lines: list[dict[str, Any]] = []
    for run, e in entries(runs):
        line: dict[str, Any] = {"run": run.name, "method": e.method, "state": e.state or "finished"}
        if (row := e.row) is not None:
            line |= {"family": row.family, "tasks": row.tasks, "seeds": " ".join(map(str, row.seeds))}
            line |= {"parameters": row.parameters, "fit_seconds": row.fit_seconds}
            line |= {f"{part}_ms": row.latency_ms.get(part, "") for part in PARTS}
            for shot, score in row.shots.items():
                line |= {f"mean_{shot}": score.mean, f"ci95_{shot}": score.ci95, f"std_{shot}": score.std}
        line |= dict(zip(PROVENANCE, provenance(run, PROVENANCE), strict=True))
        line |= {key: values[runs.index(run)] for key, values in differing.items()}
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def write_comparison(runs: Sequence[Run], path: Path) -> list[Path]:
    """The page at `path`, an .html file, and the numbers in a .csv file of the same name."""
    if path.suffix != ".html":
        raise McdiError(f"--out {path} must end in .html; the CSV file gets the same name")
    names = [run.name for run in runs]
    settings = html_table(["setting", *names], [[key, *values] for key, values in differences(runs).items()], "text")
    sections = {
        "Results": html_table(*cells(runs), "runs", note=RULE, marked=_marked(runs)),
        "Under way": html_table(["method", "run", "state"], states(runs), "text") if states(runs) else "",
        "Scores": accuracies(runs),
        "Settings that differ": settings if differences(runs) else "",
        "Training": _losses(runs),
        "Provenance": html_table(["run", *PROVENANCE], [[r.name, *provenance(r, PROVENANCE)] for r in runs], "text"),
    }
    write_bytes(path, html_page(f"Comparison of {', '.join(names)}", [about(runs)], sections))
    write_bytes(path.with_suffix(".csv"), comparison_csv(runs).encode())
    return [path, path.with_suffix(".csv")]
