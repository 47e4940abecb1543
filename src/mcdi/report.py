"""What did the run find, in tables and plots that one person can read and another can check?

`rows` aggregates `results/<method>-<seed>.json` over seeds; `write_report` puts the rows into `table.json`, `table.md` and one
HTML page that needs nothing from outside. Every sentence on the page is computed from the numbers and says no more than they.
"""

import html
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING, Any

from mcdi.errors import McdiError
from mcdi.store import read_json, write_bytes, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

RULE = (
    "Mean over seeds of the mean over unseen tasks. The interval is 95 %: sqrt(a² + b²), where b is the mean over seeds of "
    "the half-width over tasks within a seed, and a = t(0.975, n - 1) · std / sqrt(n) over the means of n seeds (0 for one "
    "seed, whose interval then holds the spread over tasks only; t is 12.7 for two seeds, 4.3 for three). The two are added "
    "in this way because all seeds meet the same tasks, so more seeds do not make b smaller."
)
# Student's t at 0.975 for 1, 2, ... degrees of freedom; beyond the table its last value, a little too wide, is used.
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)
PARTS = ("embed", "generate", "apply")
KNOWN = ("mc-di", "mv-di", "tw-di", "ocd", "adam", "prototypes", "hypernetwork", "reptile")  # their colours never change
RIVALS = {"adam": "Adam on the support set", "prototypes": "nearest prototype", "hypernetwork": "one-step regression"}
NOT_ACCURACY = {"sines"}  # families whose score is not a share of right answers
INK = "#010203"  # stands for the page's text colour in plots, so that they follow light and dark
COLOURS = "#3b82c4 #e07b24 #2a9d6f #9467bd #d1495b #9c6b4f #c85fa8 #1fa3b5 #8a8f2a #7a8290".split()

NUMBER, MAYBE = "a finite number", "a number or null"
SCORE = {"mean": NUMBER, "ci95": NUMBER, "mse": MAYBE}
RESULT = {
    **{
        "method": str,
        "seed": int,
        "gradient_free": bool,
        "parameters": int,
        "fit_seconds": NUMBER,
        "family": str,
        "tasks": int,
    },
    "shots": {"*": SCORE | {"samplers?": {"*": SCORE}}},
    "curve": [{"t": NUMBER, "score": MAYBE, "mse": MAYBE}],
    "latency_ms": dict.fromkeys(PARTS, NUMBER),
    "losses": [(NUMBER, MAYBE)],
    "provenance": {},
}
NOVELTY = {key: [NUMBER] for key in ("generated", "targets", "noised", "scale_generated", "scale_real")}
POINT = (NUMBER, NUMBER)
LANDSCAPE = {"x": [NUMBER], "y": [NUMBER], "loss": [[NUMBER]], "chains": {"*": [POINT]}, "points": {"*": POINT}}
CSS = """:root{color-scheme:light dark;--line:#8886;--soft:#8881}
body{font:1rem/1.55 system-ui,sans-serif;max-width:62rem;margin:0 auto;padding:1rem;background:#fff;color:#1b1b1b}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin:2.2rem 0 .6rem;border-bottom:1px solid var(--line)}
p,figcaption,summary{max-width:44rem}figure{margin:0 0 1rem;max-width:36rem}svg{width:100%;height:auto;display:block}
figcaption,.note{font-size:.9rem;opacity:.85}.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}thead th{vertical-align:bottom;white-space:normal;min-width:4.5rem}
.text td{text-align:left;white-space:normal;overflow-wrap:anywhere}pre{overflow-x:auto;background:var(--soft);padding:.8rem}
@media(prefers-color-scheme:dark){body{background:#15171a;color:#e6e6e6}}"""


@dataclass(frozen=True)
class Score:
    """Score of one method at one shot number over all seeds, as fractions; `mse` is None where a seed has none."""

    mean: float
    std: float  # over the seeds' means; 0 for one seed
    ci95: float  # half-width, see RULE
    mse: float | None


