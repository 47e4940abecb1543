"""How do the numbers look? Every function here gives one section's plot as inline SVG, or nothing where there is nothing."""

import html
import math
import re
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from mcdi.experiments.report.style import plot_style
from mcdi.experiments.report.table import NUMBER, PARTS, Row, Score, at, bad, check, headings, metric, mse, shot_numbers, show
from mcdi.utils.files import read_json

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's text colour in plots, so that they follow light and dark
NOVELTY = {key: [NUMBER] for key in ("generated", "targets", "noised", "scale_generated", "scale_real")}
POINT = (NUMBER, NUMBER)
LANDSCAPE = {"x": [NUMBER], "y": [NUMBER], "loss": [[NUMBER]], "chains": {"*": [POINT]}, "points": {"*": POINT}}


def figure(alt: str, note: str, height: float, draw: Callable[["Figure"], None]) -> str:
    """What `draw` puts on an empty figure, as inline SVG with a sentence below it; `height` in inches, of a width of 4.8."""
    import matplotlib
    from matplotlib.figure import Figure

    ink = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    salt = {"svg.fonttype": "none", "svg.hashsalt": alt}  # text stays text; ids of one figure differ from those of the next
    shape = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    style: Any = {**ink, **salt, **shape, "axes.axisbelow": True, "text.parse_math": False}  # names from files are not formulae
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.8, height), layout="constrained")
        draw(figure)
        buffer = StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    svg = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg[svg.index("<svg") :])  # the same ids come back in every figure of the page
    svg = svg.replace(INK, "currentColor").replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1)
    return f"<figure>{svg}<figcaption>{html.escape(note)}</figcaption></figure>"


