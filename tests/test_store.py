"""Nothing finished is lost, nothing half-written is seen, nothing changed goes unnoticed."""

import errno
import os
import subprocess
import sys
import time

import pytest
import torch

from mcdi import files
from mcdi.errors import McdiError
from mcdi.files import read_json, read_tensors, write_json, write_tensors
from mcdi.prepare import Preparation, prepare, trajectories
from mcdi.store import Trajectories, TrajectoryStore


def some(n, value=0.0):
    return Trajectories(
        torch.full((n, 3, 2, 4), value),
        torch.ones(n, 2, dtype=torch.bool),
        torch.arange(n),
        torch.zeros(n, 3),
        torch.zeros(n, 3),
    )


def test_append_and_read(tmp_path):
    store = TrajectoryStore.create(tmp_path / "s", {"a": 1})
    with pytest.raises(McdiError, match="holds no trajectories"):
        store.read()
    store.append(some(3, 1.0))
    store.append(some(2, 2.0))
    again = TrajectoryStore.open(tmp_path / "s")
    assert len(again) == 5 and again.meta == {"a": 1}
    assert again.read().targets[:, 0, 0, 0].tolist() == [1, 1, 1, 2, 2]
    assert TrajectoryStore.create(tmp_path / "s", {"a": 1}).index == again.index
    with pytest.raises(McdiError, match="a = 1, not 2"):
        TrajectoryStore.create(tmp_path / "s", {"a": 2})


def test_damage_is_named(tmp_path):
    store = TrajectoryStore.create(tmp_path, {})
    store.append(some(3))
    store.append(some(3, float("nan")))
    with pytest.raises(McdiError, match=r"shard-00001.*NaN"):
        store.read()
    path = tmp_path / "shard-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(McdiError, match=r"shard-00000.*checksum"):
        store.read()
    path.unlink()
    with pytest.raises(McdiError, match=r"shard-00000.*missing"):
        store.read()
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(McdiError, match=r"index.json cannot be read as JSON"):
        TrajectoryStore.open(tmp_path)
    (tmp_path / "index.json").write_text('{"format": 99}')
    with pytest.raises(McdiError, match="format 1"):
        TrajectoryStore.open(tmp_path)
    with pytest.raises(McdiError, match="does not exist"):
        TrajectoryStore.open(tmp_path / "nowhere")


def test_full_disk_keeps_what_was_there(tmp_path, monkeypatch):
    store = TrajectoryStore.create(tmp_path, {})
    store.append(some(3, 5.0))
    before = sorted(os.listdir(tmp_path))

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(McdiError, match="No space left on device"):
        store.append(some(3))
    with pytest.raises(McdiError, match="cannot write"):
        write_json(tmp_path / "index.json", {})
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == before
    assert TrajectoryStore.open(tmp_path).read().targets.unique().tolist() == [5.0]


def test_tensors_round_trip_and_bad_files(tmp_path):
    tensors = {"a": torch.arange(4.0), "b": torch.ones(2, dtype=torch.bool)}
    write_tensors(tmp_path / "x.safetensors", tensors, {"names": ["p", "q"]})
    back, metadata = read_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(back[n], t) for n, t in tensors.items()) and metadata == {"names": ["p", "q"]}
    (tmp_path / "x.safetensors").write_bytes(b"\x80\x02pickle")
    with pytest.raises(McdiError, match="not a readable safetensors"):
        read_tensors(tmp_path / "x.safetensors")
    with pytest.raises(McdiError, match="does not exist"):
        read_tensors(tmp_path / "y.safetensors")
    with pytest.raises(McdiError, match="does not exist"):
        read_json(tmp_path / "y.json")


HOW = Preparation(tasks=40, epochs=9, k=3, lr=0.03, chunk=8)

KILLED = """
import sys, time
from pathlib import Path
from mcdi.prepare import prepare, Preparation
from mcdi.tasks.toy import Sines
prepare(Sines(shots=6, queries=20, hidden=6), Path(sys.argv[1]), Preparation(tasks=40, epochs=9, k=3, lr=0.03, chunk=8),
        progress=lambda done, total: (print(done, flush=True), time.sleep(0.05)))
"""


