"""Models with an exported sampler: it is used where it gives the same weights as the model, and nowhere else."""

import shutil
from dataclasses import replace

import pytest
import torch
from serving import serving, task, vectors
from test_answers import weights_of

from mcdi import load
from mcdi.generator.export import Exported, export
from mcdi.serve.models import SAMPLER

pytest.importorskip("onnxscript", reason="needs mcdi[onnx]")
pytest.importorskip("onnxruntime", reason="needs mcdi[onnx]")


@pytest.fixture(scope="module")
def both(folders, tmp_path_factory):
    """The model of drawings with a stochastic chain of two steps, which is short to export, without and with that file."""
    root, generator = tmp_path_factory.mktemp("both"), load(folders["drawings"])
    generator.method = generator.method.with_sampling(replace(generator.method.sampling, steps=2))
    generator.save_pretrained(root / "plain")
    folder = shutil.copytree(root / "plain", root / "m")
    export(load(folder), folder / SAMPLER, "onnx", weights=folder / "model.safetensors")
    return {"plain": root / "plain", "m": folder}


def generated(client, model, **options):
    return weights_of(client.post("/v1/generate", json=task(model, format="safetensors", **options)))


def models(client):
    return {m["name"]: m["exported"] for m in client.get("/v1/models").json()["models"]}


def test_the_file_gives_the_weights_of_the_model(both, monkeypatch):
    batches = []
    run = Exported.run

    def record(self, *arguments):
        batches.append(len(arguments[0]))
        return run(self, *arguments)

    monkeypatch.setattr(Exported, "run", record)
    with serving(both, wait=0) as client:
        assert models(client) == {"plain": False, "m": True}
        for seed in (0, 5):
            got, want = generated(client, "m", seed=seed), generated(client, "plain", seed=seed)
            for n, w in want.items():
                torch.testing.assert_close(got[n], w, rtol=1e-4, atol=1e-4)
        assert batches == [1, 1]
        other = generated(client, "m", seed=5, steps=3)
        assert batches == [1, 1] and not torch.allclose(other["weight"], got["weight"], atol=1e-3)  # the model runs
        stored = client.post("/v1/generate", json=task("m")).json()
        answer = client.post("/v1/predict", json={"handle": stored["handle"], "queries": task()["support"]}).json()
        direct = client.post("/v1/predict", json={**task("plain"), "queries": task()["support"]}).json()
        torch.testing.assert_close(
            torch.tensor(answer["probabilities"]), torch.tensor(direct["probabilities"]), rtol=1e-3, atol=1e-4
        )
        bad = client.post("/v1/generate", json={"model": "m", "support": vectors(), "labels": [0, 0, 1, 1, 2, 2]})
        assert bad.status_code == 422 and len(batches) == 3


def test_files_that_do_not_fit_are_not_used(both, folders, tmp_path, caplog):
    other, steps, broken = (shutil.copytree(both["m"], tmp_path / n) for n in ("other", "steps", "broken"))
    shutil.copy(folders["closed"] / "config.json", other)
    shutil.copy(folders["closed"] / "model.safetensors", other)
    export(load(steps), steps / SAMPLER, "onnx", steps=1)
    (broken / SAMPLER).write_bytes(b"no model")
    with serving({"other": other, "steps": steps, "broken": broken}) as client:
        assert models(client) == {"other": False, "steps": False, "broken": False}
        assert client.post("/v1/generate", json=task("broken")).status_code == 200
        for text in ("made from other weights", "it was exported with {'steps': 1}", "it is damaged or of an earlier version"):
            assert text in caplog.text
        shutil.copy(both["m"] / SAMPLER, steps / SAMPLER)
        client.service.reload()
        assert models(client) == {"other": False, "steps": True, "broken": False}
