"""Tables and charts of studies: the rows of many seeds in CSV for a program, in Markdown for a reader, as lines and points."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import torch

from mcdi.experiments.report.render import STYLE, drawn
from mcdi.experiments.report.style import plot_style
from mcdi.experiments.report.summary import metric
from mcdi.experiments.report.table import RULE, csv_text, markdown_lines
from mcdi.experiments.statistics import Estimate, interval, over_seeds, paired
from mcdi.experiments.studies.variants import Measured
from mcdi.methods import all_methods
from mcdi.utils.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LETTERS = 64  # of the title above one panel of a chart
FEW = 6  # numbers on an axis that are named one by one
DIFFERENCE = (
    "The difference is paired by task (and by seed where both methods have it): its interval is about what one method gains on "
    "the same tasks, and is narrower than the intervals of the two methods."
)


@dataclass(frozen=True)
class Line:
    """A row of a study over its seeds. difference: to the row to compare with. figures: mean and standard deviation."""

    factors: dict[str, Any]
    seeds: int
    score: Estimate | None
    difference: Estimate | None
    figures: dict[str, tuple[float, float]]


def lines(measured: Sequence[tuple[int, list[Measured]]], against: tuple[str, Any] | None) -> list[Line]:
    """(seed, rows) as lines, seeds of the same factors together. against: (factor, value) of lines to compare with."""
    groups: dict[tuple[tuple[str, Any], ...], dict[int, Measured]] = {}
    for seed, rows in measured:
        for row in rows:
            groups.setdefault(tuple(row.factors.items()), {})[seed] = row
    out = []
    for key, seeds in groups.items():
        rows, rival = list(seeds.values()), None
        if against is not None and dict(key).get(against[0]) != against[1]:
            rival = groups.get(tuple((n, against[1] if n == against[0] else v) for n, v in key))
        values = {n: [r.figures[n] for r in rows] for n in rows[0].figures}
        figures = {n: (fmean(v), stdev(v) if len(v) > 1 else 0.0) for n, v in values.items()}
        both = [seeds, rival or {}]
        a, b = ({s: (r.scores, r.first) for s, r in side.items() if r.scores is not None} for side in both)
        difference = paired(a, b) if rival and [len(a), len(b)] == [*map(len, both)] else None
        out.append(Line(dict(key), len(rows), _score(rows), difference, figures))
    return out


def _score(rows: Sequence[Measured]) -> Estimate | None:
    scores = [r.scores for r in rows if r.scores is not None]
    if len(scores) < len(rows):
        return None
    own_tasks = len({r.first for r in rows}) > 1  # every seed has tasks of its own
    within = interval(torch.cat(scores))["ci95"] if own_tasks else fmean(interval(s)["ci95"] for s in scores)
    return over_seeds([float(s.mean()) for s in scores], within)


def _names(table: Sequence[Line], part: str) -> list[str]:
    """Of all factors or of all figures, in order."""
    return list(dict.fromkeys(n for line in table for n in getattr(line, part)))


def as_csv(table: Sequence[Line]) -> str:
    """Every number of the table, unrounded."""
    shown = [n for n in ("score", "difference") if any(getattr(line, n) for line in table)]
    out = []
    for line in table:
        row = {**dict.fromkeys(_names(table, "factors"), ""), **line.factors, "seeds": line.seeds}
        for name in shown:
            row |= {f"{name}_{p}": getattr(getattr(line, name), p, "") for p in Estimate._fields}
        for name in _names(table, "figures"):
            row |= dict(zip((f"{name}_mean", f"{name}_std"), line.figures.get(name, ("", "")), strict=True))
        out.append(row)
    return csv_text(out)


def as_markdown(table: Sequence[Line], against: tuple[str, Any] | None, family: str) -> str:
    """The table for readers; scores as `metric(family)` shows them, ± the 95 % interval (std over seeds)."""
    factors, figures = _names(table, "factors"), _names(table, "figures")
    scored, compared = (any(getattr(line, n) for line in table) for n in ("score", "difference"))
    name, factor, digits, unit, _ = metric(family)
    header = [*factors, *[f"{name}{unit and ' (%)'}"][:scored], *[f"minus {against and against[1]}"][:compared], *figures]
    body = []
    for line in table:
        row = [str(line.factors.get(n, "-")) for n in factors]
        row += [_estimate(line.score, factor, digits)] if scored else []
        row += [_estimate(line.difference, factor, digits, "+")] if compared else []
        body.append([*row, *(_pair(line.figures.get(n), line.seeds) for n in figures)])
    notes = [RULE if scored else "Mean ± standard deviation over seeds.", *[DIFFERENCE][:compared]]
    return "\n".join([*markdown_lines(header, body, left=len(factors)), "", *(textwrap.fill(n, 120) for n in notes), ""])


def _estimate(value: Estimate | None, factor: float, digits: int, sign: str = "") -> str:
    if value is None:
        return "-"
    mean, std, ci95 = (factor * v for v in value)
    return f"{mean:{sign}.{digits}f} ± {ci95:.{digits}f} ({std:.{digits}f})"


def _pair(value: tuple[float, float] | None, seeds: int) -> str:
    return "-" if value is None else f"{value[0]:.3g}" + (f" ± {value[1]:.2g}" if seeds > 1 else "")


@dataclass(frozen=True)
class Chart:
    """x: a factor (numbers make lines, names make rows of points) or a figure; y: "score" or figures, a row of panels each.
    series: factors whose values name a line. only: (factor, value) that shown rows have, if any has it."""

    x: str
    y: tuple[str, ...] = ("score",)
    series: tuple[str, ...] = ("method",)
    panel: str | None = "shots"
    log: bool = False
    only: tuple[str, Any] | None = None


def draw_png(path: Path, size: tuple[float, float], put: Callable[["Figure"], None]) -> None:
    """What `put` puts on a figure of this size in inches, as PNG."""
    write_bytes(path, drawn(put, size, {**STYLE, "figure.dpi": 130}, format="png", metadata={"Software": None}))


def draw(chart: Chart, table: Sequence[Line], path: Path, title: str, family: str) -> None:
    """The chart of a table as PNG, replaced in one step."""
    shown = [line for line in table if chart.only is None or line.factors.get(chart.only[0]) == chart.only[1]] or list(table)
    panels = list(dict.fromkeys(line.factors.get(chart.panel) for line in shown)) if chart.panel else [None]

    def put(figure: "Figure") -> None:
        grid = figure.subplots(len(chart.y), len(panels), squeeze=False, sharey="row" if names else False)
        for row, y in enumerate(chart.y):
            for column, panel in enumerate(panels):
                mine = [line for line in shown if chart.panel is None or line.factors.get(chart.panel) == panel]
                _panel(grid[row][column], chart, y, mine, family)
                name = "" if panel is None else f"{panel} {chart.panel}" if chart.panel == "shots" else str(panel)
                grid[row][column].set_title("1 shot" if name == "1 shots" else name, fontsize=10)
        figure.suptitle(textwrap.fill(title, LETTERS * len(panels)), fontsize=11)
        handles, labels = grid[0][0].get_legend_handles_labels()
        if len(labels) > 1 and chart.x not in chart.series:  # otherwise the axis names them
            figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=9)

    names = {x for line in shown if isinstance(x := line.factors.get(chart.x), str)}
    height = max(3.6, 0.25 * len(names))  # a line of text for every name
    draw_png(path, (5.2 * len(panels), height * len(chart.y)), put)


def _panel(axes: "Axes", chart: Chart, y: str, table: Sequence[Line], family: str) -> None:
    score, factor, _, unit, _ = metric(family)
    groups: dict[str, list[Line]] = {}
    for line in table:
        groups.setdefault(", ".join(str(line.factors.get(n, "")) for n in chart.series), []).append(line)
    fixed = chart.series == ("method",) and set(groups) <= set(all_methods())  # other names may share a colour
    for number, (name, group) in enumerate(groups.items()):
        points = []
        for line in group:
            x = line.factors.get(chart.x, line.figures.get(chart.x, (None,))[0])
            estimate = line.score and (factor * line.score.mean, factor * line.score.ci95)
            value = estimate if y == "score" else line.figures.get(y)
            if x is not None and value is not None:
                points.append((x, *value))
        if not points:
            continue
        colour, marker = plot_style(name) if fixed else (f"C{number % 10}", "osD^vPX*<>"[number % 10])
        style: Any = {"label": name, "color": colour, "marker": marker}
        if all(isinstance(p[0], int | float) for p in points):
            x, height, error = zip(*sorted(points), strict=True)
            axes.errorbar(x, height, error, markersize=4, capsize=2, linewidth=1.4, **style)
        else:
            x, height, error = zip(*points, strict=True)
            axes.errorbar(height, list(map(str, x)), xerr=error, linestyle="none", capsize=3, **style)
    label = f"{score}{unit and ' (%)'}" if y == "score" else y
    if any(isinstance(line.factors.get(chart.x), str) for line in table):
        axes.set_xlabel(label)
        if not axes.yaxis_inverted():  # panels share it
            axes.invert_yaxis()
    else:
        axes.set(xlabel=chart.x, ylabel=label, xscale="log" if chart.log else "linear")
        numbers = {line.factors[chart.x] for line in table if chart.x in line.factors}
        if chart.log and 0 < len(numbers) <= FEW:
            axes.set_xticks(sorted(numbers), map(str, sorted(numbers)))
            axes.set_xticks([], minor=True)
    axes.grid(alpha=0.25)
