"""Tables of studies: the rows of many seeds as one table, in CSV for a program and in Markdown for a reader."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from mcdi.experiments.evaluate import interval
from mcdi.experiments.report.table import RULE, metric, over_seeds
from mcdi.experiments.studies.variants import Measured

DIFFERENCE = (
    "The difference is paired by task (and by seed where both methods have it): its interval is about what one method gains on "
    "the same tasks, and is narrower than the two intervals beside it."
)


@dataclass(frozen=True)
class Line:
    """One row of a study over its seeds: the score (mean, std over seeds, half-width), the same of the difference to the
    row it is compared with, and mean and std of every other figure."""

    factors: dict[str, Any]
    seeds: int
    score: tuple[float, float, float] | None
    difference: tuple[float, float, float] | None
    figures: dict[str, tuple[float, float]]


def lines(found: Sequence[tuple[int, list[Measured]]], against: tuple[str, Any] | None) -> list[Line]:
    """Rows with the same factors are seeds of one line. against (factor, value): the line that others are compared with."""
    groups: dict[tuple[tuple[str, Any], ...], dict[int, Measured]] = {}
    for seed, rows in found:
        for row in rows:
            groups.setdefault(tuple(row.factors.items()), {})[seed] = row
    out = []
    for key, seeds in groups.items():
        rows = list(seeds.values())
        rival = None
        if against is not None and dict(key).get(against[0]) != against[1]:
            rival = groups.get(tuple((n, against[1] if n == against[0] else v) for n, v in key))
        figures = {n: spread([r.figures[n] for r in rows]) for n in rows[0].figures}
        out.append(Line(dict(key), len(rows), _score(rows), _difference(seeds, rival) if rival else None, figures))
    return out


def spread(values: Sequence[float]) -> tuple[float, float]:
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def _summary(scores: Sequence[Tensor], within: float) -> tuple[float, float, float]:
    return over_seeds([float(s.mean()) for s in scores], within)


def _score(rows: Sequence[Measured]) -> tuple[float, float, float] | None:
    scores = [r.scores for r in rows if r.scores is not None]
    if len(scores) < len(rows):
        return None
    if len({r.first for r in rows}) > 1:  # every seed has tasks of its own
        return _summary(scores, interval(torch.cat(scores))["ci95"])
    return _summary(scores, fmean(interval(s)["ci95"] for s in scores))


def _difference(mine: dict[int, Measured], rival: dict[int, Measured]) -> tuple[float, float, float] | None:
    """Mine minus the rival's, task by task; a method of one seed is compared with every seed of the other."""
    pairs, starts = [], set()
    for seed in sorted(set(mine) | set(rival)):
        a, b = (m.get(seed, next(iter(m.values()))) for m in (mine, rival))
        if a.scores is None or b.scores is None:
            return None
        # What takes long is measured on some of the tasks only.
        start = max(a.first, b.first)
        end = min(a.first + len(a.scores), b.first + len(b.scores))
        pairs.append(a.scores[start - a.first : end - a.first] - b.scores[start - b.first : end - b.first])
        starts.add(start)
    # Where tasks are the same for all seeds, the interval over tasks is that of their mean difference over seeds.
    tasks = torch.cat(pairs) if len(starts) > 1 else torch.stack(pairs).mean(0)
    return _summary(pairs, interval(tasks)["ci95"])


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
        row += [_triple(line.score, factor, digits)] if scored else []
        row += [_triple(line.difference, factor, digits, "+")] if compared else []
        row += [_pair(line.figures.get(n), line.seeds) for n in figures]
        body.append(row)
    rule = ["---"] * len(factors) + ["---:"] * (len(header) - len(factors))
    text = ["| " + " | ".join(cells) + " |" for cells in [header, rule, *body]]
    notes = [RULE if scored else "Mean ± standard deviation over seeds.", *([DIFFERENCE] if compared else [])]
    return "\n".join([*text, "", *notes, ""])


def _triple(value: tuple[float, float, float] | None, factor: float, digits: int, sign: str = "") -> str:
    if value is None:
        return "-"
    mean, std, ci95 = (factor * v for v in value)
    return f"{mean:{sign}.{digits}f} ± {ci95:.{digits}f} ({std:.{digits}f})"


def _pair(value: tuple[float, float] | None, seeds: int) -> str:
    if value is None:
        return "-"
    return f"{value[0]:.3g}" + (f" ± {value[1]:.2g}" if seeds > 1 else "")