def test_kill_9_at_any_moment_resumes_to_the_same_store(tmp_path, sines):
    whole = prepare(sines, tmp_path / "whole", HOW).read()
    for wait in (0.0, 0.06, 0.11):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "cut")], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(wait)
        process.kill()
        process.wait()
        TrajectoryStore.open(tmp_path / "cut")  # opens, whatever was under way
    resumed = prepare(sines, tmp_path / "cut", HOW).read()
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_matrix_adam_equals_one_adam_a_task(sines):
    many = trajectories(sines, "train", range(5), HOW)
    net = sines.downstream
    for seed in range(5):
        w = net.theta0(0, 1)[None].clone().requires_grad_()
        data, mask = sines.training_data("train", [seed]), torch.ones(1, 1, dtype=torch.bool)
        optimiser = torch.optim.Adam([w], lr=HOW.lr)
        for epoch in range(1, 10):
            optimiser.zero_grad()
            net.loss(w, data, mask).sum().backward()
            optimiser.step()
            if epoch % 3 == 0:
                torch.testing.assert_close(many.targets[seed, epoch // 3 - 1], w[0].detach(), rtol=1e-4, atol=1e-5)


def test_sam_and_augmentation_change_the_path_and_loss_falls(sines):
    plain = trajectories(sines, "train", range(4), HOW)
    assert bool((plain.losses[:, -1] < plain.losses[:, 0]).all())
    for change in ({"sam_rho": 0.05}, {"augment": 0.1}):
        other = trajectories(sines, "train", range(4), Preparation(**{**HOW.__dict__, **change}))
        assert not torch.allclose(other.targets, plain.targets)
        assert bool((other.losses[:, -1] < other.losses[:, 0]).all())


def test_sam_step_by_hand(sines):
    """One epoch of SAM: Adam's first step has the sign of the gradient at w + rho g / |g|, the norm taken per task."""
    how = Preparation(tasks=2, epochs=1, k=1, lr=0.01, sam_rho=0.5)
    got = trajectories(sines, "train", range(2), how).targets[:, 0]
    net = sines.downstream
    data, mask = sines.training_data("train", range(2)), torch.ones(2, 1, dtype=torch.bool)
    w = net.theta0(0, 1)[None].repeat(2, 1, 1)

    def gradient(at):
        at = at.clone().requires_grad_()
        return torch.autograd.grad(net.loss(at, data, mask).sum(), at)[0]

    g = gradient(w)
    g = gradient(w + torch.stack([0.5 * g[b] / g[b].norm() for b in range(2)]))
    torch.testing.assert_close(got, w - 0.01 * g.sign(), rtol=1e-3, atol=1e-4)


def test_weight_decay_is_adams_on_matrices_and_none_on_biases(sines):
    how = Preparation(tasks=1, epochs=5, k=1, lr=0.03, weight_decay=0.5)
    got = sines.downstream.space.unpack(trajectories(sines, "train", [0], how).targets[:, 0])
    net = sines.downstream
    params = {n: p.clone().requires_grad_() for n, p in net.space.unpack(net.theta0(0, 1)[None]).items()}
    data, mask = sines.training_data("train", [0]), torch.ones(1, 1, dtype=torch.bool)
    groups = [{"params": [p], "weight_decay": 0.5 if p.ndim > 2 else 0.0} for p in params.values()]  # one dimension is the task
    optimiser = torch.optim.Adam(groups, lr=0.03)
    for _ in range(5):
        optimiser.zero_grad()
        net.loss(net.space.pack(params), data, mask).sum().backward()
        optimiser.step()
    for n, p in params.items():
        torch.testing.assert_close(got[n], p.detach(), rtol=1e-4, atol=1e-5)


def test_bad_preparation(sines, tmp_path):
    with pytest.raises(McdiError, match="k = 20"):
        Preparation(epochs=9, k=20)
    with pytest.raises(McdiError, match="not finite"):
        trajectories(sines, "train", range(2), Preparation(tasks=2, epochs=3, lr=1e30))
    prepare(sines, tmp_path, Preparation(tasks=10, epochs=3, chunk=8))
    with pytest.raises(McdiError, match="part of a chunk"):
        prepare(sines, tmp_path, Preparation(tasks=20, epochs=3, chunk=8))