@dataclass(frozen=True)
class Row:
    """One method, aggregated over its seeds."""

    method: str
    family: str
    tasks: int
    seeds: tuple[int, ...]
    gradient_free: bool
    parameters: int
    fit_seconds: float  # mean over seeds, like the latencies
    latency_ms: dict[str, float]  # embed, generate, apply
    shots: dict[int, Score]
    samplers: dict[int, dict[str, Score]]
    curve: list[dict[str, float | None]]  # t, score and mse along the chain, mean over seeds
    losses: list[list[list[float | None]]]  # per seed: [step, loss]
    provenance: list[dict[str, Any]]  # per seed

    @property
    def total_ms(self) -> float:
        return sum(self.latency_ms.values())


def _bad(path: Path, what: str) -> McdiError:
    return McdiError(f"{path}: {what}: delete that file and run the step that made it again")


def _check(value: Any, shape: Any, path: Path, key: str = "") -> None:
    """Raise McdiError naming `path` and the dotted key at which `value` does not have `shape` ("*": any key, "x?": optional)."""
    inner: list[tuple[Any, Any, Any]] = []
    fits, name = isinstance(value, dict), "a JSON object"
    match shape:
        case str():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            fits, name = (number and math.isfinite(value)) or (shape == MAYBE and (number or value is None)), shape
        case type():
            fits, name = type(value) is shape, f"of type {shape.__name__}"
        case tuple():
            fits, name = isinstance(value, list) and len(value) == len(shape), f"a list of {len(shape)}"
            inner = list(zip(range(len(shape)), value, shape, strict=True)) if fits else []
        case [item]:
            fits, name = isinstance(value, list), "a list"
            inner = [(i, v, item) for i, v in enumerate(value)] if fits else []
        case {"*": item}:
            inner = [(n, v, item) for n, v in value.items()] if fits else []
        case dict() if fits:
            for n, item in shape.items():
                if n.rstrip("?") in value:
                    inner.append((n.rstrip("?"), value[n.rstrip("?")], item))
                elif not n.endswith("?"):
                    raise _bad(path, f"{key}{n} is missing")
    if not fits:
        raise _bad(path, f"{key.rstrip('.') or 'its content'} is {repr(value)[:60]}, not {name}")
    for n, v, item in inner:
        _check(v, item, path, f"{key}{n}.")


def _results(folder: Path) -> list[dict[str, Any]]:
    """Every result, checked; those of one folder must be of one family and number of tasks, else they compare nothing."""
    results: list[dict[str, Any]] = []
    for path in sorted((folder / "results").glob("*.json")):
        result = read_json(path)
        _check(result, RESULT, path)
        if path.stem != f"{result['method']}-{result['seed']}":
            raise _bad(path, f"method and seed are {result['method']!r} and {result['seed']}, not those of its name")
        if not result["shots"] or not all(shot.isdecimal() for shot in result["shots"]):
            raise _bad(path, f"shots has the keys {sorted(result['shots'])}, not shot numbers")
        for key in ("family", "tasks"):
            if results and result[key] != results[0][key]:
                raise _bad(path, f"{key} is {result[key]!r}, but {results[0][key]!r} in the other results")
        results.append(result)
    if not results:
        raise McdiError(f"{folder / 'results'} holds no results: run `mcdi evaluate` first")
    return results


