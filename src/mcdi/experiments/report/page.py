"""What does the page say around its plots, and in which order?"""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mcdi.experiments.report.plots import curves, html_table, landscape, latency, losses, novelty, samplers, scores
from mcdi.experiments.report.table import RULE, Row, Score, at, cells, check, markdown, metric, rows, shot_numbers, show
from mcdi.utils.files import read_json, write_bytes, write_json

RIVALS = {"adam": "Adam on the support set", "prototypes": "nearest prototype", "hypernetwork": "one-step regression"}
CSS = """:root{color-scheme:light dark;--line:#8886;--soft:#8881}
body{font:1rem/1.55 system-ui,sans-serif;max-width:62rem;margin:0 auto;padding:1rem;background:#fff;color:#1b1b1b}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin:2.2rem 0 .6rem;border-bottom:1px solid var(--line)}
p,figcaption,summary{max-width:44rem}figure{margin:0 0 1rem;max-width:36rem}svg{width:100%;height:auto;display:block}
figcaption,.note{font-size:.9rem;opacity:.85}.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child,.runs :is(td,th):nth-child(2){text-align:left}
thead th{vertical-align:bottom;white-space:normal;min-width:4.5rem}
.text td,.text th{text-align:left;white-space:normal;overflow-wrap:anywhere}
pre{overflow-x:auto;background:var(--soft);padding:.8rem}@media(prefers-color-scheme:dark){body{background:#15171a;color:#e6e6e6}}"""


def apart(a: Score, b: Score) -> bool:
    return abs(a.mean - b.mean) > a.ci95 + b.ci95


def summary(rows: Sequence[Row]) -> str:
    """One paragraph: who is best at each shot number, and how Mc-Di stands to the methods that people would use instead."""
    name, factor, digits, unit, points = metric(rows[0].family)
    text = [f"{len(rows)} method{'s'[: len(rows) > 1]} on {rows[0].tasks} unseen tasks of the family {rows[0].family}."]
    for shot in shot_numbers(rows):
        ranked = sorted((r for r in rows if shot in r.shots), key=lambda r: -r.shots[shot].mean)
        best, near = ranked[0], [r.method for r in ranked[1:] if not apart(ranked[0].shots[shot], r.shots[shot])]
        reach = f"its interval overlaps that of {', '.join(near)}" if near else "no other method's interval overlaps its own"
        what = f"At {at(shot)}, {best.method} has the highest {name}, {show(best.shots[shot], rows)}{unit}"
        text.append(f"{what}; {reach}." if len(ranked) > 1 else f"{what}, as the only method measured.")
        stands = []
        known = {r.method: r.shots[shot] for r in ranked}
        for rival, meaning in RIVALS.items():
            if rival in known and "mc-di" in known:
                a, b = known["mc-di"], known[rival]
                side, reach = "above" if a.mean >= b.mean else "below", "do not overlap" if apart(a, b) else "overlap"
                gap = f"{factor * abs(a.mean - b.mean):.{digits}f}{points}"
                stands.append(f"{gap} {side} {meaning} ({rival}; intervals {reach})")
        text += [f"There mc-di is {', '.join(stands)}."] if stands else []
    text.append("Overlapping intervals mean that this run does not separate two methods, not that they are equal.")
    return " ".join(text)


def provenance(rows: Sequence[Row]) -> str:
    found = [p for row in rows for p in row.provenance]
    seen = {
        key: sorted({"unknown" if p.get(key) is None else str(p[key]) for p in found})
        for key in dict.fromkeys(key for p in found for key in p)
    }
    mixed = sorted(key for key, values in seen.items() if len(values) > 1 and key != "date")
    warning = (
        f"<p>The results differ in: {html.escape(', '.join(mixed))}. Compare times and scores with care.</p>" if mixed else ""
    )
    body = [[key, "; ".join(values)] for key, values in seen.items()]
    seeds = [[f"seeds of {row.method}", ", ".join(map(str, row.seeds))] for row in rows]
    return warning + html_table(["what", "value"], body + seeds, "text")


def html_page(title: str, about: str, sections: Mapping[str, str]) -> bytes:
    """A page that needs nothing from outside: a paragraph, and the sections (HTML) that have a content."""
    title = html.escape(title)
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title><style>{CSS}</style>'
    )
    body = "\n".join(f"<section><h2>{name}</h2>\n{content}</section>" for name, content in sections.items() if content)
    page = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><h1>{title}</h1>\n<p>{html.escape(about)}</p>\n'
    return f"{page}{body}\n</body></html>\n".encode()


def write_report(folder: Path) -> Path:
    """Write `table.json`, `table.md` and `report.html` into the run folder; returns the path of the page.

    Raises:
        McdiError: see `rows`; also for a `recipe.json`, `novelty.json` or `landscape.json` that is corrupt or incomplete.
    """
    found = rows(folder)
    recipe: dict[str, Any] = read_json(folder / "recipe.json") if (folder / "recipe.json").exists() else {}
    check(recipe, {"name": str} if recipe else {}, folder / "recipe.json")
    text = html.escape(json.dumps(recipe, indent=2))
    sections = {
        "Results": html_table(*cells(found)) + f'<p class="note">{html.escape(RULE)}</p>',
        metric(found[0].family)[0].capitalize(): scores(found),
        "Samplers": samplers(found),
        "Along the chain": curves(found),
        "Training": losses(found),
        "Latency": latency(found),
        "Loss landscape": landscape(folder),
        "Novelty": novelty(folder),
        "Provenance": provenance(found),
        "Recipe": f"<details><summary>Resolved configuration</summary><pre>{text}</pre></details>" if recipe else "",
    }
    title = f"{recipe.get('name', folder.resolve().name)}: weights generated for {found[0].family}"
    write_json(folder / "table.json", {"rule": RULE, "rows": [asdict(row) for row in found]})
    write_bytes(folder / "table.md", markdown(found).encode())
    write_bytes(folder / "report.html", html_page(title, summary(found), sections))
    return folder / "report.html"
