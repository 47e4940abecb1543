"""Jobs on several processes of this machine or of a Ray cluster, with results that do not depend on how many there are.
A job is a pure function of (shared, job). `shared` goes to every worker once. A job whose worker dies is done again."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch

from mcdi.errors import McdiError, optional

# Called with (what is being done, steps done, steps in all, figures).
Progress = Callable[[str, int, int, dict[str, float]], None]
Backend = Literal["local", "ray"]
J = TypeVar("J")
R = TypeVar("R")
Work = Callable[[Any, J, Progress], R]

ATTEMPTS = 3
DIED = "a worker process died {n} times at the same work, perhaps for lack of memory: use fewer --workers; it resumes"


def silent(what: str, done: int, total: int, figures: dict[str, float]) -> None:
    """A Progress that shows nothing."""


def work_through(
    work: Work[J, R], shared: Any, jobs: Sequence[J], *, workers: int, backend: Backend = "local", progress: Progress = silent
) -> Iterator[tuple[J, R]]:
    """Do every job, each with one thread.

    Args:
        work: a function of a module, called with (shared, job, progress).
        shared: what all jobs read; its tensors lie in shared memory.
        jobs: independent of each other, `workers` of them at a time.
        backend: "local", or "ray": the cluster at RAY_ADDRESS, else one on this machine.
        progress: called with what `work` reports (not on Ray).

    Yields:
        (job, result) of every job when it is done.

    Raises:
        McdiError: workers die ATTEMPTS times at the same jobs, the backend is unknown, or Ray is not installed.
    """
    if backend not in ("local", "ray"):
        raise McdiError(f"unknown backend {backend!r}: choose local or ray")
    if not jobs:
        return
    if backend == "ray":
        yield from _ray(work, shared, jobs, workers)
    elif workers == 1:
        with one_thread():
            for job in jobs:
                yield job, work(shared, job, progress)
    else:
        yield from _local(work, shared, jobs, workers, progress)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread, as in a worker, so that sums are the same and latencies comparable."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_worker: tuple[Any, Any, Any] = (None, None, None)  # in a worker: queue of messages, work, shared


def _start(messages: Any, work: Any, shared: Any) -> None:
    global _worker
    _worker = (messages, work, shared)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """If the parent is killed nobody waits for this worker's result, and a resumed run would race with it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(job: Any) -> Any:
    messages, work, shared = _worker
    last = [0.0]

    def send(what: str, done: int, total: int, figures: dict[str, float]) -> None:
        if done == total or time.monotonic() - last[0] > 0.3:
            last[0] = time.monotonic()
            messages.put((what, done, total, figures))

    return work(shared, job, send)


def _local(work: Any, shared: Any, jobs: Sequence[Any], workers: int, progress: Progress) -> Iterator[tuple[Any, Any]]:
    # torch.multiprocessing: the tensors of `shared` lie in shared memory, once for all workers.
    context: Any = torch.multiprocessing.get_context("spawn")
    messages = context.Queue()
    left, deaths = list(jobs), 0
    while left:
        pool = concurrent.futures.ProcessPoolExecutor(min(workers, len(left)), context, _start, (messages, work, shared))
        try:
            with _uninterrupted():
                running = {pool.submit(_do, job): job for job in left}
            while running:
                done, _ = concurrent.futures.wait(running, timeout=0.2, return_when=concurrent.futures.FIRST_COMPLETED)
                while not messages.empty():  # this process alone reads
                    progress(*messages.get())
                for future in done:
                    job = running.pop(future)
                    result = future.result()
                    left.remove(job)
                    deaths = 0
                    yield job, result
            pool.shutdown()
        except BrokenProcessPool as error:
            deaths += 1
            if deaths == ATTEMPTS:
                raise McdiError(DIED.format(n=ATTEMPTS)) from error
        finally:
            for child in multiprocessing.active_children():
                child.terminate()
            pool.shutdown(cancel_futures=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, and does not reach processes that start in it: it would end them, with a
    traceback, while they still import."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _call(work: Any, shared: Any, job: Any) -> Any:
    torch.set_num_threads(1)
    return work(shared, job, silent)


def _ray(work: Any, shared: Any, jobs: Sequence[Any], workers: int) -> Iterator[tuple[Any, Any]]:
    ray = optional("ray", "ray", "backend = 'ray'")
    own = not ray.is_initialized()
    if own:
        address = os.environ.get("RAY_ADDRESS")  # of a running cluster; else one is started
        where = {"address": address} if address else {"num_cpus": workers, "include_dashboard": False}
        ray.init(**where, log_to_driver=False)
    try:
        remote = ray.remote(_call).options(num_cpus=1, max_retries=ATTEMPTS - 1)
        everywhere = ray.put(shared)
        waiting, running = list(jobs), dict[Any, Any]()
        while waiting or running:
            while waiting and len(running) < workers:  # no more than asked for, however large the cluster
                job = waiting.pop(0)
                running[remote.remote(work, everywhere, job)] = job
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                job = running.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.WorkerCrashedError as error:
                    raise McdiError(DIED.format(n=ATTEMPTS)) from error
                except ray.exceptions.RayTaskError as error:
                    raise error.cause if isinstance(error.cause, McdiError) else error from None
                yield job, result
    finally:
        if own:
            ray.shutdown()


def pick_device(name: str | torch.device) -> str:
    """The torch device that a user names; "auto" is the best there is. Raises McdiError for one that is unknown or absent."""
    given = str(name) if isinstance(name, torch.device) else name
    kind, _, number = given.partition(":") if isinstance(given, str) else ("", "", "")
    if kind not in ("auto", "cpu", "cuda") or given.endswith(":") or (number and (kind == "auto" or not number.isdecimal())):
        raise McdiError(f"unknown device {name!r}: choose auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "auto":
        return "cuda" if count else "cpu"
    if kind == "cpu" and int(number or 0) > 0:
        raise McdiError(f"{name} is not available: there is one device named cpu; use it")
    if kind == "cuda" and int(number or 0) >= count:
        raise McdiError(f"{name} is not available: this torch sees {count} CUDA devices; use the device cpu")
    return "cpu" if kind == "cpu" else str(given)
