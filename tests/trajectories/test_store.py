"""A store loses no finished shard, shows no unfinished one, and detects every change."""

import errno
import os
import random
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import drawn, equal, some

from mcdi.errors import McdiError
from mcdi.trajectories.store import Trajectories, TrajectoryStore
from mcdi.utils import files
from mcdi.utils.files import read_json, read_tensors, write_json, write_tensors


def test_append_and_read(tmp_path):
    store = TrajectoryStore.create(tmp_path / "s", {"a": 1})
    for empty in (store.read, lambda: store.rows(torch.tensor([0]))):
        with pytest.raises(McdiError, match="holds no trajectories"):
            empty()
    store.append(some(3, 1.0))
    store.append(some(2, 2.0))
    again = TrajectoryStore.open(tmp_path / "s")
    assert len(again) == 5 and again.meta == {"a": 1} and again.numbers() == {0, 1}
    assert again.read().targets[:, 0, 0, 0].tolist() == [1, 1, 1, 2, 2]
    assert TrajectoryStore.create(tmp_path / "s", {"a": 1}).index == again.index
    with pytest.raises(McdiError, match="a = 1, not 2"):
        TrajectoryStore.create(tmp_path / "s", {"a": 2})


def test_trajectories_have_one_row_for_each_task():
    with pytest.raises(McdiError, match=r"trace has shape \(4,\), but there are 3 tasks"):
        some(3, trace=torch.zeros(4))
    with pytest.raises(McdiError, match="cannot be called 'seeds'"):
        some(3, seeds=torch.zeros(3))
    data = some(5, None, trace=torch.arange(5.0))
    assert data.rows(torch.tensor([4, 0])).columns["trace"].tolist() == [4, 0]
    assert equal(Trajectories.cat([data.rows(slice(2)), data.rows(slice(2, 5))]), data)


class TestRows:
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data(), st.lists(st.integers(1, 7), min_size=1, max_size=6), st.sampled_from(["float32", "bfloat16"]))
    def test_as_plain_indexing(self, tmp_path_factory, data, sizes, storage):
        store, put = drawn(tmp_path_factory.mktemp("rows"), sizes, {"storage": storage})
        if storage == "bfloat16":
            put = Trajectories.from_tensors({**put.tensors(), "targets": put.targets.bfloat16().float()})
        assert equal(store.read(), put)
        for _ in range(3):
            index = torch.tensor(data.draw(st.lists(st.integers(0, sum(sizes) - 1), max_size=20)), dtype=torch.int64)
            assert equal(store.rows(index), put.rows(index))

    def test_outside(self, tmp_path):
        store, _ = drawn(tmp_path, [3, 2])
        for index in ([5], [0, -1]):
            with pytest.raises(IndexError):
                store.rows(torch.tensor(index))

    def test_verified_once_then_mapped(self, tmp_path):
        store, put = drawn(tmp_path, [3, 3])
        assert equal(store.rows(torch.tensor([1])), put.rows(torch.tensor([1])))
        for shard in store.shards:
            (tmp_path / shard["file"]).unlink()
        assert equal(store.rows(torch.tensor([2, 0])), put.rows(torch.tensor([2, 0])))
        with pytest.raises(McdiError, match=r"shard-00001.*missing"):
            store.rows(torch.tensor([0, 4]))

    def test_chunks_finished_out_of_order(self, tmp_path):
        """Workers write, the coordinator commits; the files do not depend on the order."""
        parts = [some(n, None, 10 * n) for n in (2, 3, 4)]
        store, reader = TrajectoryStore.create(tmp_path / "a", {}), TrajectoryStore.open(tmp_path / "a")
        with store.writer():
            for number in (2, 0, 1):
                entry = TrajectoryStore.open(tmp_path / "a").write_shard(number, parts[number])
                assert number not in TrajectoryStore.open(tmp_path / "a").numbers()
                store.commit(entry)
                reader.refresh()
                kept = Trajectories.cat([parts[n] for n in sorted(store.numbers())])
                assert equal(reader.rows(torch.arange(len(reader))), kept)
        with pytest.raises(McdiError, match="holds chunk 1 already"):
            store.write_shard(1, parts[1])
        with pytest.raises(McdiError, match="holds chunk 1 already"):
            store.commit(entry)
        other = TrajectoryStore.create(tmp_path / "b", {})
        for part in parts:
            other.append(part)
        for path in (tmp_path / "a").iterdir():
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_bfloat16_halves_the_targets(tmp_path):
    full, put = drawn(tmp_path / "a", [50])
    store = TrajectoryStore.create(tmp_path / "b", {"storage": "bfloat16"})
    store.append(put)
    assert full.shards[0]["bytes"] - store.shards[0]["bytes"] == pytest.approx(2 * put.targets.numel(), abs=16)
    assert store.read().targets.dtype == torch.float32
    torch.testing.assert_close(store.read().targets, put.targets, rtol=2**-8, atol=0)
    assert store.read().losses.equal(put.losses)
    with pytest.raises(McdiError, match="unknown storage 'int8': choose float32 or bfloat16"):
        TrajectoryStore.create(tmp_path / "c", {"storage": "int8"})


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
    first, second = store.verify()
    assert "shard-00000" in first and "checksum" in first and "shard-00001" in second and "NaN" in second
    path.unlink()
    with pytest.raises(McdiError, match=r"shard-00000.*missing"):
        store.read()
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(McdiError, match=r"index.json cannot be read as JSON"):
        TrajectoryStore.open(tmp_path)
    (tmp_path / "index.json").write_text('{"format": 99}')
    with pytest.raises(McdiError, match="format 2"):
        TrajectoryStore.open(tmp_path)
    with pytest.raises(McdiError, match="does not exist"):
        TrajectoryStore.open(tmp_path / "nowhere")


