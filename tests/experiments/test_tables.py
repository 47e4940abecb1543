"""Rows of many seeds become one table: means, intervals, differences."""

import csv
import math
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from mcdi.experiments.report.style import plot_style
from mcdi.experiments.statistics import interval, student_t
from mcdi.experiments.studies.tables import Chart, _panel, as_csv, as_markdown, draw, lines
from mcdi.experiments.studies.variants import Measured


def measured(method: str, scores: list[float], **figures: float) -> Measured:
    return Measured({"method": method, "shots": 1}, figures, torch.tensor(scores))


class TestLines:
    def test_seeds_of_the_same_factors_are_one_line(self) -> None:
        by_seed = [(0, [measured("a", [0.0, 1.0], mse=1.0)]), (1, [measured("a", [1.0, 1.0], mse=3.0)])]
        (line,) = lines(by_seed, None)
        assert line.seeds == 2
        assert line.score is not None
        assert line.score[0] == pytest.approx(0.75)
        assert line.score[1] == pytest.approx(0.5**0.5 / 2)
        assert line.figures["mse"] == pytest.approx((2.0, 2**0.5))

    def test_few_tasks_have_the_interval_of_student(self) -> None:
        assert interval(torch.tensor([0.4, 0.6, 0.5, 0.7, 0.3]))["ci95"] == pytest.approx(2.776445 * 0.025**0.5 / 5**0.5)
        many = torch.tensor([0.0, 1.0] * 50)
        assert interval(many)["ci95"] == pytest.approx(1.984217 * float(many.std()) / 10)

    def test_a_difference_is_paired_by_task(self) -> None:
        """Two methods whose tasks vary by far more than they differ: the paired interval sees the difference."""
        easy = torch.rand(500, generator=torch.Generator().manual_seed(0))
        by_seed = [(0, [Measured({"method": "a"}, {}, easy), Measured({"method": "b"}, {}, easy - 0.01)])]
        first, second = lines(by_seed, ("method", "a"))
        assert first.difference is None
        assert second.difference is not None
        assert second.difference[0] == pytest.approx(-0.01, abs=1e-6)
        assert second.difference[2] < 1e-6
        few = [(s, [r._replace(scores=r.scores[:7]) if r.factors["method"] == "b" else r for r in rows]) for s, rows in by_seed]
        assert lines(few, ("method", "a"))[1].difference == pytest.approx(second.difference, abs=1e-6)  # measured on the first
        assert first.score is not None
        assert first.score[2] > 0.02

    def test_a_method_of_one_seed_meets_every_seed_of_the_other(self) -> None:
        by_seed = [(0, [measured("p", [0.5, 0.5]), measured("m", [0.6, 0.6])]), (1, [measured("m", [0.8, 0.8])])]
        difference = next(line for line in lines(by_seed, ("method", "p")) if line.factors["method"] == "m").difference
        assert difference is not None
        assert difference[0] == pytest.approx(0.2)
        assert difference[2] == pytest.approx(12.706205 * difference[1] / 2**0.5)

    def test_seeds_that_have_tasks_of_their_own(self) -> None:
        """Pairs are of the same tasks, and all tasks together decide the interval."""
        full, gain = torch.tensor([0.1, 0.9, 0.2, 0.4]), torch.tensor([0.3, 0.1, 0.2, 0.2])
        by_seed = []
        for seed, part in ((0, slice(0, 2)), (1, slice(2, 4))):
            mine = Measured({"method": "b"}, {}, (full + gain)[part], part.start)
            by_seed.append((seed, [Measured({"method": "a"}, {}, full), mine]))
        line = lines(by_seed, ("method", "a"))[1]
        assert line.difference is not None and line.score is not None
        assert line.difference == pytest.approx((0.2, 0.0, interval(gain)["ci95"]), abs=1e-6)
        assert line.score[0] == pytest.approx(0.6)
        assert line.score[2] >= interval(full + gain)["ci95"]
        turned = lines(by_seed, ("method", "b"))[0].difference  # where it is the other that has parts
        assert turned == pytest.approx((-0.2, 0.0, interval(gain)["ci95"]), abs=1e-6)

    def test_csv_and_markdown_hold_the_same_rows(self) -> None:
        by_seed = [(s, [measured("a", [0.5, 1.0], mse=1.0), measured("b", [0.5, 0.5])]) for s in (0, 1)]
        table = lines(by_seed, ("method", "a"))
        read = list(csv.DictReader(as_csv(table).splitlines()))
        assert [r["method"] for r in read] == ["a", "b"]
        assert float(read[0]["score_mean"]) == 0.75
        assert float(read[1]["difference_mean"]) == -0.25
        assert read[0]["mse_mean"] == "1.0"
        assert read[1]["mse_mean"] == ""
        text = as_markdown(table, ("method", "a"), "glyphs")
        assert "| method | shots | accuracy (%) | minus a | mse |" in text
        assert "-25.00" in text
        text = as_markdown(table, ("method", "a"), "sines")  # no fraction of right answers
        assert "| method | shots | score | minus a | mse |" in text
        assert "-0.250" in text


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [
        (1, 12.7062047),
        (2, 4.3026527),
        (5, 2.5705818),
        (16, 2.1199053),
        (30, 2.0422725),
        (100, 1.9839715),
        (math.inf, 1.9599640),
    ],
)
def test_quantiles_of_student(degrees: float, quantile: float) -> None:
    assert student_t(0.975, degrees) == pytest.approx(quantile, abs=1e-6)
    assert student_t(0.5, degrees) == pytest.approx(0, abs=1e-6)


