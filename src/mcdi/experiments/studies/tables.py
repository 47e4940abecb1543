"""Tables of studies: the rows of many seeds as one table, in CSV for a program and in Markdown for a reader."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch

from mcdi.experiments.report.summary import metric
from mcdi.experiments.report.table import RULE
from mcdi.experiments.statistics import Estimate, interval, over_seeds, paired
from mcdi.experiments.studies.variants import Measured

DIFFERENCE = (
    "The difference is paired by task (and by seed where both methods have it): its interval is about what one method gains on "
    "the same tasks, and is narrower than the intervals of the two methods."
)


@dataclass(frozen=True)
class Line:
    """One row of a study over its seeds: the score, the difference to the row it is compared with, and mean and standard
    deviation of every other figure."""

    factors: dict[str, Any]
    seeds: int
    score: Estimate | None
    difference: Estimate | None
    figures: dict[str, tuple[float, float]]


def lines(measured: Sequence[tuple[int, list[Measured]]], against: tuple[str, Any] | None) -> list[Line]:
    """The rows of every seed as lines, seeds of the same factors together.

    Args:
        measured: (seed, rows).
        against: (factor, value) of the lines that others are compared with.
    """
    groups: dict[tuple[tuple[str, Any], ...], dict[int, Measured]] = {}
    for seed, rows in measured:
        for row in rows:
            groups.setdefault(tuple(row.factors.items()), {})[seed] = row
    out = []
    for key, seeds in groups.items():
        rows = list(seeds.values())
        rival = None
        if against is not None and dict(key).get(against[0]) != against[1]:
            rival = groups.get(tuple((n, against[1] if n == against[0] else v) for n, v in key))
        figures = {n: _spread([r.figures[n] for r in rows]) for n in rows[0].figures}
        out.append(Line(dict(key), len(rows), _score(rows), _difference(seeds, rival) if rival else None, figures))
    return out


def _spread(values: Sequence[float]) -> tuple[float, float]:
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def _score(rows: Sequence[Measured]) -> Estimate | None:
    scores = [r.scores for r in rows if r.scores is not None]
    if len(scores) < len(rows):
        return None
    own_tasks = len({r.first for r in rows}) > 1  # every seed has tasks of its own
    within = interval(torch.cat(scores))["ci95"] if own_tasks else fmean(interval(s)["ci95"] for s in scores)
    return over_seeds([float(s.mean()) for s in scores], within)


def _difference(mine: dict[int, Measured], rival: dict[int, Measured]) -> Estimate | None:
    a, b = ({n: (row.scores, row.first) for n, row in side.items() if row.scores is not None} for side in (mine, rival))
    return paired(a, b) if len(a) == len(mine) and len(b) == len(rival) else None


def columns(table: Sequence[Line]) -> tuple[list[str], list[str]]:
    """The names of all factors and of all figures, in order."""
    factors, figures = (dict.fromkeys(n for line in table for n in getattr(line, part)) for part in ("factors", "figures"))
    return list(factors), list(figures)


def as_csv(table: Sequence[Line]) -> str:
    """Every number of the table, unrounded."""
    factors, figures = columns(table)
    triples = [("score", [line.score for line in table]), ("difference", [line.difference for line in table])]
    shown = [(n, values) for n, values in triples if any(values)]
    header = [*factors, "seeds", *(f"{n}_{p}" for n, _ in shown for p in ("mean", "std", "ci95"))]
    header += [f"{n}_{p}" for n in figures for p in ("mean", "std")]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for i, line in enumerate(table):
        row: list[Any] = [*(line.factors.get(n, "") for n in factors), line.seeds]
        row += [v for _, values in shown for v in (values[i] or ("", "", ""))]
        row += [v for n in figures for v in line.figures.get(n, ("", ""))]
        writer.writerow(row)
    return buffer.getvalue()


def as_markdown(table: Sequence[Line], against: tuple[str, Any] | None, family: str) -> str:
    """The table for readers; scores as `metric(family)` shows them, ± the 95 % interval (std over seeds)."""
    factors, figures = columns(table)
    scored, compared = (any(getattr(line, n) for line in table) for n in ("score", "difference"))
    name, factor, digits, unit, _ = metric(family)
    header = [
        *factors,
        *([f"{name}{unit and ' (%)'}"] if scored else []),
        *([f"minus {against[1]}"] if compared and against else []),
        *figures,
    ]
    body = []
    for line in table:
        row = [str(line.factors.get(n, "-")) for n in factors]
        row += [_estimate(line.score, factor, digits)] if scored else []
        row += [_estimate(line.difference, factor, digits, "+")] if compared else []
        row += [_pair(line.figures.get(n), line.seeds) for n in figures]
        body.append(row)
    rule = ["---"] * len(factors) + ["---:"] * (len(header) - len(factors))
    text = ["| " + " | ".join(cells) + " |" for cells in [header, rule, *body]]
    notes = [RULE if scored else "Mean ± standard deviation over seeds.", *([DIFFERENCE] if compared else [])]
    return "\n".join([*text, "", *notes, ""])


def _estimate(value: Estimate | None, factor: float, digits: int, sign: str = "") -> str:
    if value is None:
        return "-"
    mean, std, ci95 = (factor * v for v in value)
    return f"{mean:{sign}.{digits}f} ± {ci95:.{digits}f} ({std:.{digits}f})"


def _pair(value: tuple[float, float] | None, seeds: int) -> str:
    if value is None:
        return "-"
    return f"{value[0]:.3g}" + (f" ± {value[1]:.2g}" if seeds > 1 else "")
