"""The commands `mcdi store ...`."""

import pytest
import torch
from conftest import mcdi
from safetensors.torch import load_file
from stores import drawn, equal, some

from mcdi.trajectories.prepare import Preparation, prepare
from mcdi.trajectories.store import TrajectoryStore


@pytest.fixture(scope="module")
def store(tmp_path_factory, sines):
    folder = tmp_path_factory.mktemp("store") / "trajectories"
    prepare(sines, folder, Preparation(tasks=20, epochs=9, k=3, chunk=8))
    return folder


@pytest.fixture
def types(capsys):
    """Types a command; returns its exit code, output and error output, without line breaks from the terminal's width."""

    def call(*arguments):
        capsys.readouterr()
        code = mcdi("store", *arguments)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, " ".join(printed.out.split()), printed.err

    return call


def test_info(types, store, tmp_path):
    code, out, _ = types("info", store)
    assert code == 0
    for text in (
        "sines",
        "train",
        "20, seeds 0 to 19",
        "k = 3",
        "1 units x 19 numbers",
        "float32",
        "kB in 3 shards",
        "sam_rho",
    ):
        assert text in out
    data = TrajectoryStore.open(store).read()
    for i in range(3):
        assert f"{i + 1} │ {3 * i + 3} │ {data.scores.mean(0)[i]:.4g} │ {data.losses.mean(0)[i]:.4g} │" in out
    _, put = drawn(tmp_path / "columns", [3, 2], {"storage": "bfloat16"})
    _, out, _ = types("info", tmp_path / "columns")
    assert "bfloat16" in out and f"trace │ mean {put.columns['trace'].mean():.4g}" in out
    assert f"classes │ mean {put.columns['classes'].double().mean():.4g}" in out


def test_verify(types, store, tmp_path):
    assert types("verify", store)[:2] == (0, "3 shards, 20 tasks: all good")
    made, _ = drawn(tmp_path, [2, 3, 4])
    for file in ("shard-00000.safetensors", "shard-00002.safetensors"):
        data = bytearray((tmp_path / file).read_bytes())
        data[100] ^= 8
        (tmp_path / file).write_bytes(data)
    code, out, err = types("verify", tmp_path)
    first, second = err.splitlines()
    assert code == 1 and not out and "shard-00000" in first and "shard-00002" in second
    assert len(made.verify()) == 2


def test_merge(types, tmp_path):
    _, x = drawn(tmp_path / "a", [3, 2])
    TrajectoryStore.create(tmp_path / "b", {}).append(
        some(4, None, 100, classes=torch.zeros(4, 2, dtype=torch.int64), trace=torch.rand(4))
    )
    assert types("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c")[0] == 0
    merged = TrajectoryStore.open(tmp_path / "c").read()
    assert len(merged) == 9 and equal(merged.rows(slice(5)), x)
    code, _, err = types("merge", tmp_path / "a", tmp_path / "c", "--out", tmp_path / "d")
    assert code == 1 and err.startswith("error: seed 0 is in ") and len(err.splitlines()) == 1


def test_export_a_store(types, store, tmp_path):
    assert types("export", store, f"file://{tmp_path}/copy")[0] == 0
    assert sorted(p.name for p in (tmp_path / "copy").iterdir()) == [
        "index.json",
        *(shard["file"] for shard in TrajectoryStore.open(store).shards),
    ]
    assert types("verify", f"file://{tmp_path}/copy")[:2] == (0, "3 shards, 20 tasks: all good")


def test_export_the_weights_of_one_task(types, store, sines, tmp_path):
    data, path = TrajectoryStore.open(store).read(), tmp_path / "w.safetensors"
    for options, i in (((), 2), (("--target", 1), 0)):
        assert types("export", store, path, "--seed", 13, *options)[0] == 0
        weights = load_file(path)
        sines.downstream.module.load_state_dict(weights)
        assert torch.equal(sines.downstream.space.pack({n: w[None] for n, w in weights.items()})[0], data.targets[13, i])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("info", "nowhere"), "nowhere/index.json does not exist"),
        (("info", "gopher://a"), "unknown protocol 'gopher'"),
        (("export", "STORE", "x", "--target", 2), "--target 2 needs --seed"),
        (("export", "STORE", "x", "--seed", 99), "no task with seed 99"),
        (("export", "STORE", "x", "--seed", 1, "--target", 4), "choose 1..3"),
        (("export", "STORE", "STORE"), "holds a store already"),
    ],
)
def test_errors_are_one_sentence(types, store, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = types(*(store if a == "STORE" else a for a in arguments))
    assert code == 1 and err.startswith("error: ") and message in err and len(err.splitlines()) == 1


def test_help_teaches(types):
    for command in ("info", "verify", "merge", "export"):
        code, out, _ = types(command, "--help")
        assert code == 0 and f"mcdi store {command}" in out and "Example" in out
