"""A training's log is complete after stops, kills and resumptions, and TensorBoard shows the same."""

import itertools
import json
import sys
from contextlib import closing

import pytest
from conftest import curves, mcdi

from mcdi.errors import McdiError
from mcdi.experiments.logs import LINES, LOG, TrainingLog, read_log


def report(log, *steps, total=10, of=0.0):
    """Losses whose offset tells which training wrote them."""
    for step in steps:
        log(step, total, {"loss": of + step})


def keys(path):
    return [(p.stage, p.step) for p in read_log(path)]


def complete(*totals):
    return [(stage, step) for stage, total in enumerate(totals) for step in range(1, total + 1)]


class TestLog:
    def test_a_line_a_step(self, tmp_path):
        path = tmp_path / "new" / "log.jsonl"
        with closing(TrainingLog(path)) as log:
            log(1, 2, {"loss": 0.5, "lr": 0.01})
            log(2, 2, {"loss": 0.25, "lr": 0.005})
        first, last = (json.loads(line) for line in path.read_text().splitlines())
        assert 0 <= first.pop("seconds") <= last.pop("seconds")
        assert first == {"stage": 0, "step": 1, "of": 2, "loss": 0.5, "lr": 0.01}
        assert read_log(path)[1].figures == {"loss": 0.25, "lr": 0.005}
        assert read_log(tmp_path / "no.jsonl") == []

    @pytest.mark.parametrize("total", [LINES, LINES + 1, 2500])
    def test_long_trainings_are_thinned_evenly(self, tmp_path, total, monkeypatch):
        kept = []
        monkeypatch.setattr("mcdi.experiments.logs.append_bytes", lambda path, line: kept.append(json.loads(line)["step"]))
        report(TrainingLog(tmp_path / "log.jsonl"), *range(1, total + 1), total=total)
        assert LINES / 2 < len(kept) <= LINES + 1 and kept[-1] == total
        assert len({b - a for a, b in itertools.pairwise(kept[:-1])}) == 1

    def test_repeated_steps_are_in_the_log_once(self, tmp_path):
        path = tmp_path / "log.jsonl"
        report(TrainingLog(path), *range(1, 8))
        report(TrainingLog(path), *range(5, 11), of=100.0)  # its checkpoint was of step 4
        points = read_log(path)
        assert keys(path) == complete(10)
        assert [p.figures["loss"] for p in points] == [1, 2, 3, 4, *range(105, 111)]
        assert [p.seconds for p in points] == sorted(p.seconds for p in points)
        report(TrainingLog(path), 1)
        assert keys(path) == [(0, 1)]  # without a checkpoint it begins again

    def test_networks_one_after_the_other(self, tmp_path):
        """A resumed training goes through the end of the first network again; the lines of the second stay."""
        path = tmp_path / "log.jsonl"
        log = TrainingLog(path)
        report(log, *range(1, 11))
        report(log, *range(1, 7), total=8)
        report(TrainingLog(path), 9)  # killed in the first again
        assert keys(path) == [(0, s) for s in range(1, 10)] + [(1, s) for s in range(1, 7)]
        log = TrainingLog(path)
        report(log, 9, 10)
        report(log, *range(5, 9), total=8, of=100.0)
        report(log, 1, total=1)
        assert keys(path) == complete(10, 8, 1)
        assert [p.figures["loss"] for p in read_log(path)][10:] == [1, 2, 3, 4, 105, 106, 107, 108, 1]
        assert path.read_text().count("\n") == 19

    def test_seconds_are_of_training_through_all_stages_and_stops(self, tmp_path, monkeypatch):
        clock = [100.0]
        monkeypatch.setattr("mcdi.experiments.logs.time.perf_counter", lambda: clock[0])

        def train(log, stages, start=1):
            for stage in range(stages):
                for step in range(start if stage == 0 else 1, 4):
                    clock[0] += 1.0
                    log(step, 3, {"loss": 0.0})

        train(TrainingLog(tmp_path / LOG), 2)
        assert [p.seconds for p in read_log(tmp_path / LOG)] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        clock[0] = 9000.0  # stopped in between
        train(TrainingLog(tmp_path / LOG), 1, start=3)
        seconds = [p.seconds for p in read_log(tmp_path / LOG) if p.stage == 0]
        assert seconds == [1.0, 2.0, 3.0]

    def test_a_kill_in_the_middle_of_a_line(self, tmp_path):
        path = tmp_path / "log.jsonl"
        report(TrainingLog(path), 1, 2, 3)
        for cut in range(1, 40):
            path.write_bytes(path.read_bytes() + b'{"stage": 0, "step": 4, "of": 10, "seconds": 1.5, "loss": 4.0}'[:cut])
            assert keys(path) == complete(3)
            report(TrainingLog(path), 3)
            assert path.read_text().count("\n") == 3 and keys(path) == complete(3)

    @pytest.mark.parametrize("line", ["{", "[]", "{}", '{"stage": 0, "step": 1, "of": 2, "seconds": "x"}'])
    def test_another_broken_line_is_named(self, tmp_path, line):
        path = tmp_path / "log.jsonl"
        report(TrainingLog(path), 1, 2)
        path.write_text(path.read_text() + line + "\n")
        with pytest.raises(McdiError, match=r"log.jsonl: line 3 is no point of a training: delete that file"):
            read_log(path)


