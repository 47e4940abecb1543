"""Results do not depend on the number of workers, on the backend, and on workers that die."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from mcdi.errors import McdiError
from mcdi.tasks.curves import Sines
from mcdi.trajectories.prepare import Preparation, prepare
from mcdi.utils.workers import work_through


def square(shared, job, progress):
    progress("squares", job, 4, {"threads": float(torch.get_num_threads())})
    return shared["scale"] * job**2, torch.get_num_threads()


def fails(shared, job, progress):
    raise McdiError(f"job {job} is bad: leave it out")


def dies_always(shared, job, progress):
    os.kill(os.getpid(), signal.SIGKILL)


def dies_once(x, generator):
    """An augmentation that kills its worker the first time that any worker comes here."""
    if os.getpid() != int(os.environ["MCDI_TEST_PARENT"]):
        try:
            Path(os.environ["MCDI_TEST_MARK"]).touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        except FileExistsError:
            pass
    return x + 0.1 * torch.randn(x.shape, generator=generator)


@pytest.fixture
def backends(monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'mcdi[ray]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    return ("local", "ray")


def test_every_job_is_done_once_and_one_thread_each():
    scale = {"scale": torch.tensor(2)}
    calls = []
    for workers in (1, 2):
        done = list(work_through(square, scale, range(5), workers=workers, progress=lambda *call: calls.append(call)))
        assert sorted((job, int(result)) for job, (result, _) in done) == [(j, 2 * j**2) for j in range(5)]
        assert {threads for _, (_, threads) in done} == {1}
    assert {what for what, *_ in calls} == {"squares"} and all(f["threads"] == 1 for *_, f in calls)
    assert list(work_through(square, scale, [], workers=2)) == []


def test_errors_of_the_work_and_of_the_call():
    for workers in (1, 2):
        with pytest.raises(McdiError, match=r"job \d is bad"):
            list(work_through(fails, None, [1], workers=workers))
    with pytest.raises(McdiError, match="died 3 times at the same work"):
        list(work_through(dies_always, None, [1], workers=2))  # one process, three times
    with pytest.raises(McdiError, match="unknown backend 'slurm': choose local or ray"):
        list(work_through(square, None, [1], workers=1, backend="slurm"))


def test_ray_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(McdiError, match=r"pip install 'mcdi\[ray\]'"):
        list(work_through(square, None, [1], workers=1, backend="ray"))


@pytest.mark.slow
def test_preparation_with_dying_workers_gives_the_same_bytes(tmp_path, monkeypatch, backends):
    preparation = Preparation(tasks=40, epochs=9, k=3, lr=0.03, chunk=8, sharpness=2)
    family = Sines(shots=6, queries=20, hidden=6)
    monkeypatch.setenv("MCDI_TEST_PARENT", str(os.getpid()))
    prepare(family, tmp_path / "one", preparation, augment=dies_once)
    for backend in backends:
        monkeypatch.setenv("MCDI_TEST_MARK", str(tmp_path / backend / "mark"))
        (tmp_path / backend).mkdir()
        reports = []
        store = prepare(
            family,
            tmp_path / backend / "store",
            preparation,
            augment=dies_once,
            workers=2,
            backend=backend,
            progress=lambda *call, reports=reports: reports.append(call),
        )
        assert (tmp_path / backend / "mark").exists(), "no worker died: this tests nothing"
        assert len(store) == 40 and [done for _, done, *_ in reports] == [0, 8, 16, 24, 32, 40]
        for path in (tmp_path / "one").iterdir():
            assert path.read_bytes() == (tmp_path / backend / "store" / path.name).read_bytes()
    if "ray" in backends:
        with pytest.raises(McdiError, match=r"job \d is bad"):
            list(work_through(fails, None, [1], workers=1, backend="ray"))
