"""Progress of long work: bars on a terminal, plain lines elsewhere, so that a log of CI or nohup shows what is under way."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import typer
from rich.console import Console

if TYPE_CHECKING:
    from mcdi.utils.workers import Progress

EVERY = 30.0  # seconds between two lines about one step


@contextmanager
def progress(console: Console) -> Iterator["Progress"]:
    """A function that shows on `console` what it is called with; Ctrl-C is exit code 130."""
    try:
        if console.is_terminal:
            with _bars(console) as show:
                yield show
        else:
            yield PlainLines(lambda line: console.print(line, soft_wrap=True, markup=False, highlight=False))
    except KeyboardInterrupt:  # typer would print a word of its own
        console.print("stopped; the same command resumes")
        raise typer.Exit(130) from None


class _Step(NamedTuple):
    began: float  # seconds
    first: int
    done: int
    printed: float  # seconds


class PlainLines:
    """Writes a line at the start and at the end of every step, and one every `EVERY` seconds in between."""

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self.write, self.clock = write, clock
        self.steps: dict[str, _Step] = {}

    def __call__(self, what: str, done: int, total: int, figures: dict[str, float]) -> None:
        now, step = self.clock(), self.steps.get(what)
        starts = step is None or done < step.done  # a method that trains several networks starts again under its name
        if step is None or starts:
            step = _Step(now, done, done, now)
        elif step.done == total:
            return
        prints = starts or done == total or now - step.printed >= EVERY
        self.steps[what] = step._replace(done=done, printed=now if prints else step.printed)
        if prints:
            parts = (f"{what}: {done}/{total}", _rate(done - step.first, now - step.began), _first(figures))
            self.write(", ".join(part for part in parts if part))


@contextmanager
def _bars(console: Console) -> Iterator["Progress"]:
    """A bar with rate and time left for each step."""
    from rich import progress as rich

    with rich.Progress(
        rich.SpinnerColumn(),
        rich.TextColumn("{task.description:<24}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[rate]:>9}"),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.fields[figure]}"),
        console=console,
    ) as bars:
        steps: dict[str, tuple[rich.TaskID, int]] = {}

        def show(what: str, done: int, total: int, figures: dict[str, float]) -> None:
            if what not in steps:
                steps[what] = (bars.add_task(what, total=total, figure="", rate=""), done)
            step, first = steps[what]
            elapsed = next(bar.elapsed for bar in bars.tasks if bar.id == step) or 0.0
            bars.update(step, completed=done, total=total, figure=_first(figures), rate=_rate(done - first, elapsed))

        yield show


def _rate(done: int, seconds: float) -> str:
    return f"{done / seconds:.1f}/s" if done > 0 and seconds > 0 else ""


def _first(figures: dict[str, float]) -> str:
    """A line has room for one figure; logs have all."""
    return "".join(f"{name} {value:.4g}" for name, value in list(figures.items())[:1])
