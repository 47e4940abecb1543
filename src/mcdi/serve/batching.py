"""Dynamic batching: one thread runs torch, and waiting jobs of the same key run together."""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from typing import Any

Run = Callable[[list[Any]], list[Any]]


@dataclass(eq=False)
class Job:
    """One request of a tenant; `size` is its part of a batch. Jobs with the same key can run together."""

    key: Hashable
    run: Run
    payload: Any
    size: int = 1
    tenant: str = ""
    arrived: float = field(default_factory=time.monotonic)
    future: Future[Any] = field(default_factory=Future)


class Batcher:
    """Runs jobs of the same key together, the oldest first, up to `max_size`. The first of a batch is the oldest of the tenant
    that has waited longest for a batch. It waits for others at most `max_wait` seconds, and only while `expects_more()`;
    `on_batch` is called with the number of jobs of every batch."""

    def __init__(
        self,
        max_size: int,
        max_wait: float,
        on_batch: Callable[[int], None] = lambda jobs: None,
        expects_more: Callable[[], bool] = lambda: True,
    ) -> None:
        self.max_size, self.max_wait, self.on_batch, self.expects_more = max_size, max_wait, on_batch, expects_more
        self._waiting: deque[Job] = deque()
        self._batches, self._last = count(1), dict[str, int]()  # the number of every tenant's last batch
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="mcdi-torch", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, job: Job) -> Future[Any]:
        """Queue a job. `run` maps payloads to as many results; an exception in their place is raised for its own job only."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._waiting.append(job)
            self._changed.notify_all()
        return job.future

    def close(self) -> None:
        """Finish all waiting jobs, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            running = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if running:
                self.on_batch(len(running))
                _finish(running)

    def _next(self) -> list[Job]:
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return []
                self._changed.wait()
            first = min(self._waiting, key=lambda job: self._last.get(job.tenant, 0))
            while not self._closed and sum(job.size for job in self._waiting if job.key == first.key) < self.max_size:
                left = first.arrived + self.max_wait - time.monotonic()
                if left <= 0 or not self.expects_more():
                    break
                self._changed.wait(left)
            self._waiting.remove(first)
            taken, rest, room = [first], deque[Job](), self.max_size - first.size
            for job in self._waiting:
                fits = job.key == first.key and job.size <= room
                (taken if fits else rest).append(job)
                room -= job.size if fits else 0
            self._waiting = rest
            self._last |= dict.fromkeys((job.tenant for job in taken), next(self._batches))
            return taken


def _finish(jobs: list[Job]) -> None:
    try:
        results = jobs[0].run([job.payload for job in jobs])
    except Exception as error:
        if len(jobs) > 1:  # find the job that failed
            for job in jobs:
                _finish([job])
            return
        results = [error]
    for job, result in zip(jobs, results, strict=True):
        if isinstance(result, BaseException):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)
