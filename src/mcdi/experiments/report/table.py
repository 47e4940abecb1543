"""The table of a run as text: Markdown, terminal and page print the same cells."""

import csv
import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from mcdi.experiments.report.results import Row, Score, shot_numbers
from mcdi.experiments.report.style import labels_of
from mcdi.experiments.report.summary import at, metric, takeaway

if TYPE_CHECKING:
    from rich.table import Table

RULE = (
    "Mean over seeds of the mean over unseen tasks. The interval is 95 %: sqrt(a² + b²), where b is the mean over seeds of "
    "the half-width over tasks within a seed, and a = t(0.975, n - 1) · std / sqrt(n) over the means of n seeds (0 for one "
    "seed, whose interval then holds the spread over tasks only; t is 12.7 for two seeds, 4.3 for three). The two are added "
    "in this way because all seeds meet the same tasks, so more seeds do not make b smaller."
)
Body = Sequence[Sequence[str]]
WIDTH = 80  # of a terminal


def show(score: Score | None, rows: Sequence[Row]) -> str:
    _, factor, digits, _, _ = metric(rows[0].family)
    return f"{factor * score.mean:.{digits}f} ± {factor * score.ci95:.{digits}f}" if score else "-"


def mse(scores: Sequence[Score | None]) -> str:
    shown = [f"{s.mse:.3g}" if s and s.mse is not None else "-" for s in scores]
    return " / ".join(shown) if set(shown) != {"-"} else "-"


def score_headings(name: str, unit: str, shots: Sequence[int]) -> list[str]:
    return [f"{name}, {at(shot)}{unit and ' (%)'}" for shot in shots]


def headings(rows: Sequence[Row]) -> list[str]:
    """Column headings for the score at every shot number, and for all their squared errors."""
    (name, _, _, unit, _), shots = metric(rows[0].family), shot_numbers(rows)
    return [*score_headings(name, unit, shots), f"MSE ({' / '.join(map(str, [*shots[:-1], at(shots[-1])]))})"]


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and lines; the first cell of a line is the label of a method."""
    times = ["generate (ms)", "total (ms)", "parameters", "training (s)", "gradient-free"]
    body = []
    for row in rows:
        scores = [row.shots.get(shot) for shot in shot_numbers(rows)]
        cost = [f"{row.latency_ms['generate']:.3g}", f"{row.total_ms:.3g}", f"{row.parameters:,}", f"{row.fit_seconds:.1f}"]
        body.append([row.label, *(show(s, rows) for s in scores), mse(scores), *cost, "yes" if row.gradient_free else "no"])
    return ["method", *headings(rows), *times], body


def markdown(rows: Sequence[Row]) -> str:
    """The table in Markdown, the proposed method bold, with what to take from it and the rule for its intervals below it."""
    header, body = cells(rows)
    shown = [[f"**{first}**" if first in labels_of("proposed") else first, *rest] for first, *rest in body]
    return "\n".join([*markdown_lines(header, shown, left=1), "", takeaway(rows), "", RULE, ""])


def markdown_lines(header: Sequence[str], body: Body, *, left: int) -> list[str]:
    """A table in Markdown, whose first `left` columns are names."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    escaped = ([html.escape(value, quote=False).replace("|", "\\|") for value in line] for line in (header, rule, *body))
    return [f"| {' | '.join(line)} |" for line in escaped]


def csv_text(lines: Sequence[Mapping[str, Any]]) -> str:
    """Lines that have a value, or none, for every key of any."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def rich_table(rows: Sequence[Row]) -> "Table":
    """The table for a terminal: as many columns as fit, the proposed method marked, and below it what to take from it."""
    title, scores = f"{rows[0].family}: {rows[0].tasks} unseen tasks", len(shot_numbers(rows))
    header, body = without(*cells(rows), ("MSE", "total", "training"))
    return terminal_table(title, header, body, takeaway(rows), left=1, needed=1 + scores)


def without(header: Sequence[str], body: Body, columns: tuple[str, ...]) -> tuple[list[str], list[list[str]]]:
    """A table without the columns whose names begin with one of these."""
    kept = [i for i, name in enumerate(header) if not name.startswith(columns)]
    return [header[i] for i in kept], [[line[i] for i in kept] for line in body]


def terminal_table(title: str, header: Sequence[str], body: Body, note: str, *, left: int, needed: int) -> "Table":
    """A table of WIDTH characters: columns after the `needed` first ones only where they fit; `left` columns are names.
    Proposed methods are bold, with a star. Names that are too long go on in the next line."""
    from rich.table import Table
    from rich.text import Text

    titles = [name.replace(", ", ",\n").replace(" (", "\n(").replace("gradient-", "gradient\n") for name in header]
    titles = [name.replace("parameters", "params") for name in titles]
    own = [line[0] in labels_of("proposed") for line in body]
    body = [[f"{line[0]} *" if mark else line[0], *line[1:]] for mark, line in zip(own, body, strict=True)]
    columns, used = [], 0
    for i, name in enumerate(titles):
        width = max(map(len, [*name.split("\n"), *(line[i] for line in body)])) + 2
        if i < needed or used + width <= WIDTH + 2:
            columns.append(i)
            used += width
    notes = Text("\n".join([*["* proposed method"][: any(own)], note]))
    table = Table(title=Text(title), caption=notes, title_justify="left", caption_justify="left", box=None, pad_edge=False)
    for i in columns:
        justify: Literal["left", "right"] = "left" if i < left else "right"
        table.add_column(Text(titles[i]), justify=justify, vertical="bottom", overflow="fold", no_wrap=i >= left)
    for mark, line in zip(own, body, strict=True):
        table.add_row(*(Text(line[i]) for i in columns), style="bold" if mark else "")  # Text: names are no markup
    return table
