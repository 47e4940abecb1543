"""How do requests that came alone share one pass? One thread runs torch; what waits and is of one kind goes together."""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

Run = Callable[[list[Any]], list[Any]]


@dataclass(eq=False)
class Job:
    """size: how much of a batch it takes."""

    key: Hashable
    run: Run
    payload: Any
    size: int = 1
    arrived: float = field(default_factory=time.monotonic)
    future: Future[Any] = field(default_factory=Future)


class Batcher:
    """Jobs of the same key are run together, the oldest first, up to `most` in size; `told` hears the size of every batch.
    The oldest waits for others as long as some are `coming`, `wait` seconds at most."""

    def __init__(
        self,
        most: int,
        wait: float,
        told: Callable[[int], None] = lambda size: None,
        coming: Callable[[], bool] = lambda: True,
    ) -> None:
        self.most, self.wait, self.told, self.coming = most, wait, told, coming
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="mcdi-torch", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, key: Hashable, run: Run, payload: Any, size: int = 1) -> Future[Any]:
        """`run` of a batch of payloads -> as many results; a result that is an exception is raised for its job alone."""
        job = Job(key, run, payload, size)
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._waiting.append(job)
            self._changed.notify_all()
        return job.future

    def close(self) -> None:
        """Finish what waits, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            running = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if running:
                self.told(len(running))
                _finish(running)

    def _next(self) -> list[Job]:
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return []
                self._changed.wait()
            first = self._waiting[0]
            while not self._closed and not self._full(first):
                left = first.arrived + self.wait - time.monotonic()
                if left <= 0 or not self.coming():
                    break
                self._changed.wait(left)
            return self._take(first)

    def _full(self, first: Job) -> bool:
        return sum(job.size for job in self._waiting if job.key == first.key) >= self.most

    def _take(self, first: Job) -> list[Job]:
        taken, rest, room = [], deque[Job](), max(self.most, first.size)
        for job in self._waiting:
            if job.key == first.key and job.size <= room:
                taken.append(job)
                room -= job.size
            else:
                rest.append(job)
        self._waiting = rest
        return taken


def _finish(jobs: list[Job]) -> None:
    try:
        results = jobs[0].run([job.payload for job in jobs])
    except Exception as error:
        if len(jobs) > 1:  # one of them may have spoilt it for all
            for job in jobs:
                _finish([job])
            return
        results = [error]
    for job, result in zip(jobs, results, strict=True):
        if isinstance(result, BaseException):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)
