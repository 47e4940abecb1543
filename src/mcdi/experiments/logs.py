"""Logs of trainings, a line of JSON a reported step, and TensorBoard's files with the same figures.

    {"stage": 0, "step": 40, "of": 1500, "seconds": 3.2, "loss": 0.71, "lr": 0.00099}

stage counts the networks and searches of one method; seconds are those of training, without stops.
"""

import json
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mcdi.errors import McdiError
from mcdi.utils.files import append_bytes, read_bytes, write_bytes

LOG = "log.jsonl"  # its name in a method's folder
LINES = 1000  # of a stage, about


class Point(NamedTuple):
    """What was reported after `step` of `of` steps."""

    stage: int
    step: int
    of: int
    seconds: float
    figures: dict[str, float]

    def line(self) -> bytes:
        values = self._replace(seconds=round(self.seconds, 3))._asdict()
        return (json.dumps(values | values.pop("figures")) + "\n").encode()


def read_log(path: Path) -> list[Point]:
    """The points of a log, if there is one, but for a last line that a kill cut off. Raises McdiError for bad lines."""
    points: list[Point] = []
    *whole, _cut = read_bytes(path).split(b"\n") if path.exists() else [b""]
    for number, line in enumerate(whole, 1):
        try:
            values = json.loads(line)
            stage, step, of, seconds = (values.pop(name) for name in ("stage", "step", "of", "seconds"))
            figures = {n: float(v) for n, v in values.items()}
            points.append(Point(int(stage), int(step), int(of), float(seconds), figures))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise McdiError(f"{path}: line {number} is no point of a training: delete that file, only plots need it") from error
    return sorted(points, key=lambda p: p[:2])


def read_losses(path: Path) -> list[list[float]]:
    """[[step, loss]] of a log, about a hundred of every network; those before a stop are in it too."""
    points = [p for p in read_log(path) if "loss" in p.figures]
    return [[p.step, round(p.figures["loss"], 5)] for p in points if p.step % max(1, p.of // 100) == 0]


class TrainingLog:
    """A Log that writes at most about LINES evenly spaced points a stage to the file `path`, and to TensorBoard's files in the
    folder `events`. Steps that a resumed training repeats are replaced."""

    def __init__(self, path: Path, events: Path | None = None) -> None:
        self.path, self.events = path, events
        self.stage, self.done, self.total = -1, 0, 0
        self.start = time.perf_counter()
        self.board: EventFiles | None = None

    def __call__(self, done: int, total: int, figures: dict[str, float]) -> None:
        if self.stage < 0 or done <= self.done or self.done == self.total:
            self._begin(done)
        self.done, self.total = done, total
        if done % math.ceil(total / LINES) and done != total:
            return
        point = Point(self.stage, done, total, time.perf_counter() - self.start, figures)
        append_bytes(self.path, point.line())
        if self.board is not None:
            self.board.write([point])

    def _begin(self, done: int) -> None:
        """Start the next stage at step `done`: its lines from there on are removed, those of later stages stay."""
        self.stage += 1
        points = [p for p in read_log(self.path) if p.stage != self.stage or p.step < done]
        before = max((p.seconds for p in points if p.stage <= self.stage), default=0.0)
        # A stage that was begun before a stop continues at the time of its last line.
        self.start -= before if self.stage == 0 else max(0.0, before - (time.perf_counter() - self.start))
        write_bytes(self.path, b"".join(p.line() for p in points))
        if self.events is not None:
            self.close()
            self.board = EventFiles(self.events, points)

    def close(self) -> None:
        if self.board is not None:
            self.board.writer.close()


def summary_writer() -> Any:
    """TensorBoard's writer, a class. Raises McdiError where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise McdiError("--tensorboard needs TensorBoard: pip install 'mcdi[tensorboard]', or leave the option out") from error
    return SummaryWriter


class EventFiles:
    """TensorBoard's files in `folder`, a scalar a figure. They are rewritten from `points`, so that they agree with the log."""

    def __init__(self, folder: Path, points: Sequence[Point] = ()) -> None:
        make = summary_writer()
        for path in folder.glob("events.out.tfevents.*"):
            path.unlink()
        # purge_step: a TensorBoard that is open forgets what it has read of the files before.
        self.writer = make(str(folder), purge_step=0, flush_secs=5)
        self.start = time.time() - (points[-1].seconds if points else 0.0)
        self.write(points)

    def write(self, points: Iterable[Point]) -> None:
        for p in points:
            for name, value in p.figures.items():
                tag = f"stage-{p.stage}/{name}" if p.stage else name
                self.writer.add_scalar(tag, value, p.step, walltime=self.start + p.seconds)