def test_no_two_methods_of_a_chart_share_a_colour() -> None:
    for names in (["mc-di", "adam"], ["mc-di", "mc-di, 10 steps", "linear probe", "LoRA fine-tuning"]):
        by_seed = [(0, [Measured({"method": n, "shots": s}, {}, torch.tensor([0.5, 0.6])) for n in names for s in (1, 5)])]
        axes = Figure().subplots()
        _panel(axes, Chart("shots", series=("method",)), "score", lines(by_seed, None), "text")
        handles, labels = axes.get_legend_handles_labels()
        colours = {h.lines[0].get_color() for h in handles}
        assert labels == names and len(colours) == len(names)
        assert (plot_style("mc-di")[0] in colours) == (names == ["mc-di", "adam"])  # theirs, where all have one


def test_an_axis_names_few_numbers_of_a_factor_and_leaves_those_of_a_figure() -> None:
    for chart, ticks in ((Chart("weights", log=True), [1941, 28485]), (Chart("ms", log=True), None)):
        measured = [Measured({"method": "adam", "weights": n}, {"ms": float(n)}, torch.rand(2)) for n in (1941, 28485)]
        axes = Figure().subplots()
        _panel(axes, chart, "score", lines([(0, measured)], None), "glyphs")
        assert len(axes.get_xticks()) > 0 and (ticks is None or axes.get_xticks().tolist() == ticks)


def test_a_chart_of_a_value_that_no_row_has_shows_all_rows(tmp_path: Path) -> None:
    measured = [Measured({"method": "adam", "shots": 1, "x": n}, {}, torch.rand(2)) for n in (1, 2)]
    draw(Chart("x", only=("shots", 5)), lines([(0, measured)], None), tmp_path / "a.png", "title", "glyphs")
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_panels_that_share_their_names_keep_the_order() -> None:
    measured = [Measured({"method": "adam", "x": name}, {}, torch.rand(2)) for name in ("first", "second")]
    both = Figure().subplots(1, 2, sharey=True)
    for axes in both:
        _panel(axes, Chart("x"), "score", lines([(0, measured)], None), "glyphs")
    assert all(axes.yaxis_inverted() for axes in both)  # the first name is at the top
