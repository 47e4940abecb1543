"""The server as a process: its client, shutdown, reload, and errors at the start."""

import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import nullcontext

import pytest
import torch
from conftest import mcdi
from serving import png, serving, task

import mcdi as package
from mcdi.errors import McdiError
from mcdi.serve import models
from mcdi.serve.client import Client
from mcdi.serve.limits import Keys, Limits, Refused
from mcdi.serve.models import Models, parse_models
from mcdi.serve.run import serve
from mcdi.serve.service import Service

FILES = {"images": [png("ring"), png("ring", shift=1), png("stroke"), png("stroke", shift=1)]}
LABELS = ["ring", "ring", "stroke", "stroke"]


@pytest.fixture
def started(folders, tmp_path):
    """A process of `mcdi serve` that batches for half a second; killed afterwards."""
    keys = tmp_path / "keys"
    keys.write_text("ann:" + "a" * 20 + "\n")
    folder = shutil.copytree(folders["drawings"], tmp_path / "drawings")
    command = [sys.executable, "-m", "mcdi", "serve", f"drawings={folder}", "--port", "0", "--wait", "500"]
    process = subprocess.Popen([*command, "--api-key-file", keys, "--body", "0.1"], stderr=subprocess.PIPE, text=True)
    first = process.stderr.readline()
    assert " serves" in first, first + process.stderr.read()
    yield process, first.split()[0], folder
    process.kill()
    process.communicate()


def test_a_process_from_its_first_request_to_its_last(started, folders):
    process, address, folder = started
    with Client(address, key="a" * 20) as client:
        assert client.health()["status"] == "ok" and client.models()[0]["name"] == "drawings"
        generated = client.generate("drawings", FILES, LABELS, seed=3)
        stored = client.keep("drawings", FILES, LABELS, seed=3)
        assert generated.classes == stored.classes == ["ring", "stroke"] and generated.confidence == stored.confidence == 1
        predicted = client.predict(stored, FILES)
        assert set(predicted.labels) <= {"ring", "stroke"} and predicted.probabilities.shape == (4, 2)
        generator = package.load(folders["drawings"])
        torch.nn.Linear(64, 2).load_state_dict(generated.weights)
        with pytest.raises(Refused, match="no model of this name") as refused:
            client.keep("other", FILES, LABELS)
        assert refused.value.status == 404
        with pytest.raises(Refused, match="bytes"):
            client.keep("drawings", {"images": [b"x" * 10**6] * 2}, [0, 1])
        assert client.health()["status"] == "ok"
        with pytest.raises(Refused, match="Bearer KEY"):
            Client(address).models()
        features = {"features": generator.embed(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))}
        assert client.keep("drawings", features, torch.tensor([0, 1])).classes == [0, 1]

        (folder / "config.json").write_text("{")
        process.send_signal(signal.SIGHUP)
        assert "the old model stays in use" in process.stderr.readline()
        shutil.copy(folders["drawings"] / "config.json", folder / "config.json")
        process.send_signal(signal.SIGHUP)
        assert "new files of" in process.stderr.readline()

        answers = []
        late = [Client(address, key="a" * 20) for _ in range(8)]  # all but one wait for half a second in a batch
        ask = lambda client: answers.append(client.generate("drawings", FILES, LABELS, seed=3))
        threads = [threading.Thread(target=ask, args=(client,)) for client in late]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert len(answers) == len(late)
        for answer in answers:
            torch.testing.assert_close(answer.weights, generated.weights, rtol=1e-4, atol=1e-4)
    assert process.wait(30) == 0 and process.stderr.read() == ""
    with pytest.raises(McdiError, match="is it running"):
        Client(address).health()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_start(folders, number):
    """The signal comes after the socket listens and before uvicorn installs its handlers."""
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    urls, service = [], Service(Models({"closed": folders["closed"]}, bf16=True), Limits(), Keys())
    timeout = threading.Timer(60, os._exit, [1])
    timeout.start()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts tests in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt) if number == signal.SIGINT else nullcontext():
            serve(service, "127.0.0.1", 0, ready=lambda url: (urls.append(url), os.kill(os.getpid(), number)))
    finally:
        timeout.cancel()
        for n, handler in before.items():
            signal.signal(n, handler)
    assert urls[0].startswith("http://")