def test_shards_of_other_columns_are_named(tmp_path):
    store = TrajectoryStore.create(tmp_path, {})
    store.append(some(3))
    store.append(some(3, trace=torch.zeros(3)))
    with pytest.raises(McdiError, match=r"shard-00001.*another type or shape of 'trace'"):
        store.read()


def test_every_flipped_bit_is_detected_and_its_file_named(tmp_path):
    store, _ = drawn(tmp_path, [3, 4], {"lr": 1e-05, "name": "\u00e9"})
    draw = random.Random(0)
    for file in ("index.json", *(shard["file"] for shard in store.shards)):
        path = tmp_path / file
        whole = path.read_bytes()
        if file == "index.json":
            bits = [*range(0, 8 * len(whole), 11), 8 * whole.index(b"e-05") + 5]  # the last makes it 1E-05, the same number
        else:  # in the header, where safetensors keeps names, shapes and offsets, and anywhere
            bits = [draw.randrange(8 * n) for n in (200, len(whole)) for _ in range(20)]
        for bit in bits:
            data = bytearray(whole)
            data[bit // 8] ^= 1 << bit % 8
            path.write_bytes(data)
            try:
                problems = TrajectoryStore.open(tmp_path).verify()
            except McdiError as error:
                problems = [str(error)]
            assert len(problems) == 1 and file in problems[0], (file, bit, problems)
        for keep in (0, 1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:keep])
            with pytest.raises(McdiError, match=file):
                TrajectoryStore.open(tmp_path).rows(torch.arange(7))
        path.write_bytes(whole)
    assert store.verify() == []


APPENDING = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[2])
from stores import some
from mcdi.trajectories.store import TrajectoryStore
store = TrajectoryStore.open(sys.argv[1])
with store.writer():
    print("writing", flush=True)
    for n in range(int(sys.argv[3])):
        store.append(some(5, float(n), 5 * n))
    sys.stdin.read()
"""


@pytest.fixture
def appending(tmp_path):
    """Starts a process that holds the writer of `tmp_path`, and appends n shards."""
    started = []

    def start(shards):
        command = [sys.executable, "-c", APPENDING, str(tmp_path), os.path.dirname(__file__), str(shards)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == b"writing\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_reader_sees_only_growth_while_another_process_writes(tmp_path, appending):
    reader = TrajectoryStore.create(tmp_path, {})
    appending(60)
    seen, deadline = [0], time.monotonic() + 60
    while len(reader) < 300 and time.monotonic() < deadline:
        reader.refresh()
        assert len(reader) >= seen[-1] and len(reader) % 5 == 0
        if len(reader) > seen[-1]:
            index = torch.randperm(len(reader))
            assert torch.equal(reader.rows(index).targets[:, 0, 0, 0], (index // 5).float())
            assert torch.equal(reader.rows(index).seeds, index)
            seen.append(len(reader))
    assert seen[-1] == 300 and len(seen) > 2


def test_one_writer_at_a_time_and_none_after_a_kill(tmp_path, appending):
    store = TrajectoryStore.create(tmp_path, {})
    process = appending(1)
    for write in (lambda: store.append(some(2)), lambda: store.writer().__enter__()):
        with pytest.raises(McdiError, match="another process is writing to .*: wait until it ends"):
            write()
    process.kill()
    process.wait()
    (tmp_path / ".abc.tmp").write_bytes(b"half")
    (tmp_path / "shard-00001.safetensors").write_bytes(b"half")  # not in the index: does not exist
    with store.writer():
        before = len(store)
        store.append(some(2))
    assert len(TrajectoryStore.open(tmp_path).read()) == before + 2
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_folders_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(McdiError, match="cannot write to .*choose another --out"):
        TrajectoryStore.create(tmp_path / "file", {})

    def unsupported(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    with pytest.raises(McdiError, match=r"cannot be locked \(No locks available\)"):
        TrajectoryStore.create(tmp_path / "s", {})


def test_a_full_disk_leaves_the_store_unchanged(tmp_path, monkeypatch):
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
