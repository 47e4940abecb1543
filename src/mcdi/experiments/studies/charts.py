"""Charts of studies: lines over a number, or points for names, a panel for every shot number; one PNG."""

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcdi.experiments.report.landscape import draw_landscape
from mcdi.experiments.report.style import plot_style
from mcdi.experiments.report.summary import metric
from mcdi.experiments.studies.tables import Line
from mcdi.methods import all_methods
from mcdi.utils.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LETTERS = 64  # of a title above one panel


@dataclass(frozen=True)
class Chart:
    """x: a factor (numbers make lines, names make rows of points) or a figure; y: "score" or figures, a row of panels each.

    series: factors whose values name a line. only: (factor, value) that shown rows have.
    """

    x: str
    y: tuple[str, ...] = ("score",)
    series: tuple[str, ...] = ("method",)
    panel: str | None = "shots"
    log: bool = False
    only: tuple[str, Any] | None = None


def _png(path: Path, size: tuple[float, float], put: Callable[["Figure"], None]) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    with rc_context(style):
        figure = Figure(figsize=size, layout="constrained", dpi=130)
        put(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def draw_chains(data: Mapping[str, Any], path: Path) -> None:
    """The inference chains over the loss of a task, as evaluate.landscape gives them."""
    _png(path, (6.4, 6.0), lambda figure: draw_landscape(figure, data))


def draw(chart: Chart, table: Sequence[Line], path: Path, title: str, family: str) -> None:
    """The chart of a table as PNG, replaced in one step."""
    shown = [line for line in table if chart.only is None or line.factors.get(chart.only[0]) == chart.only[1]]
    panels = list(dict.fromkeys(line.factors.get(chart.panel) for line in shown)) if chart.panel else [None]

    def put(figure: "Figure") -> None:
        grid = figure.subplots(len(chart.y), len(panels), squeeze=False)
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
    _png(path, (5.2 * len(panels), height * len(chart.y)), put)


def _value(line: Line, y: str, factor: float) -> tuple[float, float] | None:
    """Height and half-length of the error bar."""
    if y == "score":
        return None if line.score is None else (factor * line.score[0], factor * line.score[2])
    return line.figures.get(y)


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
            value = _value(line, y, factor)
            if x is not None and value is not None:
                points.append((x, *value))
        if not points:
            continue
        colour, marker = plot_style(name) if fixed else (f"C{number % 10}", "osD^vPX*<>"[number % 10])
        if all(isinstance(p[0], int | float) for p in points):
            x, height, error = zip(*sorted(points), strict=True)
            axes.errorbar(x, height, error, label=name, color=colour, marker=marker, markersize=4, capsize=2, linewidth=1.4)
        else:
            places = [str(p[0]) for p in points]
            axes.errorbar(
                [p[1] for p in points], places, xerr=[p[2] for p in points], fmt=marker, label=name, color=colour, capsize=3
            )
    named = table and any(isinstance(line.factors.get(chart.x), str) for line in table)
    label = f"{score}{unit and ' (%)'}" if y == "score" else y
    if named:
        axes.set_xlabel(label)
        axes.invert_yaxis()
    else:
        axes.set_xlabel(chart.x)
        axes.set_ylabel(label)
        if chart.log:
            axes.set_xscale("log")
    axes.grid(alpha=0.25)