def test_new_files_during_the_start(folders, monkeypatch):
    """SIGHUP while the models are loaded: they are read anew once they serve."""
    numbers = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
    before, reloads, load = {n: signal.getsignal(n) for n in numbers}, [], models.load
    monkeypatch.setattr(models, "load", lambda *a, **o: (signal.raise_signal(signal.SIGHUP), load(*a, **o))[1])
    monkeypatch.setattr(Service, "reload", lambda _: (reloads.append(1), os.kill(os.getpid(), signal.SIGTERM)))
    try:
        assert mcdi("serve", folders["closed"], "--port", 0) == 0 and reloads == [1]
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


class TestReload:
    def test_new_files_are_loaded_and_old_handles_stay(self, folders, tmp_path):
        folder = shutil.copytree(folders["drawings"], tmp_path / "m")
        with serving({"m": folder}) as client:
            handle = client.post("/v1/generate", json=task("m")).json()["handle"]
            query = {"handle": handle, "queries": task()["support"]}
            before = client.post("/v1/predict", json=query).json()["probabilities"]
            old = client.service.models.get("m")
            client.service.reload()
            assert client.service.models.get("m") is old  # nothing has changed
            for broken in (b"{", b"\x00" * 100, pickle.dumps(1)):
                (folder / "model.safetensors").write_bytes(broken)
                client.service.reload()
                assert client.service.models.get("m") is old
            shutil.rmtree(folder)
            client.service.reload()
            assert client.post("/v1/generate", json=task("m")).status_code == 200
            shutil.copytree(folders["closed"], folder)
            client.service.reload()
            assert client.get("/v1/models").json()["models"][0]["method"] == "prototypes"
            assert client.post("/v1/predict", json=query).json()["probabilities"] == before
            metrics = client.get("/metrics").text
            assert 'mcdi_reloads_total{model="m",result="failed"} 4.0' in metrics
            assert 'result="new"} 1.0' in metrics and 'result="same"} 1.0' in metrics


class TestStart:
    def fails(self, capsys, *arguments):
        assert mcdi("serve", *arguments) == 1
        text = capsys.readouterr().err
        assert text.startswith("error: ") and "Traceback" not in text
        return text

    def test_folders_without_a_model(self, folders, tmp_path, capsys):
        (tmp_path / "model.pkl").write_bytes(pickle.dumps({"weights": 1}))
        assert "model.pkl is not a folder" in self.fails(capsys, tmp_path / "model.pkl")
        assert "does not exist" in self.fails(capsys, tmp_path / "none")
        assert "holds no config.json" in self.fails(capsys, tmp_path)
        folder = shutil.copytree(folders["drawings"], tmp_path / "m")
        (folder / "model.safetensors").write_bytes(pickle.dumps({"weights": 1}))
        assert "not a readable safetensors file" in self.fails(capsys, folder)
        assert "two models are called 'drawings'" in self.fails(capsys, folders["drawings"], folders["drawings"])

    def test_key_files(self, folders, tmp_path, capsys):
        for text, message in (("", "holds no key"), ("ann", "line 1 must be tenant:key"), ("#\nann:short", "line 2")):
            (tmp_path / "keys").write_text(text)
            assert message in self.fails(capsys, folders["drawings"], "--api-key-file", tmp_path / "keys")
        assert "does not exist" in self.fails(capsys, folders["drawings"], "--api-key-file", tmp_path / "none")

    def test_a_port_in_use(self, folders, capsys):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            assert f"port {port}" in self.fails(capsys, folders["drawings"], "--port", port)

    def test_names(self, folders):
        assert list(parse_models([str(folders["drawings"]), f"a.b-1={folders['closed']}"])) == ["drawings", "a.b-1"]
        assert Models({}).info(Limits()) == [] and Keys().tenant(None) == ""
        with pytest.raises(McdiError, match="queue = 0"):
            Limits(queue=0)


class TestClient:
    def test_urls_without_a_server(self, client):
        with pytest.raises(McdiError, match="not the URL of a server"):
            Client("localhost:8000")
        with pytest.raises(McdiError, match="is it running"):
            Client("http://127.0.0.1:9").health()


def test_a_closed_connection_is_opened_again():
    """The server closes the connection after one answer, as after a long idle time; the client opens a second one."""
    body = b'{"status": "ok"}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve_two() -> None:
            for _ in range(2):
                connection, _ = listening.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve_two, daemon=True)
        thread.start()
        with Client(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=20) as client:
            assert client.health() == client.health() == {"status": "ok"}
        thread.join(20)


def test_answers_are_sent_without_delay():
    """asyncio sets TCP_NODELAY on sockets that name their protocol; without it every answer takes 40 ms longer."""
    from mcdi.serve.run import _socket

    with _socket("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP
