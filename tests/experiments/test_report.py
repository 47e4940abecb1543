"""Reports: aggregation, order, sentences, and errors that name a file."""

import copy
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mcdi.errors import McdiError
from mcdi.experiments.report.page import write_report
from mcdi.experiments.report.results import rows
from mcdi.experiments.report.summary import takeaway
from mcdi.experiments.report.table import markdown, rich_table

SECTIONS = ["Results", "Accuracy", "Samplers", "Along the chain", "Training", "Latency", "Loss landscape"]
SECTIONS += ["Novelty", "Provenance", "Recipe"]


def result(method: str = "mc-di", seed: int = 0, mean: float = 0.9, **changes: Any) -> dict[str, Any]:
    score = {"mean": mean, "ci95": 0.01, "mse": 0.5 + seed}
    samplers = {"ddpm": score, "deterministic, 1 step": {**score, "mean": mean - 0.1}}
    base: dict[str, Any] = {
        "method": method,
        "seed": seed,
        "gradient_free": True,
        "parameters": 1234567,
        "fit_seconds": 10.0 + seed,
    }
    base |= {"family": "glyphs", "tasks": 600, "latency_ms": {"embed": 3.0, "generate": 2.0 + seed, "apply": 0.5}}
    base["shots"] = {"5": {**score, "mean": mean + 0.05}, "1": {**score, "samplers": samplers}}
    base["curve"] = [{"t": t, "score": 0.2 + 0.1 * t + 0.1 * seed, "mse": 2.0 - 0.2 * t} for t in range(4)]
    base["losses"] = [[100, 0.8], [200, 0.6]]
    base["provenance"] = {"version": "0.1.0", "commit": None, "torch": "2.13.0", "hardware": "2 x CPU", "date": "2026-11-23"}
    return base | changes


def plain(method: str, mean: float, **changes: Any) -> dict[str, Any]:
    """A baseline without a chain, a squared error or training."""
    shots = {"1": {"mean": mean, "ci95": 0.01, "mse": None}, "5": {"mean": mean, "ci95": 0.01, "mse": None}}
    return result(method, shots=shots, curve=[], losses=[]) | changes


def put(folder: Path, *results: dict[str, Any]) -> Path:
    (folder / "results").mkdir(parents=True, exist_ok=True)
    for r in results:
        (folder / "results" / f"{r['method']}-{r['seed']}.json").write_text(json.dumps(r))
    return folder


def page(folder: Path) -> str:
    return write_report(folder).read_text()


LANDSCAPE: dict[str, Any] = {
    "x": [0.0, 1.0, 2.0],
    "y": [0.0, 1.0],
    "loss": [[1.0, 0.5, 0.0], [2.0, 1.0, 0.1]],
    "chains": {"mc-di": [[0, 0], [1, 0.5], [2, 1]]},
    "points": {"theta_0": [0, 0], "theta_M": [2, 0], "$\\odd": [1, 1]},
    "method_t": [0, 1, 2],
}
NOVELTY = {"generated": [9.0, 10.0, 11.0], "targets": [10.0, 11.0, 12.0], "noised": [1.0, 1.1, 1.2]}
NOVELTY |= {"scale_generated": [5.0, 6.0], "scale_real": [10.0, 12.0]}


@pytest.fixture
def full(tmp_path: Path) -> Path:
    put(tmp_path, result(), result(seed=1, mean=0.92), plain("adam", 0.95, gradient_free=False), plain("prototypes", 0.7))
    for name, data in {"recipe": {"name": "small", "steps": 20}, "landscape": LANDSCAPE, "novelty": NOVELTY}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    return tmp_path


def test_aggregation_by_hand(tmp_path: Path) -> None:
    means = [0.90, 0.92, 0.97]
    (row,) = rows(put(tmp_path, *(result(seed=s, mean=m) for s, m in enumerate(means))))
    score = row.shots[1]
    # mean 0.93; deviations -0.03, -0.01, 0.04; variance (9 + 1 + 16) 1e-4 / 2 = 13e-4; t(0.975, 2) = 4.303
    assert score.mean == pytest.approx(0.93)
    assert score.std == pytest.approx(math.sqrt(13e-4))
    assert score.ci95 == pytest.approx(math.sqrt((4.302653 * math.sqrt(13e-4 / 3)) ** 2 + 0.01**2))
    assert score.mse == pytest.approx(1.5)  # 0.5, 1.5, 2.5
    assert row.samplers[1]["deterministic, 1 step"].mean == pytest.approx(0.83)
    assert set(row.samplers) == {1}
    assert (row.seeds, row.fit_seconds, row.latency_ms["generate"], row.total_ms) == ((0, 1, 2), 11.0, 3.0, 6.5)
    assert row.curve[2] == pytest.approx({"t": 2, "score": 0.5, "mse": 1.6})  # 0.4, 0.5, 0.6
    assert len(row.losses) == 3