class TestTensorBoard:
    @staticmethod
    def scalars(folder):
        """{tag: [(step, value)]} of all event files, as TensorBoard reads them."""
        reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        events = reader.EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    def test_it_shows_what_the_log_holds(self, tmp_path):
        pytest.importorskip("tensorboard")
        path, events = tmp_path / "log.jsonl", tmp_path / "events"
        report(TrainingLog(path), 1, 2, 3)  # without the option
        with closing(TrainingLog(path, events)) as log:
            report(log, *range(3, 11), of=100.0)
            report(log, 1, 2, total=4)
        assert len(self.scalars(events)["loss"]) == 10
        with closing(TrainingLog(path, events)) as log:
            report(log, 9, 10, of=200.0)
            report(log, 2, 3, 4, total=4)
        losses = [1, 2, *range(103, 109), 209, 210]
        assert self.scalars(events) == {
            "loss": list(zip(range(1, 11), losses, strict=True)),
            "stage-1/loss": [(s, s) for s in range(1, 5)],
        }

    def test_without_the_package(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        monkeypatch.chdir(tmp_path)
        assert mcdi("run", "glyphs", "--tensorboard") == 1
        assert "--tensorboard needs TensorBoard: pip install 'mcdi[tensorboard]'" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())

    def test_a_run(self, tmp_path):
        """Nothing of it without the option; with it, what was trained already is shown too."""
        pytest.importorskip("tensorboard")
        (tmp_path / "curves.toml").write_text(curves("adam", "mc-di"))
        folder = tmp_path / "run"
        assert mcdi("prepare", tmp_path / "curves.toml", "--out", folder, "--workers", 1) == 0
        assert mcdi("train", folder, "--method", "mc-di", "--workers", 1) == 0
        assert not (folder / "tensorboard").exists()
        assert mcdi("train", folder, "--tensorboard", "--workers", 1) == 0
        assert sorted(p.name for p in (folder / "tensorboard").iterdir()) == ["adam-0", "mc-di-0"]
        shown, points = self.scalars(folder / "tensorboard" / "mc-di-0"), read_log(folder / "methods" / "mc-di-0" / "log.jsonl")
        assert sorted(shown) == ["inner_loss", "loss", "lr"]
        assert [s for s, _ in shown["loss"]] == [p.step for p in points] == list(range(1, 9))
        assert [v for _, v in shown["lr"]] == pytest.approx([p.figures["lr"] for p in points])
        assert shown["lr"][0][1] == pytest.approx(0.001) and shown["lr"][-1][1] < 0.0001
        assert list(self.scalars(folder / "tensorboard" / "adam-0")) == ["score"]
