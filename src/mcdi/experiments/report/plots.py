"""Plots of a report: markup of one section each, empty where no data are."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from markupsafe import Markup
from pydantic import Field, FiniteFloat
from typing_extensions import TypedDict

from mcdi.experiments.report.render import html_figure, html_table, legend, plain_numbers
from mcdi.experiments.report.results import PARTS, Row, Score, bad, read_checked, shot_numbers
from mcdi.experiments.report.style import Style, label_of, plot_style, styles_of
from mcdi.experiments.report.summary import at, metric
from mcdi.experiments.report.table import headings, mse, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Panels = Mapping[str, Mapping[str, Mapping[str, Score]]]
Styles = Mapping[str, Style]
Curve = Sequence[tuple[float, float]]  # (step, loss); NaN separates curves
BOX = {"boxstyle": "round,pad=0.1", "facecolor": "white", "alpha": 0.75, "edgecolor": "none"}  # behind a label
_Point = tuple[FiniteFloat, FiniteFloat]
_Values = Annotated[list[FiniteFloat], Field(min_length=1)]
POINTS = "Points are the mean {} on unseen tasks, bars the 95 % interval; further right is better."


def dots(
    alt: str, note: str, height: float, panels: Panels, rows: Sequence[Row], styles: Styles | None = None, *, named: bool = True
) -> Markup:
    """A figure of `height` inches; in each of its panels a line of points with intervals for every name on the y axis.

    Args:
        panels: {title: {series: {name: score}}}.
        rows: of one family, which decides the unit.
        named: whether a legend names the series.
    """
    metric_name, factor, _, unit, _ = metric(rows[0].family)
    style_of = styles or {row.label: plot_style(row.method) for row in rows}

    def draw(figure: "Figure") -> None:
        grid = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, (title, series) in zip(grid, panels.items(), strict=True):
            names = list(dict.fromkeys(n for scores in series.values() for n in scores))
            apart = not len(series) == len(names) == sum(map(len, series.values()))
            for i, (label, scores) in enumerate(series.items()):
                colour, marker = style_of[label]
                shift = 0.7 * ((i + 0.5) / len(series) - 0.5) if apart else 0.0
                x, error = ([factor * getattr(s, part) for s in scores.values()] for part in ("mean", "ci95"))
                y = [names.index(n) + shift for n in scores]
                axes.errorbar(x, y, xerr=error, fmt=marker, color=colour, markersize=5, capsize=3, label=label)
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(len(names) - 0.4, -0.6)
            axes.set_title(title, loc="left", fontsize=10)
            axes.grid(axis="x", alpha=0.25)
        axes.set_xlabel(f"{metric_name}{unit and ' (%)'}")
        if named:
            legend(figure)

    return html_figure(alt, note, height, draw)


def scores(rows: Sequence[Row]) -> str:
    panels = {at(s): {r.label: {r.label: r.shots[s]} for r in rows if s in r.shots} for s in shot_numbers(rows)}
    height = 0.8 + sum(0.5 + 0.27 * len(series) for series in panels.values())
    note = POINTS.format(metric(rows[0].family)[0])
    return dots("Score of every method with its interval", note, height, panels, rows, named=False)


def samplers(rows: Sequence[Row]) -> str:
    having = [r for r in rows if r.samplers]
    if not having:
        return ""
    body = []
    for row in having:
        for name in dict.fromkeys(n for scores in row.samplers.values() for n in scores):
            values = [row.samplers.get(shot, {}).get(name) for shot in shot_numbers(rows)]
            body.append([row.label, name, *(show(s, rows) for s in values), mse(values)])
    panels = {at(s): {r.label: r.samplers[s] for r in having if s in r.samplers} for s in shot_numbers(having)}
    height = 1.3 + len(panels) * (0.5 + 0.17 * len(body))
    alt, note = "Score of every sampler for every diffusion method", "The same trained generators, run with other samplers."
    table = html_table(["method", "sampler", *headings(rows)], body, "runs")
    return table + dots(alt, note, height, panels, rows)


def curves(rows: Sequence[Row]) -> str:
    chains = [r for r in rows if r.curve]
    if not chains:
        return ""

    def draw(figure: "Figure") -> None:
        labels = {"mse": "MSE", "score": metric(rows[0].family)[0]}
        for axes, (key, label) in zip(figure.subplots(2, sharex=True), labels.items(), strict=True):
            for row in chains:
                colour, marker = plot_style(row.method)
                points: Any = [(p["t"], math.nan if p[key] is None else p[key]) for p in row.curve]
                axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=3.5, label=row.label)
            axes.set_ylabel(f"{label}{' (fraction)' if label == 'accuracy' else ''}")
            axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("denoising step t (0 is the noise)")
        legend(figure)

    note = "Error to the stored weights and score of the weights after every denoising step, mean over seeds."
    return html_figure("Squared error and score against the denoising step", note, 4.6, draw)


def losses(panels: Mapping[str, Sequence[tuple[str, str, Curve]]], note: str = "") -> Markup:
    """Training losses, a panel for every title: {title: [(label, colour, curve)]}."""
    single, rows = len(panels) == 1, math.ceil(len(panels) / 2)

    def draw(figure: "Figure") -> None:
        grid = figure.subplots(rows, min(2, len(panels)), squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        for axes, (title, curves) in zip(grid.flat, panels.items(), strict=False):
            for label, colour, curve in curves:
                axes.plot(*zip(*curve, strict=True), color=colour, linewidth=1, alpha=0.8, label=label)
            axes.set_yscale("log")
            axes.set_title(title, loc="left", fontsize=10)
            axes.grid(alpha=0.25)
            plain_numbers(axes.yaxis)
        figure.supxlabel("training step", fontsize=10)
        figure.supylabel("training loss", fontsize=10)
        legend(figure)

    caution = " The methods minimise different losses, so compare whether lines still fall, not their heights."
    text = f"One line per seed{note}.{caution if single else ''}"
    return html_figure("Training loss against training step", text, 3.2 if single else 0.9 + 1.8 * rows, draw)


def latency(rows: Sequence[Row]) -> str:
    totals = [r.total_ms for r in rows]
    wide = max(totals) > 30 * max(min(totals), 1e-9)  # then stacked bars would hide all but the slowest

    def draw(figure: "Figure") -> None:
        axes, left = figure.subplots(), [0.0] * len(rows)
        for part, colour, marker in zip(PARTS, ("#9aa3ad", "#3b82c4", "#e07b24"), "so^", strict=True):
            values = [r.latency_ms[part] for r in rows]
            if wide:
                axes.plot(values, range(len(rows)), marker, color=colour, label=part)
            else:
                axes.barh(range(len(rows)), values, left=left, color=colour, label=part)
            left = [a + b for a, b in zip(left, values, strict=True)]
        axes.set_yticks(range(len(rows)), [f"{r.label}\n{r.total_ms:.3g} ms" for r in rows], fontsize=9)
        axes.set(xlabel="ms for one task", ylim=(len(rows) - 0.4, -0.6))
        if wide:
            axes.set_xscale("log")
            plain_numbers(axes.xaxis)
        axes.grid(axis="x", alpha=0.25)
        legend(figure)

    shape = "as points on a logarithmic axis (parts of 0 ms have none)" if wide else "as stacked bars"
    note = f"Time from a support set to a network in use, in its three parts, {shape}; the total is below each name."
    return html_figure("Latency of every method in its three parts", note, 1.2 + 0.42 * len(rows), draw)


class _Landscape(TypedDict):
    x: list[FiniteFloat]
    y: list[FiniteFloat]
    loss: list[list[FiniteFloat]]
    chains: dict[str, Annotated[list[_Point], Field(min_length=1)]]
    points: dict[str, _Point]


def draw_landscape(figure: "Figure", data: Mapping[str, Any]) -> None:
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
        text, place = rf"$\theta_{{{symbol[1]}}}$" if symbol else name, (7, 7 if i % 2 else -13)
        note = axes.annotate(text, point, place, textcoords="offset points", color="black", bbox=BOX)
        note.set_parse_math(symbol is not None)
    legend(figure)


def landscape(folder: Path) -> str:
    path = folder / "landscape.json"
    if not path.exists():
        return ""
    data = read_checked(path, _Landscape)
    x, y, loss = data["x"], data["y"], data["loss"]
    if min(len(x), len(y)) < 2 or len(loss) != len(y) or any(len(line) != len(x) for line in loss):
        raise bad(path, f"loss is not {len(y)} rows (y) of {len(x)} (x) numbers, two or more of each")
    note = (
        "Loss of one task on a plane through weight space (logarithmic levels, lighter is lower). A line is a chain of "
        "generated weights from its start (ring) to its end (star); diamonds are weights that gradient training passed."
    )
    alt = "Loss landscape of a task with the chains of every method"
    return html_figure(alt, note, 4.6, lambda figure: draw_landscape(figure, data))


class _Novelty(TypedDict):
    generated: _Values
    targets: _Values
    noised: _Values
    scale_generated: _Values
    scale_real: _Values


def _memory(data: Mapping[str, Sequence[float]]) -> str:
    """Whether the medians of the distances suggest that the generator memorised."""
    made, real, noised = (median(data[key]) for key in ("generated", "targets", "noised"))
    distances = f"{made:.3g} for generated weights, {real:.3g} for held-out real ones and {noised:.3g} for noised copies"
    if made < real / 2 and made <= 2 * noised:
        verdict = "generated weights lie about as near to a stored target as its noised copies: this suggests memorisation"
    elif made < real / 2:
        verdict = "generated weights lie nearer than real ones but not as near as copies: this leaves open what was memorised"
    else:
        where = "generated weights are not twice as near to a stored target as real ones"
        verdict = f"{where}: no sign of memorising in these medians"
    scale = median(data["scale_generated"]) / max(median(data["scale_real"]), 1e-12)
    end = f"{verdict}. Generated norms are {scale:.2f} times the real."
    return f"Median distance to the nearest stored target: {distances}; {end}"


def novelty(folder: Path) -> str:
    path = folder / "novelty.json"
    if not path.exists():
        return ""
    data = read_checked(path, _Novelty)

    def draw(figure: "Figure") -> None:
        distances = {"generated": "generated", "targets": "real, held out", "noised": "noised copies"}
        norms = {"scale_generated": "generated", "scale_real": "real, held out"}
        styles = styles_of(distances.values())
        labels = ("distance to nearest stored target", "norm of the weights")
        for axes, names, label in zip(figure.subplots(2), (distances, norms), labels, strict=True):
            edges = np.histogram_bin_edges(np.concatenate([data[key] for key in names]), 40)
            for key, name in names.items():
                weights = np.full(len(data[key]), 1 / len(data[key]))
                axes.hist(data[key], edges, weights=weights, alpha=0.5, color=styles[name][0], label=name)
            axes.set(xlabel=label, ylabel="fraction")
        legend(figure)

    return html_figure("Histograms of distances to the nearest stored target, and of norms", _memory(data), 4.8, draw)
