"""A classifier as a file, made by the server in a process of its own."""

import asyncio
import json
import shutil
import signal

import onnxruntime
import pytest
import torch
from serving import images, message, serving, task

import mcdi as package
from mcdi.serve import api
from mcdi.serve import classifier_file as module
from mcdi.serve.decode import decode_inputs
from mcdi.serve.limits import Limits
from mcdi.serve.wire import Inputs
from mcdi.utils.files import read_json, write_json


def test_the_file_classifies_images_as_the_server_does(client, folders):
    before = torch.backends.mkldnn.enabled, torch.is_grad_enabled()
    answer = client.post("/v1/generate", json=task(format="onnx"))
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/octet-stream"
    assert float(answer.headers["x-mcdi-confidence"]) == 1
    session = onnxruntime.InferenceSession(answer.content)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["ring", "stroke"]
    queries = images("ring", "stroke", "stroke")
    x = decode_inputs(Inputs(**queries), "queries", package.load(folders["drawings"]), Limits())
    (logits,) = session.run(None, {"images": (x.float() / 255).numpy()})
    expected = client.post("/v1/predict", json={**task(), "queries": queries}).json()["probabilities"]
    torch.testing.assert_close(torch.from_numpy(logits).softmax(-1), torch.tensor(expected), rtol=1e-3, atol=1e-4)
    assert (torch.backends.mkldnn.enabled, torch.is_grad_enabled()) == before


def test_it_takes_too_long(client, monkeypatch):
    started, start = [], asyncio.create_subprocess_exec

    async def remembered(*arguments, **options):
        started.append(await start(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", remembered)
    monkeypatch.setattr(module, "TIMEOUT", 0.01)
    assert "took more than 0.01 seconds" in message(client.post("/v1/generate", json=task(format="onnx")), 504)
    assert [process.returncode for process in started] == [-signal.SIGKILL]


@pytest.mark.parametrize(("exists", "message"), [(False, "config.json does not exist"), (True, "see the log of the server")])
def test_failures_of_the_other_process(folders, tmp_path, exists, message):
    """A sentence is passed on; what nobody foresaw is for the log."""
    weights = {"other": torch.zeros(2, 7)}  # of another network
    with pytest.raises(package.McdiError, match=message):
        asyncio.run(module.classifier_file(folders["drawings"] if exists else tmp_path, weights, ["a", "b"]))


def test_files_that_are_replaced_meanwhile(folders, tmp_path, monkeypatch):
    folder = shutil.copytree(folders["drawings"], tmp_path / "model")
    with serving({"model": folder}) as client:
        config = (folder / "config.json").read_text()
        write_json(folder / "config.json", {**read_json(folder / "config.json"), "more": 1})
        assert "being replaced" in message(client.post("/v1/generate", json=task("model", format="onnx")), 503)
        client.service.reload()
        assert client.service.models.folder("model") == folder

        async def replaced(*_):
            (folder / "config.json").write_text(config)
            return b""

        monkeypatch.setattr(api, "classifier_file", replaced)
        assert "being replaced" in message(client.post("/v1/generate", json=task("model", format="onnx")), 503)
