"""Comparison of runs, finished or not, and what keeps them from being compared."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import mcdi
from test_report import plain, put, result

from mcdi.errors import McdiError
from mcdi.experiments.logs import TrainingLog
from mcdi.experiments.report.compare import about, cells, differences, read_runs, rich_comparison, states, write_comparison

RECIPE: dict[str, Any] = {
    "name": "a",
    "about": "a",
    "methods": ["mc-di", "adam"],
    "family": {"data": "glyphs", "shots": [1, 5]},
    "generator": {"training": {"iterations": 10}},
}


def run(folder: Path, *results: dict[str, Any], **changes: Any) -> Path:
    put(folder, *results)
    (folder / "recipe.json").write_text(json.dumps(RECIPE | changes))
    return folder


def log(folder: Path, label: str, steps: int, total: int = 10, times: int = 1) -> None:
    written = TrainingLog(folder / "methods" / label / "log.jsonl")
    for _ in range(times):
        for step in range(1, steps + 1):
            written(step, total, {"loss": 2.0 / step, "lr": 0.1})


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """One run finished with two seeds; one of a longer training under way."""
    a = run(tmp_path / "a", result(), result(seed=1, mean=0.92), plain("adam", 0.95, gradient_free=False))
    longer = {"training": {"iterations": 20}, "space": "rows"}
    b = run(tmp_path / "b", result(mean=0.94, latency_ms=None), name="b", generator=longer)
    unfinished = json.loads((b / "results" / "mc-di-0.json").read_text())
    del unfinished["latency_ms"]
    (b / "results" / "mc-di-0.json").write_text(json.dumps(unfinished))
    log(a, "mc-di-0", 10)
    log(b, "mc-di-0", 20, total=20)
    log(b, "mc-di-1", 5, total=20)
    return [a, b]


def body(folders: list[Path]) -> dict[tuple[str, str], dict[str, str]]:
    header, lines = cells(read_runs(folders))
    table = {(line[0], line[1]): dict(zip(header, line, strict=True)) for line in lines}
    for method, name, state in states(read_runs(folders)):
        table[method, name]["state"] = state
    return table


def test_finished_and_unfinished_runs(two: list[Path]) -> None:
    table = body(two)
    assert list(table) == [("Adam", "a"), ("Adam", "b"), ("Mc-Di", "a"), ("Mc-Di", "b")]
    assert table["Mc-Di", "a"]["accuracy, 1 shot (%)"] == "91.00 ± 12.75" and "state" not in table["Mc-Di", "a"]
    assert table["Mc-Di", "a"]["generate (ms)"] == "2.5" and table["Mc-Di", "a"]["parameters"] == "1,234,567"
    assert table["Mc-Di", "b"]["accuracy, 5 shots (%)"] == "99.00 ± 1.00" and table["Mc-Di", "b"]["generate (ms)"] == "-"
    assert table["Mc-Di", "b"]["state"] == "seed 1 at step 5 of 20, loss 0.4; latency not measured yet"
    assert table["Adam", "b"] == dict.fromkeys(table["Adam", "b"], "") | {"method": "Adam", "run": "b", "state": "not begun"}
    (two[1] / "methods" / "mc-di-1" / "config.json").write_text("{}")
    (two[1] / "methods" / "adam-0").mkdir()
    table = body(two)
    assert table["Mc-Di", "b"]["state"].startswith("seed 1 trained, not evaluated yet;")
    assert table["Adam", "b"]["state"] == "seed 0 begun"


def test_names_of_methods_that_begin_alike(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", methods=["ocd", "ocd-residual"])
    log(folder, "ocd-residual-3", 4)
    table = body([folder])
    assert (
        table["single-level control", "a"]["state"] == "not begun"
        and table["OCD", "a"]["state"] == "seed 3 at step 4 of 10, loss 0.5"
    )


def test_only_the_settings_that_differ(two: list[Path]) -> None:
    settings = differences(read_runs(two))
    assert settings == {"generator.training.iterations": ["10", "20"], "generator.space": ["default", "rows"]}
    assert differences(read_runs(two[:1])) == {}


def test_losses_are_of_the_log_or_else_of_the_results(two: list[Path]) -> None:
    a, b = read_runs(two)
    (adam, mc) = sorted(a.entries, key=lambda e: e.method)
    assert adam.losses == []
    assert mc.losses == [[(s, 2.0 / s) for s in range(1, 11)], [(100, 0.8), (200, 0.6)]]  # seed 1 has no log
    assert [len(line) for line in next(e for e in b.entries if e.method == "mc-di").losses] == [20, 5]


def test_long_curves_are_means_of_blocks_and_networks_are_apart(tmp_path: Path) -> None:
    folder = run(tmp_path / "a")
    log(folder, "mc-di-0", 300, total=300, times=2)
    (line,) = read_runs([folder])[0].entries[0].losses
    assert len(line) == 201 and line[0] == pytest.approx((2, (2 + 1 + 2 / 3) / 3))
    assert line[100][1] != line[100][1] and line[101][0] == 302


def test_page_table_and_csv(two: list[Path], tmp_path: Path) -> None:
    runs = read_runs(two)
    page, numbers = (path.read_text() for path in write_comparison(runs, tmp_path / "x.html"))
    sections = ["Results", "Under way", "Scores", "Settings that differ", "Training", "Provenance"]
    assert re.findall(r"<h2>(.*?)</h2>", page) == sections
    assert page.count("<svg") == 2 and "http" not in re.sub(r"http://www\.w3\.org/[\w/]+", "", page)
    assert "2 runs (a, b), 3 of 4 methods measured." in page and "with care" not in page
    lines = list(csv.DictReader(numbers.splitlines()))
    assert [(n["method"], n["run"], n["state"]) for n in lines[:3]] == [
        ("adam", "a", "finished"),
        ("adam", "b", "not begun"),
        ("mc-di", "a", "finished"),
    ]
    assert float(lines[2]["mean_1"]) == pytest.approx(0.91) and lines[2]["generator.training.iterations"] == "10"
    assert lines[1]["mean_1"] == "" and lines[2]["hardware"] == "2 x CPU" and lines[2]["generate_ms"] == "2.5"
    page = write_comparison(runs[:1], tmp_path / "x.html")[0].read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Results", "Scores", "Training", "Provenance"]
    assert rich_comparison(runs).row_count == 4


def test_what_keeps_runs_from_being_compared(two: list[Path], tmp_path: Path) -> None:
    other = {"provenance": {"hardware": "1 GPU", "torch": "2.13.0"}, "family": "sines"}
    c = run(tmp_path / "c", plain("adam", 0.5, **other), family={"data": "sines", "shots": [1, 5]})
    text = about(read_runs([two[0], c]))
    assert "The runs do not meet the same tasks (family.data differ): compare their scores with care." in text
    assert "They were measured with different hardware: compare their times with care." in text
    table = body([two[0], c])
    assert table["Adam", "a"]["score, 1 shot"] == "95.00 ± 1.00 %" and table["Adam", "c"]["score, 1 shot"] == "0.500 ± 0.010"
    page = write_comparison(read_runs([two[0], c]), tmp_path / "x.html")[0].read_text()
    assert "<h2>Scores</h2>" not in page  # no axis for both


def test_same_names_and_the_same_folder_twice(two: list[Path], tmp_path: Path) -> None:
    shutil.copytree(two[0], tmp_path / "other" / "a")
    names = [r.name for r in read_runs([two[0], two[0], tmp_path / "other" / "a"])]
    assert names == [str(two[0]), str(tmp_path / "other" / "a")]


def test_errors(two: list[Path], tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(McdiError, match="x is not the folder of a run, it holds no recipe.json: give folders that"):
        read_runs([two[0], tmp_path / "x"])
    empty = run(tmp_path / "empty")
    with pytest.raises(McdiError, match="empty: no results and no log of a training yet; run `mcdi run`"):
        read_runs([empty])
    assert [r.name for r in read_runs([two[0], empty])] == ["a", "empty"]
    with pytest.raises(McdiError, match=r"--out .*x.txt must end in .html"):
        write_comparison(read_runs(two), tmp_path / "x.txt")
    (two[0] / "results" / "adam-0.json").write_text("{}")
    with pytest.raises(McdiError, match="adam-0.json: method is missing"):
        read_runs(two)


def test_what_a_user_types(two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mcdi("report", *two, "--out", tmp_path / "page.html") == 0
    text = capsys.readouterr().out
    assert "2 runs (a, b), 3 of 4 methods measured" in text and "91.00" in text and "page.csv" in text
    assert (tmp_path / "page.html").exists() and (tmp_path / "page.csv").exists()
    assert mcdi("report", tmp_path) == 1
    assert "is not the folder of a run" in capsys.readouterr().err