def test_one_seed_keeps_the_interval_over_tasks(tmp_path: Path) -> None:
    (row,) = rows(put(tmp_path, result()))
    assert (row.shots[1].std, row.shots[1].ci95) == (0.0, 0.01)


@pytest.mark.parametrize(("n", "t"), [(2, 12.706205), (11, 2.228139), (40, 2.022691)])
def test_t_quantiles(tmp_path: Path, n: int, t: float) -> None:
    (row,) = rows(put(tmp_path, *(result(seed=s, mean=0.9 + 0.01 * (s % 2)) for s in range(n))))
    assert row.shots[1].ci95 == pytest.approx(math.hypot(t * row.shots[1].std / math.sqrt(n), 0.01))


def test_an_mse_that_one_seed_lacks_is_not_averaged(tmp_path: Path) -> None:
    other = result(seed=1)
    other["shots"]["1"]["mse"] = math.inf
    other["shots"]["5"]["mse"] = None
    (row,) = rows(put(tmp_path, result(), other))
    assert row.shots[1].mse is None and row.shots[5].mse is None


def test_order_is_by_the_lowest_shot_number_then_name(tmp_path: Path) -> None:
    only_five = plain("ocd", 0.99, shots={"5": {"mean": 0.99, "ci95": 0.01, "mse": None}})
    table = rows(put(tmp_path, plain("reptile", 0.8), only_five, plain("adam", 0.8), plain("mc-di", 0.9)))
    assert [row.method for row in table] == ["mc-di", "adam", "reptile", "ocd"]
    assert list(rows(put(tmp_path, result("tw-di", shots={"10": SCORE, "5": SCORE})))[-1].shots) == [5, 10]
    assert write_report(tmp_path).exists()  # methods of different shot numbers share a page


SCORE = {"mean": 0.5, "ci95": 0.01, "mse": None}


def test_tables(full: Path) -> None:
    write_report(full)
    text = (full / "table.md").read_text()
    assert text == markdown(rows(full))
    lines = text.splitlines()
    assert lines[0].startswith("| method | accuracy, 1 shot (%) | accuracy, 5 shots (%) | MSE (1 / 5 shots) | generate (ms) |")
    assert lines[2] == "| Adam | 95.00 ± 1.00 | 95.00 ± 1.00 | - | 2 | 5.5 | 1,234,567 | 10.0 | no |"
    # std 0.01414, t 12.706: half-width 12.7062 * 0.01 = 0.127062, with 0.01 in quadrature 0.12745
    assert lines[3] == "| **Mc-Di** | 91.00 ± 12.75 | 96.00 ± 12.75 | 1 / 1 | 2.5 | 6 | 1,234,567 | 10.5 | yes |"
    assert "95 %" in lines[-1] and lines[-3].startswith("Mc-Di is level with Adam at 1 and 5 shots; 21.00 ±")
    data = json.loads((full / "table.json").read_text())
    assert [row["method"] for row in data["rows"]] == ["adam", "mc-di", "prototypes"]
    assert data["rows"][1]["shots"]["1"]["mean"] == pytest.approx(0.91)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(rich_table(rows(full)))
    assert "91.00 ± 12.75" in console.export_text()


def test_every_section_in_order_and_nothing_from_outside(full: Path) -> None:
    text = page(full)
    assert re.findall(r"<h2>(.*?)</h2>", text) == SECTIONS
    assert text.count("<svg") == text.count('role="img" aria-label="') == text.count("<figcaption>") == 7
    assert set(re.findall(r"(?:src|href)\s*=\s*(..)", text)) == {'"#'}  # only to parts of the page itself
    assert not re.search(r"url\((?!#)|@import|<script|<link|<img|<iframe", text)
    assert "<details><summary>" in text and "&#34;steps&#34;: 20" in text
    assert "seeds of Mc-Di</td><td>0, 1<" in text
    assert text == page(full)  # the same numbers give the same page


def test_summary_says_what_the_numbers_say(full: Path) -> None:
    put(full, plain("hypernetwork", 0.905))
    text = page(full)
    assert (
        "4 methods on 600 unseen tasks of the family glyphs. At 1 shot, Adam has the highest accuracy, 95.00 ± 1.00 %;" in text
    )
    assert "its interval overlaps that of Mc-Di, one-step regression." not in text  # 95 - 1 > 90.5 + 1
    assert "its interval overlaps that of Mc-Di." in text


def by_task(method: str, gains: dict[str, float], **changes: Any) -> dict[str, Any]:
    """Scores of tasks that vary by far more than methods differ: {shots: what every task has more}."""
    shots = {}
    for shot, gain in gains.items():
        scores = [0.3 + 0.4 * (n % 2) + gain + 0.01 * (n % 3 == 0) * (gain != 0) for n in range(600)]
        shots[shot] = {"mean": sum(scores) / 600, "ci95": 0.016, "mse": None, "scores": scores}
    return plain(method, 0.0, shots=shots, **changes)