def legend(figure: "Figure") -> None:
    """One legend above all panels, each name once."""
    found = dict(pair[::-1] for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True))
    columns = min(len(found), max(1, 57 // (6 + max(map(len, found), default=0))))  # what fits into the width
    figure.legend(list(found.values()), list(found), loc="outside upper center", ncols=columns, fontsize=9, columnspacing=1)


def plain(axis: "Axis") -> None:
    """Numbers on a logarithmic axis without powers, which would need formulae."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def html_table(header: Sequence[str], body: Sequence[Sequence[str]], kind: str = "") -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    lines = "\n".join(line(cells, "td") for cells in body)
    return f'<div class="wide"><table class="{kind}"><thead>{line(header, "th")}</thead><tbody>{lines}</tbody></table></div>'


def dots(
    figure: "Figure",
    panels: Mapping[str, Mapping[str, Mapping[str, Score]]],
    rows: Sequence[Row],
    looks: Callable[[str], tuple[str, str]] = plot_style,
) -> None:
    """Panel by panel: a line of points with intervals for every name on the y axis; `panels[title][series][name]`."""
    name, factor, _, unit, _ = metric(rows[0].family)
    for axes, (title, series) in zip(
        figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels.items(), strict=True
    ):
        names = list(dict.fromkeys(n for scores in series.values() for n in scores))
        for i, (method, scores) in enumerate(series.items()):
            colour, marker = looks(method)
            shift = 0.0 if len(series) == len(names) == sum(map(len, series.values())) else (i + 0.5) / len(series) - 0.5
            axes.errorbar(
                [factor * s.mean for s in scores.values()],
                [names.index(n) + 0.7 * shift for n in scores],
                xerr=[factor * s.ci95 for s in scores.values()],
                fmt=marker,
                color=colour,
                markersize=5,
                capsize=3,
                label=method,
            )
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_title(title, loc="left", fontsize=10)
        axes.grid(axis="x", alpha=0.25)
    axes.set_xlabel(f"{name}{unit and ' (%)'}")


def scores(rows: Sequence[Row]) -> str:
    panels = {at(s): {r.method: {r.method: r.shots[s]} for r in rows if s in r.shots} for s in shot_numbers(rows)}
    height = 0.8 + sum(0.5 + 0.27 * len(series) for series in panels.values())
    note = f"Points are the mean {metric(rows[0].family)[0]} on unseen tasks, bars the 95 % interval; further right is better."
    return figure("Score of every method with its interval", note, height, lambda figure: dots(figure, panels, rows))


def samplers(rows: Sequence[Row]) -> str:
    having = [r for r in rows if r.samplers]
    if not having:
        return ""
    pairs = [(r, name) for r in having for name in dict.fromkeys(n for scores in r.samplers.values() for n in scores)]
    body = []
    for row, name in pairs:
        scores = [row.samplers.get(shot, {}).get(name) for shot in shot_numbers(rows)]
        body.append([row.method, name, *(show(s, rows) for s in scores), mse(scores)])
    panels = {at(s): {r.method: r.samplers[s] for r in having if s in r.samplers} for s in shot_numbers(having)}
    height = 1.3 + len(panels) * (0.5 + 0.17 * len(pairs))

    def draw(figure: "Figure") -> None:
        dots(figure, panels, rows)
        legend(figure)

    note = "The same trained generators, run with other samplers; the number in a sampler's name is its number of steps."
    plot = figure("Score of every sampler for every diffusion method", note, height, draw)
    return html_table(["method", "sampler", *headings(rows)], body) + plot


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
                axes.plot(steps, values, color=colour, marker=marker, markersize=3.5, label=row.method)
            axes.set_ylabel(f"{label}{' (fraction)' if label == 'accuracy' else ''}")
            axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("denoising step t (0 is the noise)")
        legend(figure)

    note = "Error to the stored weights and score of the weights after every denoising step, mean over seeds."
    return figure("Squared error and score against the denoising step", note, 4.6, draw)


def losses(rows: Sequence[Row]) -> str:
    trained = [r for r in rows if any(r.losses)]
    if not trained:
        return ""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        for row in trained:
            for seed in filter(None, row.losses):
                steps, values = zip(*((s, math.nan if v is None else v) for s, v in seed), strict=True)
                axes.plot(steps, values, color=plot_style(row.method)[0], linewidth=1, alpha=0.8, label=row.method)
        axes.set(yscale="log", xlabel="training step", ylabel="training loss")
        axes.grid(alpha=0.25)
        plain(axes.yaxis)
        legend(figure)

    note = "One line per seed. The methods minimise different losses, so compare whether lines still fall, not their heights."
    return figure("Training loss against training step", note, 3.2, draw)


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
        axes.set_yticks(range(len(rows)), [f"{r.method}\n{r.total_ms:.3g} ms" for r in rows], fontsize=9)
        axes.set(xlabel="ms for one task", ylim=(len(rows) - 0.4, -0.6))
        if wide:
            axes.set_xscale("log")
            plain(axes.xaxis)
        axes.grid(axis="x", alpha=0.25)
        legend(figure)

    how = "as points on a logarithmic axis (parts of 0 ms have none)" if wide else "as stacked bars"
    note = f"Time from a support set to a network in use, in its three parts, {how}; the total stands below each name."
    return figure("Latency of every method in its three parts", note, 1.2 + 0.42 * len(rows), draw)


def draw_landscape(figure: "Figure", data: Mapping[str, Any]) -> None:
    import numpy as np
    from matplotlib.colors import LogNorm

    axes, x, y, loss = figure.subplots(), data["x"], data["y"], data["loss"]
    high = max(max(map(max, loss)), 1e-12)
    low = min(max(min(map(min, loss)), 1e-6 * high), high / 1.01)  # a loss of zero has no place on a log scale
    levels = np.geomspace(low, high, 13)
    # The scale ends above the highest level: dark grey at most, so that lines and labels stay readable on it.
    filled = axes.contourf(x, y, np.clip(loss, low, high), levels, cmap="Greys", norm=LogNorm(low, high**2 / low))
    bar = figure.colorbar(filled, ax=axes, label="loss of the task", ticks=levels[::3], format="%.2g")
    bar.ax.minorticks_off()
    for method, chain in data["chains"].items():
        colour, marker = plot_style(method)
        axes.plot(*zip(*chain, strict=True), color=colour, marker=marker, markersize=3, linewidth=1.5, label=method)
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
    return figure(
        "Loss landscape of a task with the chains of every method", note, 4.6, lambda figure: draw_landscape(figure, data)
    )


def _memory(data: Mapping[str, Sequence[float]]) -> str:
    """Do the distances look as if the generator had memorised? Said from the medians alone."""
    made, real, noised = (median(data[key]) for key in ("generated", "targets", "noised"))
    distances = f"{made:.3g} for generated weights, {real:.3g} for held-out real ones and {noised:.3g} for noised copies"
    if made < real / 2 and made <= 2 * noised:
        verdict = "generated weights lie about as near to a stored target as its noised copies: this looks like memorising"
    elif made < real / 2:
        verdict = "generated weights lie nearer than real ones but not as near as copies: this leaves open what was memorised"
    else:
        verdict = (
            "generated weights are not twice as near to a stored target as real ones: no sign of memorising in these medians"
        )
    scale = median(data["scale_generated"]) / max(median(data["scale_real"]), 1e-12)
    return (
        f"Median distance to the nearest stored target: {distances}; {verdict}. Generated norms are {scale:.2f} times the real."
    )


def novelty(folder: Path) -> str:
    path = folder / "novelty.json"
    if not path.exists():
        return ""
    data = read_json(path)
    check(data, NOVELTY, path)
    for key in NOVELTY:
        if not data[key]:
            raise bad(path, f"{key} is empty")

    def draw(figure: "Figure") -> None:
        import numpy as np

        distances = {"generated": "generated", "targets": "real, held out", "noised": "noised copies"}
        norms = {"scale_generated": "generated", "scale_real": "real, held out"}
        of = {"generated": "mc-di", "real, held out": "mv-di", "noised copies": "tw-di"}
        looks = {shown: plot_style(method)[0] for shown, method in of.items()}
        labels = ("distance to nearest stored target", "norm of the weights")
        for axes, names, label in zip(figure.subplots(2), (distances, norms), labels, strict=True):
            edges = np.histogram_bin_edges(np.concatenate([data[key] for key in names]), 40)
            for key, name in names.items():
                weights = np.full(len(data[key]), 1 / len(data[key]))
                axes.hist(data[key], edges, weights=weights, alpha=0.5, color=looks[name], label=name)
            axes.set(xlabel=label, ylabel="share")
        legend(figure)

    return figure("Histograms of distances to the nearest stored target, and of norms", _memory(data), 4.8, draw)
