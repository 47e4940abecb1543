"""The loss of one task on a plane through weight space, with the inference chains of methods."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcdi.experiments.report.render import html_figure, legend
from mcdi.experiments.report.results import NUMBER, bad, check
from mcdi.experiments.report.style import label_of, plot_style
from mcdi.utils.files import read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINT = (NUMBER, NUMBER)
LANDSCAPE = {"x": [NUMBER], "y": [NUMBER], "loss": [[NUMBER]], "chains": {"*": [POINT]}, "points": {"*": POINT}}


def draw_landscape(figure: "Figure", data: Mapping[str, Any]) -> None:
    import numpy as np
    from matplotlib.colors import LogNorm

    axes, x, y, loss = figure.subplots(), data["x"], data["y"], data["loss"]
    high = max(max(map(max, loss)), 1e-12)
    low = min(max(min(map(min, loss)), 1e-6 * high), high / 1.01)  # a loss of zero has no level on a log scale
    levels = np.geomspace(low, high, 13)
    # The scale ends above the highest level: dark grey at most, so that lines and labels stay readable on it.
    filled = axes.contourf(x, y, np.clip(loss, low, high), levels, cmap="Greys", norm=LogNorm(low, high**2 / low))
    bar = figure.colorbar(filled, ax=axes, label="loss of the task", ticks=levels[::3], format="%.2g")
    bar.ax.minorticks_off()
    for method, chain in data["chains"].items():
        colour, marker = plot_style(method)
        axes.plot(*zip(*chain, strict=True), color=colour, marker=marker, markersize=3, linewidth=1.5, label=label_of(method))
        axes.plot(*chain[0], "o", markersize=9, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.5)
        axes.plot(*chain[-1], "*", markersize=13, color=colour, markeredgecolor="white")
    for i, (name, point) in enumerate(data["points"].items()):
        symbol = re.fullmatch(r"theta_([0-9A-Za-z]+)", name)
        axes.plot(*point, "D", color="black", markersize=4, markeredgecolor="white")
        axes.annotate(
            rf"$\theta_{{{symbol[1]}}}$" if symbol else name,
            point,
            xytext=(7, 7 if i % 2 else -13),
            textcoords="offset points",
            color="black",
            parse_math=symbol is not None,
            bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "alpha": 0.75, "edgecolor": "none"},
        )
    legend(figure)


def landscape(folder: Path) -> str:
    path = folder / "landscape.json"
    if not path.exists():
        return ""
    data = read_json(path)
    check(data, LANDSCAPE, path)
    x, y, loss = data["x"], data["y"], data["loss"]
    if min(len(x), len(y)) < 2 or len(loss) != len(y) or any(len(line) != len(x) for line in loss):
        raise bad(path, f"loss is not {len(y)} rows (y) of {len(x)} (x) numbers, two or more of each")
    for method, chain in data["chains"].items():
        if not chain:
            raise bad(path, f"chains.{method} is empty")
    note = (
        "Loss of one task on a plane through weight space (logarithmic levels, lighter is lower). A line is a chain of "
        "generated weights from its start (ring) to its end (star); diamonds are weights that gradient training passed."
    )
    return html_figure(
        "Loss landscape of a task with the chains of every method", note, 4.6, lambda figure: draw_landscape(figure, data)
    )