def test_what_to_take_from_a_table_is_paired_by_task(tmp_path: Path) -> None:
    table = rows(put(tmp_path, by_task("mc-di", {"1": 0.02, "5": 0.0}), by_task("adam", {"1": 0.0, "5": 0.0})))
    expected = "Mc-Di is 2.33 ± 0.04 points above Adam at 1 shot and level with it at 5 shots (95 %, paired by task)."
    assert takeaway(table) == expected
    text = page(tmp_path)
    assert f"<p>{expected}</p>" in text and '<tr class="proposed"><td>Mc-Di</td>' in text
    assert "scores" not in json.loads((tmp_path / "table.json").read_text())["rows"][0]
    worse = rows(put(tmp_path, by_task("prototypes", {"1": 0.05, "5": 0.0})))
    assert takeaway(worse).startswith(
        "Mc-Di is 3.00 ± 0.00 points below prototypes at 1 shot and level with it at 5 shots; 2.33"
    )


def test_what_to_take_from_results_without_single_tasks_or_without_rivals(tmp_path: Path) -> None:
    table = rows(put(tmp_path, plain("mc-di", 0.9), plain("adam", 0.8)))
    expected = "Mc-Di is 10.00 ± 1.41 points above Adam at 1 shot and 10.00 ± 1.41 points above it at 5 shots"
    assert takeaway(table) == f"{expected} (95 %, not paired by task)."
    assert takeaway(table[1:]) == "Adam has the highest accuracy at 1 and 5 shots."


def test_the_terminal_table_fits_80_columns(tmp_path: Path) -> None:
    names = ("mc-di", "hypernetwork", "ocd", "meta-hypernetwork", "a-method-of-somebody-else-with-quite-a-long-name" * 2)
    put(tmp_path, *(plain(name, 0.9) for name in names))
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(rich_table(rows(tmp_path)))
    text = console.export_text()
    assert (
        "Mc-Di *" in text
        and "* proposed method" in text
        and "Mc-Di is level with one-step regression" in " ".join(text.split())
    )
    assert "…" not in text and "".join(text.split()).count("somebody-else") == 2
    put(tmp_path / "short", *(plain(name, 0.9) for name in names[:4]))
    console.print(rich_table(rows(tmp_path / "short")))
    text = console.export_text()
    assert all(word in text for word in ("single-level control", "params", "gradient", "1,234,567"))


def test_a_clear_winner_and_a_single_method(tmp_path: Path) -> None:
    assert "as the only method measured" in page(put(tmp_path, plain("ocd", 0.6)))
    assert "no other method&#39;s interval overlaps its own" in page(put(tmp_path, plain("adam", 0.9)))


def test_optional_files_and_parts_are_left_out(tmp_path: Path) -> None:
    text = page(put(tmp_path, plain("adam", 0.9)))
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["Results", "Accuracy", "Latency", "Provenance"]


def test_a_family_without_accuracy_says_score(tmp_path: Path) -> None:
    text = page(put(tmp_path / "run", result(family="sines"), plain("adam", 0.8, family="sines")))
    assert "<h2>Score</h2>" in text and "0.900 ± 0.010" in text and "0.100 ± 0.014 above Adam" in text
    assert "ccuracy" not in text


def test_latency_bars_unless_they_would_hide_the_fast(tmp_path: Path) -> None:
    assert "stacked bars" in page(put(tmp_path, result()))
    slow = plain("adam", 0.9, latency_ms={"embed": 0.0, "generate": 900.0, "apply": 0.1})
    assert "logarithmic axis" in page(put(tmp_path, slow))


@pytest.mark.parametrize(
    ("generated", "verdict"),
    [(1.3, "this suggests memorisation"), (4.0, "this leaves open"), (9.0, "no sign of memorising")],
)
def test_novelty_sentence(full: Path, generated: float, verdict: str) -> None:
    (full / "novelty.json").write_text(json.dumps(NOVELTY | {"generated": [generated] * 3}))
    text = page(full)
    assert verdict in text
    assert f"{generated:.3g} for generated weights, 11 for held-out real ones and 1.1 for noised copies" in text
    assert "Generated norms are 0.50 times the real" in text


