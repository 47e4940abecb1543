"""Preparation keeps to its memory, resumes to the same bytes, and its store can be read meanwhile."""

import os
import subprocess
import sys
import time
import weakref

import pytest
import torch

from mcdi.errors import McdiError
from mcdi.methods import make_method
from mcdi.trajectories.prepare import CHUNK, Preparation, chunk_size, prepare, tile_size, trajectories
from mcdi.trajectories.store import TrajectoryStore

SETTINGS = Preparation(tasks=40, epochs=9, k=3, lr=0.03, chunk=8)

KILLED = """
import sys, time
from pathlib import Path
from mcdi.trajectories.prepare import prepare, Preparation
from mcdi.tasks.curves import Sines
prepare(Sines(shots=6, queries=20, hidden=6), Path(sys.argv[1]), Preparation(tasks=40, epochs=9, k=3, lr=0.03, chunk=8),
        progress=lambda name, done, total, figures: (print(done, flush=True), time.sleep(0.05)))
"""


def test_kill_9_at_any_moment_resumes_to_the_same_store(tmp_path, sines):
    prepare(sines, tmp_path / "whole", SETTINGS)
    seen = [0]
    for wait in (0.0, 0.06, 0.11):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "cut")], stdout=subprocess.PIPE)
        seen.append(int(process.stdout.readline()))  # fails if the process ended by itself
        time.sleep(wait)
        process.kill()
        process.wait()
        assert len(TrajectoryStore.open(tmp_path / "cut")) >= seen[-1] >= seen[-2]
    assert seen[-1] < 40  # there is something left to do
    prepare(sines, tmp_path / "cut", SETTINGS)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()


def test_the_columns_of_a_store(tmp_path, sines):
    settings = Preparation(tasks=6, epochs=9, k=3, lr=0.03, sharpness=30)
    data = prepare(sines, tmp_path, settings).read()
    net = sines.downstream
    assert data.seeds.tolist() == list(range(6)) and data.epochs.tolist() == [[3, 6, 9]] * 6
    examples = sines.training_data("train", range(6))
    torch.testing.assert_close(data.losses[:, 2], net.loss(data.targets[:, 2], examples, data.mask))
    torch.testing.assert_close(
        data.scores[:, 0], net.score(data.targets[:, 0], sines.sample("train", range(6)).query, data.mask)
    )
    assert data.columns["curve"].shape == (6, 2)
    for n in range(2):
        one = slice(n, n + 1)
        hessian = torch.func.hessian(
            lambda w, n=n, one=one: net.loss(w[None], type(examples)(examples.x[one], examples.y[one]), data.mask[one])[0]
        )(data.targets[n, -1])
        spectrum = torch.linalg.eigvalsh(hessian.reshape(net.space.D, net.space.D))
        assert float(data.columns["sharpness"][n]) == pytest.approx(float(spectrum[-1]), rel=1e-3)
        assert float(data.columns["trace"][n]) == pytest.approx(float(spectrum.sum()), rel=0.5)


def test_bfloat16_on_disk(tmp_path, sines):
    full = prepare(sines, tmp_path / "full", SETTINGS).read()
    half = prepare(sines, tmp_path / "half", Preparation(**{**SETTINGS.__dict__, "storage": "bfloat16"})).read()
    assert torch.equal(half.targets, full.targets.bfloat16().float()) and torch.equal(half.losses, full.losses)


class TestMemory:
    def test_tiles_fit_the_memory_and_give_the_same(self, sines):
        whole = tile_size(sines, "train", SETTINGS, "cpu")
        small = Preparation(**{**SETTINGS.__dict__, "memory": 2e-5})
        few = tile_size(sines, "train", small, "cpu")
        assert 1 <= few < 8 < whole
        a, b = (trajectories(sines, "train", range(9), settings) for settings in (SETTINGS, small))
        torch.testing.assert_close(a.targets, b.targets, atol=1e-5, rtol=1e-4)
        with pytest.raises(McdiError, match="too much for memory = 1e-08"):
            trajectories(sines, "train", range(9), Preparation(memory=1e-8))

    def test_chunks(self, sines):
        assert chunk_size(sines, Preparation()) == CHUNK and chunk_size(sines, Preparation(chunk=7)) == 7
        assert chunk_size(sines, Preparation(memory=1e-4)) < 100 and chunk_size(sines, Preparation(memory=1e-9)) == 1


def test_a_store_that_grows_can_be_trained_on(tmp_path, sines):
    sizes = []

    def read(name, done, total, figures):
        if done in (16, 32):
            store = TrajectoryStore.open(tmp_path)
            sizes.append(len(store))
            tiny = {"denoiser": "mlp", "prior": False, "options": {"width": 8, "depth": 1}, "training": {"iterations": 2}}
            make_method("mc-di", tiny).fit(sines, store, seed=0)

    prepare(sines, tmp_path, SETTINGS, progress=read)
    assert sizes == [16, 32]


def test_two_preparations_of_one_folder(tmp_path, sines):
    def again(name, done, total, figures):
        if done == 8:
            script = KILLED.replace("print(done, flush=True)", "None")
            other = subprocess.run(
                [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, env=os.environ
            )
            assert "McdiError" in other.stderr and "another process" in other.stderr

    assert len(prepare(sines, tmp_path, SETTINGS, progress=again)) == 40


def test_invalid_settings_and_folders_raise_errors(sines, tmp_path):
    for wrong in ({"chunk": 0}, {"memory": 0.0}, {"sharpness": -1}):
        with pytest.raises(McdiError, match="must be"):
            Preparation(**wrong)
    prepare(sines, tmp_path, Preparation(tasks=10, epochs=3, chunk=8))
    assert len(prepare(sines, tmp_path, Preparation(tasks=9, epochs=3, chunk=8))) == 10  # it already holds more
    with pytest.raises(McdiError, match="incomplete chunk"):
        prepare(sines, tmp_path, Preparation(tasks=20, epochs=3, chunk=8))
    with pytest.raises(McdiError, match="epochs = 3, not 4"):
        prepare(sines, tmp_path, Preparation(tasks=10, epochs=4, chunk=8))


class Watched:
    """A store that counts how many of its shards a reader holds at once."""

    def __init__(self, store):
        self.store, self.rows, self.alive, self.most = store, store.rows, 0, 0

    def __len__(self):
        return len(self.store)

    def parts(self):
        for part in self.store.parts():
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(part, self.freed)
            yield part

    def freed(self):
        self.alive -= 1


def test_training_on_a_store_equals_training_in_memory_and_reads_one_shard_at_a_time(tmp_path, sines):
    store = prepare(sines, tmp_path, SETTINGS)
    watched = Watched(store)
    tiny = {"options": {"width": 8, "depth": 1}, "training": {"iterations": 3}}
    a, b = (make_method("mc-di", tiny).fit(sines, data, seed=0).state() for data in (store.read(), watched))
    assert a.keys() == b.keys() and all(torch.allclose(a[n], b[n], atol=1e-4) for n in a)
    assert len(store.shards) == 5 and watched.most == 2  # the previous one is freed when the next is read
