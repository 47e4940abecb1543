"""Sentences about a run: they are computed from the numbers and say no more than these."""

import math
from collections.abc import Sequence

from mcdi.experiments.report.results import Row, shot_numbers
from mcdi.experiments.report.style import labels_of
from mcdi.experiments.statistics import paired

NOT_ACCURACY = {"sines"}  # families whose score is not a fraction of right answers


def metric(family: str) -> tuple[str, float, int, str, str]:
    """Name, factor, decimals, unit and word for a difference of this family's score."""
    return ("score", 1.0, 3, "", "") if family in NOT_ACCURACY else ("accuracy", 100.0, 2, " %", " points")


def at(shot: int) -> str:
    return f"{shot} shot" if shot == 1 else f"{shot} shots"


def summary(rows: Sequence[Row]) -> str:
    """Which method has the highest score at each shot number, and whether this run separates it from the next ones."""
    name, factor, digits, unit, _ = metric(rows[0].family)
    text = [f"{len(rows)} method{'s'[: len(rows) > 1]} on {rows[0].tasks} unseen tasks of the family {rows[0].family}."]
    for shot in shot_numbers(rows):
        ranked = sorted((r for r in rows if shot in r.shots), key=lambda r: -r.shots[shot].mean)
        best, score = ranked[0].label, ranked[0].shots[shot]
        near = [r.label for r in ranked[1:] if abs(score.mean - r.shots[shot].mean) <= score.ci95 + r.shots[shot].ci95]
        reach = f"its interval overlaps that of {', '.join(near)}" if near else "no other method's interval overlaps its own"
        value = f"{factor * score.mean:.{digits}f} ± {factor * score.ci95:.{digits}f}{unit}"
        highest = f"At {at(shot)}, {best} has the highest {name}, {value}"
        text.append(f"{highest}; {reach}." if len(ranked) > 1 else f"{highest}, as the only method measured.")
    text.append("Overlapping intervals mean that this run does not separate two methods, not that they are equal.")
    return " ".join(text)


def takeaway(rows: Sequence[Row]) -> str:
    """How each proposed method compares with what a user would take instead; without either, which method is best."""
    proposed, baselines = ([row for row in rows if row.label in labels_of(trait)] for trait in ("proposed", "baseline"))
    if proposed and baselines:
        return " ".join(_standing(row, baselines) for row in proposed)
    best = {s: max((r for r in rows if s in r.shots), key=lambda r: r.shots[s].mean).label for s in shot_numbers(rows)}
    where = {label: _shots([s for s, b in best.items() if b == label]) for label in best.values()}
    name = metric(rows[0].family)[0]
    return "; ".join(f"{label} has the highest {name} at {shots}" for label, shots in where.items()) + "."


def _standing(row: Row, baselines: Sequence[Row]) -> str:
    both = [(b, [s for s in row.shots if s in b.shots]) for b in baselines]
    by_task = all(s in row.scores and s in b.scores for b, shots in both for s in shots)
    clauses = [_clause(row, b, shots, by_task) for b, shots in both if shots]
    return f"{row.label} is {'; '.join(clauses)} (95 %, {'' if by_task else 'not '}paired by task)."


def _clause(row: Row, baseline: Row, shots: Sequence[int], by_task: bool) -> str:
    """ "0.74 ± 0.20 points above Adam at 1 shot and level with it at 5 shots"."""
    _, factor, digits, _, points = metric(row.family)
    level, parts = [], []
    for shot in shots:
        if by_task:
            a, b = ({seed: (scores, 0) for seed, scores in r.scores[shot].items()} for r in (row, baseline))
            difference, _, half = paired(a, b)
        else:
            own, other = row.shots[shot], baseline.shots[shot]
            difference, half = own.mean - other.mean, math.hypot(own.ci95, other.ci95)
        if abs(difference) <= half:
            level.append(shot)
            continue
        side = "above" if difference > 0 else "below"
        parts.append((f"{factor * abs(difference):.{digits}f} ± {factor * half:.{digits}f}{points} {side}", at(shot)))
    if level:
        parts.insert(0 if level[0] == shots[0] else len(parts), ("level with", _shots(level)))
    return " and ".join(f"{what} {baseline.label if not i else 'it'} at {where}" for i, (what, where) in enumerate(parts))


def _shots(shots: Sequence[int]) -> str:
    """ "1 and 5 shots"."""
    return " and ".join([*map(str, shots[:-1]), at(shots[-1])])
