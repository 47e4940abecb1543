"""Stores are merged and copied whole or not at all, and the weights of one task are those of its row."""

import fsspec
import pytest
import torch
from fsspec.registry import known_implementations
from stores import drawn, equal, some

from mcdi.errors import McdiError
from mcdi.trajectories.copy import export, merge, weights_of
from mcdi.trajectories.prepare import Preparation, prepare
from mcdi.trajectories.store import Trajectories, TrajectoryStore


def test_merge(tmp_path):
    _, x = drawn(tmp_path / "a", [3, 2], {"lr": 0.1, "tasks": 5})
    b = TrajectoryStore.create(tmp_path / "b", {"lr": 0.1, "tasks": 4})
    y = some(4, None, 100, classes=torch.zeros(4, 2, dtype=torch.int64), trace=torch.rand(4))
    b.append(y)
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert equal(merged.read(), Trajectories.cat([x, y])) and merged.meta == {"lr": 0.1, "tasks": 9}
    assert merged.numbers() == {0, 1, 2} and merged.verify() == []
    with pytest.raises(McdiError, match="c exists already"):
        merge([tmp_path / "a"], tmp_path / "c")


def test_stores_that_do_not_fit_raise_errors(tmp_path):
    drawn(tmp_path / "a", [3], {"lr": 0.1, "k": 3})
    drawn(tmp_path / "b", [4], {"lr": 0.1, "k": 3})
    drawn(tmp_path / "c", [2], {"lr": 0.2, "k": 1})
    TrajectoryStore.create(tmp_path / "d", {"lr": 0.1, "k": 3}).append(some(2, 0.0, 50))
    for others, message in (
        (["b"], "seed 0 is in .*a and in .*b: merge stores of different seeds"),
        (["c"], "c was made with k = 1, .*a with 3"),
        (["d"], "d has another type or shape of 'classes'"),
        (["e"], "e.*does not exist"),
    ):
        with pytest.raises(McdiError, match=message):
            merge([tmp_path / n for n in ("a", *others)], tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["folder", "file", "memory"])
def test_export_and_read_back(tmp_path, kind):
    store, put = drawn(tmp_path / "a", [3, 2], {"lr": 0.1})
    destination = {"folder": tmp_path / "b", "file": f"file://{tmp_path}/b", "memory": f"memory://{tmp_path.name}/b"}[kind]
    export(tmp_path / "a", destination)
    copy = TrajectoryStore.open(destination)
    assert copy.index == store.index and equal(copy.read(), put) and copy.verify() == []
    index = torch.tensor([4, 0, 3])
    assert equal(copy.rows(index), put.rows(index))
    with pytest.raises(McdiError, match="holds a store already"):
        export(tmp_path / "a", destination)
    if kind != "folder":
        for write in (lambda: copy.append(some(2)), lambda: copy.write_shard(7, some(2))):
            with pytest.raises(McdiError, match="b is read-only: write to a folder"):
                write()


def test_damage_at_a_url(tmp_path):
    drawn(tmp_path / "a", [3, 2])
    export(tmp_path / "a", f"memory://{tmp_path.name}/d")
    system = fsspec.filesystem("memory")
    path = f"/{tmp_path.name}/d/shard-00001.safetensors"
    system.pipe_file(path, system.cat_file(path)[:-1] + b"?")
    copy = TrajectoryStore.open(f"memory://{tmp_path.name}/d/")
    assert len(copy.rows(torch.tensor([2]))) == 1  # reads the first shard only
    with pytest.raises(McdiError, match=r"memory://.*/d/shard-00001.safetensors does not match its checksum"):
        copy.rows(torch.tensor([3]))
    system.rm(path)
    with pytest.raises(McdiError, match="shard-00001.*does not exist"):
        copy.read()


def test_unusable_urls_raise_errors(tmp_path, monkeypatch):
    drawn(tmp_path / "a", [3])
    for protocol, name in (("lacking", "no_such_package.FileSystem"), ("breaking", "builtins.int")):
        entry = {"class": name, "err": "Install no_such_package to use it"}
        monkeypatch.setitem(known_implementations, protocol, entry)
    for url, message in (
        ("gopher://a/b", "unknown protocol 'gopher' in gopher://a/b"),
        ("memory://nowhere", "memory://nowhere/index.json does not exist: check the address"),
        (f"file://{tmp_path}/nowhere", "nowhere/index.json does not exist"),
        ("lacking://a/b", "needs a package that is not installed: Install no_such_package"),
        ("breaking://a/b", "cannot be used .*: check the address and your access"),
    ):
        with pytest.raises(McdiError, match=message):
            TrajectoryStore.open(url)
        if not url.startswith(("memory", "file")):
            with pytest.raises(McdiError, match=message):
                export(tmp_path / "a", url)


def test_weights_of_one_task(tmp_path, sines):
    store = prepare(sines, tmp_path, Preparation(tasks=10, epochs=6, k=3, chunk=4))
    data = store.read()
    for target, i in ((None, 2), (1, 0), (3, 2)):
        expected = sines.downstream.space.unpack(data.targets[7:8, i])
        weights = weights_of(TrajectoryStore.open(tmp_path), 7, target)
        assert list(weights) == list(expected)
        assert all(torch.equal(weights[n], expected[n][0]) for n in weights)
        sines.downstream.module.load_state_dict(weights)
    with pytest.raises(McdiError, match="no task with seed 10"):
        weights_of(store, 10)
    with pytest.raises(McdiError, match=r"target = 4 names no local target: choose 1..3"):
        weights_of(store, 1, 4)


def test_weights_of_a_task_with_fewer_rows(tmp_path):
    with pytest.raises(McdiError, match="has no names of parameters"):
        weights_of(drawn(tmp_path / "a", [1])[0], 0)
    meta = {"space": {"unit": "row", "parameters": {"weight": [[2, 3], "float32"], "bias": [[2], "float32"]}}}
    store = TrajectoryStore.create(tmp_path / "b", meta)
    data = some(2, None)
    data.mask[1, 1] = False
    store.append(data)
    assert {n: tuple(w.shape) for n, w in weights_of(store, 0).items()} == {"weight": (2, 3), "bias": (2,)}
    weights = weights_of(store, 1, 2)
    assert torch.equal(weights["weight"][0], data.targets[1, 1, 0, :3]) and weights["bias"].shape == (1,)
    # The second unit belongs to no row: it follows the rows of every task.
    parameters = {"weight": [[1, 3], "float32"], "bias": [[1], "float32"], "scale": [[2], "float32"]}
    store = TrajectoryStore.create(tmp_path / "c", {"space": {"unit": "row", "parameters": parameters, "shared": ["scale"]}})
    data.mask[1] = torch.tensor([False, True])
    store.append(data)
    weights = weights_of(store, 1)
    assert weights["weight"].shape == (0, 3) and torch.equal(weights["scale"], data.targets[1, -1, 1, :2])