def _mean(values: Sequence[float | None]) -> float | None:
    """None as soon as one value is missing or not finite: leaving out a diverged seed would flatter the method."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    return fmean(known) if known and len(known) == len(values) else None


def _score(seeds: Sequence[Mapping[str, Any]]) -> Score:
    means, n = [s["mean"] for s in seeds], len(seeds)
    std = stdev(means) if n > 1 else 0.0
    between = T975[min(n - 1, len(T975)) - 1] * std / math.sqrt(n)
    return Score(fmean(means), std, math.hypot(between, fmean(s["ci95"] for s in seeds)), _mean([s["mse"] for s in seeds]))


def _row(seeds: list[dict[str, Any]], folder: Path) -> Row:
    def layout(result: dict[str, Any]) -> dict[str, set[str]]:
        return {shot: set(score.get("samplers", ())) for shot, score in result["shots"].items()}

    first = seeds[0]
    for other in seeds[1:]:
        if layout(other) != layout(first):
            path = folder / "results" / f"{other['method']}-{other['seed']}.json"
            raise _bad(path, f"shots has other shot numbers or samplers than seed {first['seed']}")
    shots = {int(s): [r["shots"][s] for r in seeds] for s in sorted(first["shots"], key=int)}
    points: dict[float, list[dict[str, Any]]] = {}
    for point in (p for r in seeds for p in r["curve"]):
        points.setdefault(point["t"], []).append(point)
    return Row(
        **{key: first[key] for key in ("method", "family", "tasks", "gradient_free", "parameters")},
        seeds=tuple(r["seed"] for r in seeds),
        fit_seconds=fmean(r["fit_seconds"] for r in seeds),
        latency_ms={part: fmean(r["latency_ms"][part] for r in seeds) for part in PARTS},
        shots={shot: _score(scores) for shot, scores in shots.items()},
        samplers={
            shot: {name: _score([s["samplers"][name] for s in scores]) for name in sorted(scores[0]["samplers"])}
            for shot, scores in shots.items()
            if scores[0].get("samplers")
        },
        curve=[{"t": t, **{k: _mean([p[k] for p in group]) for k in ("score", "mse")}} for t, group in sorted(points.items())],
        losses=[r["losses"] for r in seeds],
        provenance=[r["provenance"] for r in seeds],
    )


def _shots(rows: Sequence[Row]) -> list[int]:
    return sorted({shot for row in rows for shot in row.shots})


def rows(folder: Path) -> list[Row]:
    """Results of `folder` aggregated over seeds, best score at the lowest shot number first.

    Raises:
        McdiError: no results, or a file that is corrupt, incomplete or of another family; it names the file and the key.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in sorted(_results(folder), key=lambda r: int(r["seed"])):
        groups.setdefault(result["method"], []).append(result)
    found = [_row(seeds, folder) for seeds in groups.values()]
    lowest = _shots(found)[0]
    return sorted(found, key=lambda r: (-r.shots[lowest].mean if lowest in r.shots else math.inf, r.method))


def _metric(rows: Sequence[Row]) -> tuple[str, float, int, str, str]:
    """Name, factor, decimals, unit and word for a difference of this family's score."""
    return ("score", 1.0, 3, "", "") if rows[0].family in NOT_ACCURACY else ("accuracy", 100.0, 2, " %", " points")


def _show(score: Score | None, rows: Sequence[Row]) -> str:
    _, factor, digits, _, _ = _metric(rows)
    return f"{factor * score.mean:.{digits}f} ± {factor * score.ci95:.{digits}f}" if score else "–"


def _mse(scores: Sequence[Score | None]) -> str:
    shown = [f"{s.mse:.3g}" if s and s.mse is not None else "–" for s in scores]
    return " / ".join(shown) if set(shown) != {"–"} else "–"


def _headings(rows: Sequence[Row]) -> list[str]:
    """Column headings for the score at every shot number, and for all their squared errors."""
    name, _, _, unit, _ = _metric(rows)
    shots = _shots(rows)
    return [f"{name}, {s}-shot{f' ({unit[1:]})' if unit else ''}" for s in shots] + [f"MSE, {' / '.join(map(str, shots))}-shot"]


