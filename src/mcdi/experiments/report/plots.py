"""Plots of a report: every public function but `dots` gives the markup of one section, empty where no data are."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from mcdi.experiments.report.render import html_figure, html_table, legend, plain_numbers
from mcdi.experiments.report.results import PARTS, Row, Score, shot_numbers
from mcdi.experiments.report.style import Style, plot_style
from mcdi.experiments.report.summary import at, metric
from mcdi.experiments.report.table import headings, mse, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = Sequence[tuple[float, float]]  # (step, loss); NaN separates curves
POINTS = "Points are the mean {} on unseen tasks, bars the 95 % interval; further right is better."


def dots(
    figure: "Figure",
    panels: Mapping[str, Mapping[str, Mapping[str, Score]]],
    rows: Sequence[Row],
    styles: Mapping[str, Style],
) -> None:
    """Panel by panel: a line of points with intervals for every name on the y axis.

    Args:
        figure: empty.
        panels: {title: {series: {name: score}}}.
        rows: of one family, which decides the unit.
        styles: {series: (colour, marker)}.
    """
    name, factor, _, unit, _ = metric(rows[0].family)
    for axes, (title, series) in zip(
        figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels.items(), strict=True
    ):
        names = list(dict.fromkeys(n for scores in series.values() for n in scores))
        for i, (label, scores) in enumerate(series.items()):
            colour, marker = styles[label]
            shift = 0.0 if len(series) == len(names) == sum(map(len, series.values())) else (i + 0.5) / len(series) - 0.5
            axes.errorbar(
                [factor * s.mean for s in scores.values()],
                [names.index(n) + 0.7 * shift for n in scores],
                xerr=[factor * s.ci95 for s in scores.values()],
                fmt=marker,
                color=colour,
                markersize=5,
                capsize=3,
                label=label,
            )
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_title(title, loc="left", fontsize=10)
        axes.grid(axis="x", alpha=0.25)
    axes.set_xlabel(f"{name}{unit and ' (%)'}")


def _styles(rows: Sequence[Row]) -> dict[str, Style]:
    return {row.label: plot_style(row.method) for row in rows}


def scores(rows: Sequence[Row]) -> str:
    panels = {at(s): {r.label: {r.label: r.shots[s]} for r in rows if s in r.shots} for s in shot_numbers(rows)}
    height = 0.8 + sum(0.5 + 0.27 * len(series) for series in panels.values())
    note = f"Points are the mean {metric(rows[0].family)[0]} on unseen tasks, bars the 95 % interval; further right is better."
    return html_figure(
        "Score of every method with its interval", note, height, lambda figure: dots(figure, panels, rows, _styles(rows))
    )


def samplers(rows: Sequence[Row]) -> str:
    having = [r for r in rows if r.samplers]
    if not having:
        return ""
    pairs = [(r, name) for r in having for name in dict.fromkeys(n for scores in r.samplers.values() for n in scores)]
    body = []
    for row, name in pairs:
        scores = [row.samplers.get(shot, {}).get(name) for shot in shot_numbers(rows)]
        body.append([row.label, name, *(show(s, rows) for s in scores), mse(scores)])
    panels = {at(s): {r.label: r.samplers[s] for r in having if s in r.samplers} for s in shot_numbers(having)}
    height = 1.3 + len(panels) * (0.5 + 0.17 * len(pairs))

    def draw(figure: "Figure") -> None:
        dots(figure, panels, rows, _styles(rows))
        legend(figure)

    note = "The same trained generators, run with other samplers."
    plot = html_figure("Score of every sampler for every diffusion method", note, height, draw)
    return html_table(["method", "sampler", *headings(rows)], body, "runs") + plot


def curves(rows: Sequence[Row]) -> str:
    chains = [r for r in rows if r.curve]
    if not chains:
        return ""

    def draw(figure: "Figure") -> None:
        labels = {"mse": "MSE", "score": metric(rows[0].family)[0]}
        for axes, (key, label) in zip(figure.subplots(2, sharex=True), labels.items(), strict=True):
            for row in chains:
                colour, marker = plot_style(row.method)
                values: Any = [math.nan if p[key] is None else p[key] for p in row.curve]
                steps: Any = [p["t"] for p in row.curve]
                axes.plot(steps, values, color=colour, marker=marker, markersize=3.5, label=row.label)
            axes.set_ylabel(f"{label}{' (fraction)' if label == 'accuracy' else ''}")
            axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("denoising step t (0 is the noise)")
        legend(figure)

    note = "Error to the stored weights and score of the weights after every denoising step, mean over seeds."
    return html_figure("Squared error and score against the denoising step", note, 4.6, draw)


def losses(panels: Mapping[str, Sequence[tuple[str, str, Curve]]], note: str = "") -> Markup:
    """Training losses, a panel for every title: {title: [(label, colour, curve)]}."""
    rows = 1 if len(panels) == 1 else math.ceil(len(panels) / 2)

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

    notes = [f"One line per seed{note}."]
    if len(panels) == 1:
        notes.append("The methods minimise different losses, so compare whether lines still fall, not their heights.")
    height = 3.2 if len(panels) == 1 else 0.9 + 1.8 * rows
    return html_figure("Training loss against training step", " ".join(notes), height, draw)


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
