"""Progress of long work: bars on a terminal, plain lines elsewhere, so that a log of CI or nohup shows what is under way."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console

from mcdi.errors import Interrupted

if TYPE_CHECKING:
    from mcdi.utils.workers import Progress

EVERY = 30.0  # seconds between two lines about one step


@contextmanager
def progress(console: Console) -> Iterator["Progress"]:
    """A function that shows on `console` what it is called with; after Ctrl-C the line says that the command resumes."""
    try:
        if console.is_terminal:
            with _bars(console) as show:
                yield show
        else:
            lines, ended = PlainLines(lambda line: console.print(line, soft_wrap=True, markup=False, highlight=False)), Event()
            watcher = Thread(target=lines.watch, args=(ended,), daemon=True)
            watcher.start()
            try:
                yield lines
            finally:
                ended.set()
                watcher.join()
    except Interrupted:
        raise Interrupted("stopped; the same command resumes") from None


class _Step(NamedTuple):
    began: float  # seconds
    first: int
    done: int
    total: int
    printed: float  # seconds


class PlainLines:
    """Writes a line at the start and at the end of every step, and one every `EVERY` seconds in between: of the step's own
    reports, and by `beat` where it reports nothing, as a long evaluation does."""

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self.write, self.clock = write, clock
        self.steps: dict[str, _Step] = {}
        self.lock = Lock()

    def __call__(self, what: str, done: int, total: int, figures: dict[str, float]) -> None:
        with self.lock:
            now, step = self.clock(), self.steps.get(what)
            starts = step is None or done < step.done  # a method that trains several networks starts again under its name
            if step is None or starts:
                step = _Step(now, done, done, total, now)
            elif step.done == total:
                return
            prints = starts or done == total or now - step.printed >= EVERY
            self.steps[what] = step._replace(done=done, printed=now if prints else step.printed)
            if prints:
                parts = (f"{what}: {done}/{total}", _rate(done - step.first, now - step.began), _first(figures))
                self.write(", ".join(part for part in parts if part))

    def watch(self, ended: Event) -> None:
        """Call `beat` every second until `ended`."""
        while not ended.wait(1):
            self.beat()

    def beat(self) -> None:
        """Name the steps that are under way, where nothing was written for `EVERY` seconds."""
        with self.lock:
            now = self.clock()
            if self.steps and now - max(step.printed for step in self.steps.values()) >= EVERY:
                for what, step in self.steps.items():
                    if step.done < step.total:
                        self.steps[what] = step._replace(printed=now)
                        self.write(f"{what}: {step.done}/{step.total}, under way for {now - step.began:.0f} s")


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
