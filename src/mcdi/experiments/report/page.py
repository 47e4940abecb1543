"""The page of a run: its sections in order."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mcdi.experiments.report.plots import curves, landscape, latency, losses, novelty, samplers, scores
from mcdi.experiments.report.render import html_page, html_table, render
from mcdi.experiments.report.results import RecipeFile, Row, read_checked, rows
from mcdi.experiments.report.style import labels_of, plot_style
from mcdi.experiments.report.summary import metric, summary, takeaway
from mcdi.experiments.report.table import RULE, cells, markdown
from mcdi.utils.files import only_writer, write_bytes, write_json


def _provenance(rows: Sequence[Row]) -> str:
    every = [p for row in rows for p in row.provenance]
    keys = dict.fromkeys(key for p in every for key in p)
    values_of = {key: sorted({"unknown" if p.get(key) is None else str(p[key]) for p in every}) for key in keys}
    mixed = sorted(key for key, values in values_of.items() if len(values) > 1 and key != "date")
    warning = f"The results differ in: {', '.join(mixed)}. Compare times and scores with care." if mixed else ""
    body = [[key, "; ".join(values)] for key, values in values_of.items()]
    seeds = [[f"seeds of {row.label}", ", ".join(map(str, row.seeds))] for row in rows]
    return html_table(["what", "value"], body + seeds, "text", warning=warning)


def _losses(rows: Sequence[Row]) -> str:
    seeds = [(row, seed) for row in rows for seed in row.losses if seed]
    curves = [(row, [(step, math.nan if value is None else value) for step, value in seed]) for row, seed in seeds]
    lines = [(row.label, plot_style(row.method)[0], curve) for row, curve in curves]
    return losses({"": lines}) if lines else ""


def write_report(folder: Path) -> Path:
    """Write table.json, table.md and the page, which is returned. Raises McdiError for corrupt or incomplete files."""
    table = rows(folder)
    path = folder / "recipe.json"
    recipe: dict[str, Any] = read_checked(path, RecipeFile) if path.exists() else {}
    sections = {
        "Results": html_table(*cells(table), note=RULE, marked=labels_of("proposed")),
        metric(table[0].family)[0].capitalize(): scores(table),
        "Samplers": samplers(table),
        "Along the chain": curves(table),
        "Training": _losses(table),
        "Latency": latency(table),
        "Loss landscape": landscape(folder),
        "Novelty": novelty(folder),
        "Provenance": _provenance(table),
        "Recipe": render("details", summary="Resolved configuration", text=json.dumps(recipe, indent=2)) if recipe else "",
    }
    title = f"{recipe.get('name', folder.resolve().name)}: weights generated for {table[0].family}"
    # Scores of single tasks are in results/.
    lines = [{n: v for n, v in asdict(replace(row, scores={})).items() if n != "scores"} for row in table]
    with only_writer(folder):
        write_json(folder / "table.json", {"rule": RULE, "rows": lines})
        write_bytes(folder / "table.md", markdown(table).encode())
        write_bytes(folder / "report.html", html_page(title, [takeaway(table), summary(table)], sections))
    return folder / "report.html"