def _cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The table as text: markdown, terminal and page print the same cells."""
    times = ["generate (ms)", "total (ms)", "parameters", "training (s)", "gradient-free"]
    body = []
    for row in rows:
        scores = [row.shots.get(shot) for shot in _shots(rows)]
        cost = [f"{row.latency_ms['generate']:.3g}", f"{row.total_ms:.3g}", f"{row.parameters:,}", f"{row.fit_seconds:.1f}"]
        body.append([row.method, *(_show(s, rows) for s in scores), _mse(scores), *cost, "yes" if row.gradient_free else "no"])
    return ["method", *_headings(rows), *times], body


def markdown(rows: Sequence[Row]) -> str:
    """The table in Markdown, with the rule for its intervals below it."""
    header, body = _cells(rows)
    lines = [header, ["---", *("---:" for _ in header[1:])], *body]
    table = ["| " + " | ".join(html.escape(c, quote=False).replace("|", "\\|") for c in line) + " |" for line in lines]
    return "\n".join([*table, "", RULE, ""])


def rich_table(rows: Sequence[Row]) -> "Table":
    """The table for a terminal."""
    from rich.table import Table
    from rich.text import Text

    header, body = _cells(rows)
    table = Table(title=f"{rows[0].family}: {rows[0].tasks} unseen tasks", title_justify="left")
    for i, name in enumerate(header):
        table.add_column(Text(name), justify="right" if i else "left")
    for line in body:
        table.add_row(*(Text(cell) for cell in line))  # Text: names from files are not markup
    return table


def _look(method: str) -> tuple[str, str]:
    """Colour and marker of a method, the same in every plot and every report."""
    known = method in KNOWN
    i = KNOWN.index(method) if known else len(KNOWN) + zlib.crc32(method.encode()) % (len(COLOURS) - len(KNOWN))
    return COLOURS[i], "osD^vPX*<>"[i]


def _figure(alt: str, note: str, height: float, draw: Callable[["Figure"], None]) -> str:
    """What `draw` puts on an empty figure, as inline SVG with a sentence below it; `height` in inches, of a width of 4.8."""
    import matplotlib
    from matplotlib.figure import Figure

    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: dict[str, Any] = {**dict.fromkeys(ink, INK), "svg.fonttype": "none", "svg.hashsalt": alt, "text.parse_math": False}
    shape: dict[str, Any] = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    with matplotlib.rc_context({**style, **shape}):
        figure = Figure(figsize=(4.8, height), layout="constrained")
        draw(figure)
        for axes in figure.axes:
            axes.set_axisbelow(True)
        buffer = StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    svg = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg[svg.index("<svg") :])  # the same ids come back in every figure of the page
    svg = svg.replace(INK, "currentColor").replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1)
    return f"<figure>{svg}<figcaption>{html.escape(note)}</figcaption></figure>"


def _legend(figure: "Figure") -> None:
    """One legend above all panels, each name once."""
    found = dict(pair[::-1] for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True))
    figure.legend(list(found.values()), list(found), loc="outside upper center", ncols=3, fontsize=9, columnspacing=1)


def _html_table(header: Sequence[str], body: Sequence[Sequence[str]], kind: str = "") -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    lines = "\n".join(line(cells, "td") for cells in body)
    return f'<div class="wide"><table class="{kind}"><thead>{line(header, "th")}</thead><tbody>{lines}</tbody></table></div>'


def _apart(a: Score, b: Score) -> bool:
    return abs(a.mean - b.mean) > a.ci95 + b.ci95


def _summary(rows: Sequence[Row]) -> str:
    """One paragraph: who is best at each shot number, and how Mc-Di stands to the methods that people would use instead."""
    name, factor, digits, unit, points = _metric(rows)
    text = [f"{len(rows)} method{'s'[: len(rows) > 1]} on {rows[0].tasks} unseen tasks of the family {rows[0].family}."]
    ours = next((r for r in rows if r.method == "mc-di"), None)
    for shot in _shots(rows):
        ranked = sorted((r for r in rows if shot in r.shots), key=lambda r: -r.shots[shot].mean)
        best, near = ranked[0], [r.method for r in ranked[1:] if not _apart(ranked[0].shots[shot], r.shots[shot])]
        reach = f"its interval overlaps that of {', '.join(near)}" if near else "no other method's interval overlaps its own"
        what = f"{shot}-shot: {best.method} has the highest {name}, {_show(best.shots[shot], rows)}{unit}"
        text.append(f"{what}; {reach}." if len(ranked) > 1 else f"{what}, as the only method measured.")
        stands = []
        for rival in (r for r in ranked if r.method in RIVALS and ours and shot in ours.shots):
            a, b = ours.shots[shot], rival.shots[shot]  # type: ignore[union-attr]
            side = "above" if a.mean >= b.mean else "below"
            gap = f"{factor * abs(a.mean - b.mean):.{digits}f}{points} {side} {RIVALS[rival.method]} ({rival.method})"
            stands.append(f"{gap}, where the intervals {'do not overlap' if _apart(a, b) else 'overlap'}")
        text += [f"There mc-di is {'; '.join(stands)}."] if stands else []
    text.append("Overlapping intervals mean that this run does not separate two methods, not that they are equal.")
    return " ".join(text)


def _dots(figure: "Figure", panels: Mapping[str, Mapping[str, Mapping[str, Score]]], rows: Sequence[Row]) -> None:
    """Panel by panel: a line of points with intervals for every name on the y axis; `panels[title][method][name]`."""
    name, factor, _, unit, _ = _metric(rows)
    for axes, (title, series) in zip(
        figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels.items(), strict=True
    ):
        names = list(dict.fromkeys(n for scores in series.values() for n in scores))
        for i, (method, scores) in enumerate(series.items()):
            colour, marker = _look(method)
            shift = 0.0 if len(series) == len(names) == sum(map(len, series.values())) else (i + 0.5) / len(series) - 0.5
            axes.errorbar(
                [factor * s.mean for s in scores.values()],
                [names.index(n) + 0.7 * shift for n in scores],
                xerr=[factor * s.ci95 for s in scores.values()],
                **{"fmt": marker, "color": colour, "markersize": 5, "capsize": 3, "label": method},
            )
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_title(title, loc="left", fontsize=10)
        axes.grid(axis="x", alpha=0.25)
    axes.set_xlabel(name + unit.replace(" %", " (%)"))


def _scores(rows: Sequence[Row]) -> str:
    panels = {f"{s}-shot": {r.method: {r.method: r.shots[s]} for r in rows if s in r.shots} for s in _shots(rows)}
    height = 0.8 + sum(0.5 + 0.27 * len(series) for series in panels.values())
    note = f"Points are the mean {_metric(rows)[0]} on unseen tasks, bars the 95 % interval; further right is better."
    return _figure("Score of every method with its interval", note, height, lambda figure: _dots(figure, panels, rows))


def _samplers(rows: Sequence[Row]) -> str:
    having = [r for r in rows if r.samplers]
    if not having:
        return ""
    pairs = [(r, name) for r in having for name in dict.fromkeys(n for scores in r.samplers.values() for n in scores)]
    body = []
    for row, name in pairs:
        scores = [row.samplers.get(shot, {}).get(name) for shot in _shots(rows)]
        body.append([row.method, name, *(_show(s, rows) for s in scores), _mse(scores)])
    panels = {f"{s}-shot": {r.method: r.samplers[s] for r in having if s in r.samplers} for s in _shots(having)}
    height = 1.3 + len(panels) * (0.5 + 0.17 * len(pairs))

    def draw(figure: "Figure") -> None:
        _dots(figure, panels, rows)
        _legend(figure)

    note = "The same trained generators, run with other samplers; the number in a sampler's name is its number of steps."
    plot = _figure("Score of every sampler for every diffusion method", note, height, draw)
    return _html_table(["method", "sampler", *_headings(rows)], body) + plot


def _curves(rows: Sequence[Row]) -> str:
    chains = [r for r in rows if r.curve]
    if not chains:
        return ""

    def draw(figure: "Figure") -> None:
        for axes, key, label in zip(figure.subplots(2, sharex=True), ("mse", "score"), ("MSE", _metric(rows)[0]), strict=True):
            for row in chains:
                kept = [(p["t"], p[key]) for p in row.curve if p[key] is not None]
                colour, marker = _look(row.method)
                axes.plot(
                    *zip(*kept, strict=True), color=colour, marker=marker, markersize=3.5, label=row.method
                ) if kept else None
            axes.set_ylabel(f"{label}{' (fraction)' if label == 'accuracy' else ''}")
            axes.grid(alpha=0.25)
        axes.set_xlabel("denoising step t (0 is the noise)")
        _legend(figure)

    note = "Error to the stored weights and score of the weights after every denoising step, mean over seeds."
    return _figure("Squared error and score against the denoising step", note, 4.6, draw)


def _losses(rows: Sequence[Row]) -> str:
    trained = [r for r in rows if any(r.losses)]
    if not trained:
        return ""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        for row in trained:
            for seed in filter(None, row.losses):
                values = [math.nan if v is None else v for _, v in seed]
                axes.plot([s for s, _ in seed], values, color=_look(row.method)[0], linewidth=1, alpha=0.8, label=row.method)
        axes.set(yscale="log", xlabel="training step", ylabel="training loss")
        axes.grid(alpha=0.25)
        _legend(figure)

    note = "One line per seed. The methods minimise different losses, so compare whether lines still fall, not their heights."
    return _figure("Training loss against training step", note, 3.2, draw)


def _latency(rows: Sequence[Row]) -> str:
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
        axes.set(xscale="log" if wide else "linear", xlabel="ms for one task", ylim=(len(rows) - 0.4, -0.6))
        axes.grid(axis="x", alpha=0.25)
        _legend(figure)

    how = "as points on a logarithmic axis (parts of 0 ms have none)" if wide else "as stacked bars"
    note = f"Time from a support set to a network in use, in its three parts, {how}; the total stands below each name."
    return _figure("Latency of every method in its three parts", note, 1.2 + 0.42 * len(rows), draw)


def _landscape(folder: Path) -> str:
    path = folder / "landscape.json"
    if not path.exists():
        return ""
    data = read_json(path)
    _check(data, LANDSCAPE, path)
    x, y, loss = data["x"], data["y"], data["loss"]
    if min(len(x), len(y)) < 2 or len(loss) != len(y) or any(len(line) != len(x) for line in loss):
        raise _bad(path, f"loss is not {len(y)} rows (y) of {len(x)} (x) numbers, two or more of each")

    def draw(figure: "Figure") -> None:
        import numpy as np
        from matplotlib.colors import LogNorm

        axes = figure.subplots()
        high = max(max(map(max, loss)), 1e-12)
        low = min(max(min(map(min, loss)), 1e-6 * high), high / 1.01)  # a loss of zero has no place on a log scale
        levels = np.geomspace(low, high, 13)
        # The scale ends above the highest level: dark grey at most, so that lines and labels stay readable on it.
        filled = axes.contourf(x, y, np.clip(loss, low, high), levels, cmap="Greys", norm=LogNorm(low, high**2 / low))
        bar = figure.colorbar(filled, ax=axes, label="loss of the task", ticks=levels[::3], format="%.2g")
        bar.ax.minorticks_off()
        for method, chain in data["chains"].items():
            colour, marker = _look(method)
            axes.plot(*zip(*chain, strict=True), color=colour, marker=marker, markersize=3, linewidth=1.5, label=method)
            axes.plot(*chain[0], "o", markersize=9, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.5)
            axes.plot(*chain[-1], "*", markersize=13, color=colour, markeredgecolor="white")
        for i, (name, point) in enumerate(data["points"].items()):
            symbol = re.fullmatch(r"theta_([0-9A-Za-z]+)", name)
            axes.plot(*point, "D", color="black", markersize=4, markeredgecolor="white")
            axes.annotate(
                rf"$\theta_{{{symbol[1]}}}$" if symbol else name,
                point,
                **{
                    "xytext": (7, 7 if i % 2 else -13),
                    "textcoords": "offset points",
                    "color": "black",
                    "parse_math": bool(symbol),
                },
                bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "alpha": 0.75, "edgecolor": "none"},
            )
        _legend(figure)

    note = (
        "Loss of one task on a plane through weight space (logarithmic levels, lighter is lower). A line is a chain of generated "
        "weights from its start (ring) to its end (star); diamonds are the weights that gradient training passed through."
    )
    return _figure("Loss landscape of a task with the chains of every method", note, 4.6, draw)


def _memory(data: Mapping[str, Sequence[float]]) -> str:
    """Do the distances look as if the generator had memorised? Said from the medians alone."""
    made, real, noised = (median(data[key]) for key in ("generated", "targets", "noised"))
    distances = f"{made:.3g} for generated weights, {real:.3g} for held-out real ones and {noised:.3g} for noised copies"
    if made < real / 2 and made <= 2 * noised:
        verdict = "generated weights lie about as near to a stored target as its noised copies: this looks like memorising"
    elif made < real / 2:
        verdict = "generated weights lie nearer than real ones but not as near as copies: this leaves open what was memorised"
    else:
        verdict = "generated weights are not much nearer to a stored target than real ones are: no sign of memorising"
    scale = median(data["scale_generated"]) / max(median(data["scale_real"]), 1e-12)
    return (
        f"Median distance to the nearest stored target: {distances}; {verdict}. Generated norms are {scale:.2f} times the real."
    )


def _novelty(folder: Path) -> str:
    path = folder / "novelty.json"
    if not path.exists():
        return ""
    data = read_json(path)
    _check(data, NOVELTY, path)
    for key in NOVELTY:
        if not data[key]:
            raise _bad(path, f"{key} is empty")

    def draw(figure: "Figure") -> None:
        import numpy as np

        distances = {"generated": "generated", "targets": "real, held out", "noised": "noised copies"}
        norms = {"scale_generated": "generated", "scale_real": "real, held out"}
        looks = {"generated": COLOURS[0], "real, held out": COLOURS[1], "noised copies": COLOURS[2]}
        labels = ("distance to nearest stored target", "norm of the weights")
        for axes, names, label in zip(figure.subplots(2), (distances, norms), labels, strict=True):
            edges = np.histogram_bin_edges(np.concatenate([data[key] for key in names]), 40)
            for key, name in names.items():
                weights = np.full(len(data[key]), 1 / len(data[key]))
                axes.hist(data[key], edges, weights=weights, alpha=0.5, color=looks[name], label=name)
            axes.set(xlabel=label, ylabel="share")
        _legend(figure)

    return _figure("Histograms of distances to the nearest stored target, and of norms", _memory(data), 4.8, draw)


def _provenance(rows: Sequence[Row]) -> str:
    found = [p for row in rows for p in row.provenance]
    seen = {key: sorted({str(p.get(key, "–")) for p in found}) for key in dict.fromkeys(key for p in found for key in p)}
    mixed = [key for key, values in seen.items() if len(values) > 1 and key != "date"]
    warning = (
        f"<p>The results differ in: {html.escape(', '.join(mixed))}. Compare times and scores with care.</p>" if mixed else ""
    )
    body = [[key, "; ".join(values)] for key, values in seen.items()]
    seeds = [[f"seeds of {row.method}", ", ".join(map(str, row.seeds))] for row in rows]
    return warning + _html_table(["what", "value"], body + seeds, "text")


def write_report(folder: Path) -> Path:
    """Write `table.json`, `table.md` and `report.html` into the run folder; returns the path of the page.

    Raises:
        McdiError: see `rows`; also for a `recipe.json`, `novelty.json` or `landscape.json` that is corrupt or incomplete.
    """
    found = rows(folder)
    recipe: dict[str, Any] = read_json(folder / "recipe.json") if (folder / "recipe.json").exists() else {}
    _check(recipe, {"name": str} if recipe else {}, folder / "recipe.json")
    text = html.escape(json.dumps(recipe, indent=2))
    sections = {
        "Results": _html_table(*_cells(found)) + f'<p class="note">{html.escape(RULE)}</p>',
        _metric(found)[0].capitalize(): _scores(found),
        "Samplers": _samplers(found),
        "Along the chain": _curves(found),
        "Training": _losses(found),
        "Latency": _latency(found),
        "Loss landscape": _landscape(folder),
        "Novelty": _novelty(folder),
        "Provenance": _provenance(found),
        "Recipe": f"<details><summary>Resolved configuration</summary><pre>{text}</pre></details>" if recipe else "",
    }
    title = html.escape(f"{recipe.get('name', folder.resolve().name)}: weights generated for {found[0].family}")
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title><style>{CSS}</style>'
    )
    body = "\n".join(f"<section><h2>{name}</h2>\n{content}</section>" for name, content in sections.items() if content)
    page = (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><h1>{title}</h1>\n<p>{html.escape(_summary(found))}</p>\n'
    )
    write_json(folder / "table.json", {"rule": RULE, "rows": [asdict(row) for row in found]})
    write_bytes(folder / "table.md", markdown(found).encode())
    write_bytes(folder / "report.html", f"{page}{body}\n</body></html>\n".encode())
    return folder / "report.html"