def test_what_comes_from_files_is_escaped(full: Path) -> None:
    evil = "<b onload=x>&$\\frac[red]|"
    other = plain(evil, 0.5, provenance={evil: evil})
    (full / "results" / f"{evil.replace('/', '')}-0.json").write_text(json.dumps(other))
    (full / "recipe.json").write_text(json.dumps({"name": evil, evil: "</pre><script>"}))
    (full / "landscape.json").write_text(json.dumps(LANDSCAPE | {"chains": {evil: [[0, 0], [1, 1]]}}))
    text = page(full)
    assert "<b onload" not in text and "<script" not in text and "&lt;b onload=x&gt;&amp;" in text
    assert "&lt;b onload=x&gt;&amp;$\\frac[red]\\|" in (full / "table.md").read_text()
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(rich_table(rows(full)))
    assert "[red]" in console.export_text()


def test_no_results(tmp_path: Path) -> None:
    with pytest.raises(McdiError, match="run `mcdi evaluate` first"):
        write_report(tmp_path)


BREAKS: list[tuple[str, Any, str]] = [
    ("shots.1.mean", None, "shots.1.mean is missing"),
    ("shots.1.mean", "high", "shots.1.mean is 'high', but should be a valid number"),
    ("shots.1.ci95", math.nan, "shots.1.ci95 is nan, but should be a finite number"),
    ("shots.1.samplers.ddpm.mean", True, "shots.1.samplers.ddpm.mean is True"),
    ("shots", {}, "shots has the keys"),
    ("shots", {"many": SCORE}, "shots has the keys \\['many'\\]"),
    ("shots", [], "shots is \\[\\], but should be an object"),
    ("latency_ms.apply", None, "latency_ms.apply is missing"),
    ("losses", [[100]], "losses.0.1 is missing"),
    ("curve", 3, "curve is 3, but should be a valid array"),
    ("tasks", 1.5, "tasks is 1.5, but should be a valid integer"),
    ("gradient_free", "no", "gradient_free is 'no', but should be a valid boolean"),
    ("seed", 7, "method and seed are 'mc-di' and 7"),
]


@pytest.mark.parametrize(("key", "value", "message"), BREAKS)
def test_a_broken_result_is_named(tmp_path: Path, key: str, value: Any, message: str) -> None:
    data = copy.deepcopy(result())
    *outer, last = key.split(".")
    inner = data
    for name in outer:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    put(tmp_path, result())
    (tmp_path / "results" / "mc-di-0.json").write_text(json.dumps(data))
    with pytest.raises(McdiError, match=f"mc-di-0.json: {message}"):
        rows(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "null"])
def test_a_result_that_is_no_object(tmp_path: Path, content: str) -> None:
    put(tmp_path, result())
    (tmp_path / "results" / "mc-di-0.json").write_text(content)
    with pytest.raises(McdiError, match="mc-di-0.json"):
        rows(tmp_path)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (result(seed=1, family="sines"), "family is 'sines', but 'glyphs'"),
        (result(seed=1, tasks=10), "tasks is 10, but 600"),
        (result(seed=1, shots={"1": SCORE}), "shots has other shot numbers or samplers than seed 0"),
    ],
)
def test_results_that_do_not_belong_together(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    with pytest.raises(McdiError, match=f"mc-di-1.json: {message}"):
        rows(put(tmp_path, result(), other))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("landscape", LANDSCAPE | {"loss": [[1.0, 2.0]]}, "loss is not 2 rows"),
        ("landscape", {"x": [1.0]}, "y is missing"),
        ("landscape", LANDSCAPE | {"chains": {"mc-di": []}}, "chains.mc-di is \\[\\], but list should have at least 1 item"),
        ("novelty", NOVELTY | {"noised": []}, "noised is \\[\\], but list should have at least 1 item"),
        ("novelty", NOVELTY | {"targets": ["far"]}, "targets.0 is 'far'"),
        ("recipe", ["name"], "its content is \\['name'\\], but should be an object"),
        ("recipe", {"steps": 3}, "name is missing"),
    ],
)
def test_a_broken_optional_file_is_named(full: Path, name: str, data: Any, message: str) -> None:
    (full / f"{name}.json").write_text(json.dumps(data))
    with pytest.raises(McdiError, match=f"{name}.json: {message}"):
        write_report(full)


def test_a_flat_landscape_and_a_diverged_loss_are_drawn(full: Path) -> None:
    (full / "landscape.json").write_text(json.dumps(LANDSCAPE | {"loss": [[0.0] * 3] * 2}))
    put(full, result(losses=[[100, 0.5], [200, math.nan], [300, None]]))
    assert "<h2>Loss landscape</h2>" in page(full)


def test_mixed_machines_are_pointed_out(full: Path) -> None:
    assert "The results differ in" not in page(full)
    put(full, plain("reptile", 0.9, provenance={"hardware": "1 x GPU", "date": "2026-12-01", "version": "0.1.0"}))
    assert "The results differ in: hardware, torch." in page(full)


def test_import_loads_no_plotting() -> None:
    code = "import sys, mcdi.experiments.report.page, mcdi.experiments.report.compare; "
    code += "sys.exit('matplotlib' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
