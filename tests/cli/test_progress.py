"""Progress where the output is no terminal: which lines are printed, and when."""

import io

import pytest
from rich.console import Console

from mcdi.cli.progress import PlainLines, progress
from mcdi.errors import Interrupted


class TestPlainLines:
    def lines(self, *calls):
        """What is printed by calls of (seconds, what, done, total, figures)."""
        clock, printed = [0.0], []
        show = PlainLines(printed.append, clock=lambda: clock[0])
        for seconds, *call in calls:
            clock[0] = seconds
            show(*call)
        return printed

    def test_a_line_at_the_start_at_the_end_and_every_thirty_seconds(self):
        calls = [(100.0 + t, "mc-di-0", t + 1, 100, {"loss": 1.0 / (t + 1), "lr": 1.0}) for t in range(100)]
        assert self.lines(*calls) == [
            "mc-di-0: 1/100, loss 1",
            "mc-di-0: 31/100, 1.0/s, loss 0.03226",
            "mc-di-0: 61/100, 1.0/s, loss 0.01639",
            "mc-di-0: 91/100, 1.0/s, loss 0.01099",
            "mc-di-0: 100/100, 1.0/s, loss 0.01",
        ]

    def test_a_step_that_reports_nothing_is_named_every_thirty_seconds(self):
        clock, printed = [0.0], []
        show = PlainLines(printed.append, clock=lambda: clock[0])
        show("evaluation", 0, 1, {})
        show("training", 8, 8, {})
        for clock[0] in range(1, 95):
            show.beat()
        show("evaluation", 1, 1, {})
        for clock[0] in range(95, 200):
            show.beat()
        waiting = [f"evaluation: 0/1, under way for {s} s" for s in (30, 60, 90)]
        assert printed == ["evaluation: 0/1", "training: 8/8", *waiting, "evaluation: 1/1, 0.0/s"]

    def test_steps_side_by_side(self):
        assert self.lines(
            (0.0, "a", 0, 8, {}), (1.0, "b", 4, 8, {}), (20.0, "a", 4, 8, {}), (30.0, "b", 6, 8, {}), (32.0, "b", 7, 8, {})
        ) == ["a: 0/8", "b: 4/8", "b: 7/8, 0.1/s"]

    def test_what_is_done_at_once_or_told_twice_has_one_line(self):
        assert self.lines((0.0, "a", 8, 8, {}), (40.0, "a", 8, 8, {})) == ["a: 8/8"]

    def test_a_second_network_under_the_same_name_starts_again(self):
        calls = [(float(t), "vae-0", t % 3 + 1, 3, {}) for t in range(6)]
        assert self.lines(*calls) == ["vae-0: 1/3", "vae-0: 3/3, 1.0/s"] * 2


@pytest.mark.parametrize("terminal", [False, True])
def test_a_console(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    with pytest.raises(Interrupted, match="stopped; the same command resumes"), progress(console) as show:
        show("[1/2] trajectories", 0, 8, {})
        show("[1/2] trajectories", 4, 8, {"score": 0.5})
        raise Interrupted
    text = console.file.getvalue()
    assert ("\x1b" in text) == terminal and ("trajectories: 0/8\n" in text) == (not terminal)
