"""Tiny trained generators of every type in folders, and a service in this process."""

import base64
import io
import json
import threading
from contextlib import contextmanager

import pytest
import torch
from PIL import Image, ImageDraw
from worlds import settings

from mcdi.generator.api import Generator
from mcdi.methods import make_method
from mcdi.networks.backbones.embedder import Embedder, cl2n
from mcdi.networks.backbones.vision import Conv4, NoBackbone
from mcdi.networks.conv_net import ConvNet
from mcdi.networks.linear_head import LinearHead
from mcdi.tasks.episodes import FewShot
from mcdi.trajectories.prepare import Preparation, trajectories

pytest.importorskip("fastapi", reason="needs mcdi[serve]")
from fastapi.testclient import TestClient

from mcdi.serve.app import create_app
from mcdi.serve.deployment import Deployment
from mcdi.serve.limits import Keys, Limits
from mcdi.serve.models import Models
from mcdi.serve.run import _socket, make_server
from mcdi.serve.service import Service


def png(kind, size=(56, 56), shift=0, form="PNG"):
    """A ring or a stroke, as the bytes of an image file."""
    image = Image.new("L", size, 255)
    draw = ImageDraw.Draw(image)
    if kind == "ring":
        draw.ellipse((8 + shift, 8, 44, 44 + shift), outline=0, width=4)
    else:
        draw.line((28 + shift, 6, 28, 50 - shift), fill=0, width=4)
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()


def images(*kinds):
    return {"images": [base64.b64encode(png(k, shift=i)).decode() for i, k in enumerate(kinds)]}


def task(model="drawings", **changes):
    labels = ["ring", "ring", "stroke", "stroke"]
    return {"model": model, "support": images(*labels), "labels": labels, **changes}


def vectors(seed=0, count=6, width=6):
    x = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return {"features": x.tolist()}


def _drawings():
    """Mc-Di of heads on an untrained backbone, which is fast to make."""
    g = torch.Generator().manual_seed(0)
    features = {s: cl2n(torch.randn(8, 10, 64, generator=g), torch.zeros(64)) for s in ("train", "val", "test")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = LinearHead(64, 3, Embedder(Conv4()))
    family = FewShot("drawings", network, features, way=3, shots=(2,), queries=4)
    data = trajectories(family, "train", range(16), Preparation(tasks=16, epochs=6, k=3, lr=0.03))
    method = make_method("mc-di", settings("mc-di", T=10)).fit(family, data, seed=0)
    return Generator("mc-di", method, network)


def whole_network():
    """A generator of whole networks with one untrained body, of which a task's own are the prototypes in the last layer."""
    method, net = make_method("protonet", {}), ConvNet(0, 5, Embedder(NoBackbone(1), 28), head="prototypes")
    method.start = net.theta0(0, net.space.U)
    return Generator("protonet", method, net)


def make_folders(root, worlds):
    """Folders by name of the model."""
    drawings = _drawings()
    generators = {
        "drawings": drawings,
        "closed": Generator("prototypes", make_method("prototypes", {}), drawings.network),
        "vectors": Generator("mc-di", worlds["gauss"].method("mc-di"), worlds["gauss"].family.downstream),
        "curves": Generator("mc-di", worlds["sines"].method("mc-di"), worlds["sines"].family.downstream),
    }
    for name, generator in generators.items():
        generator.save_pretrained(root / name)
    return {name: root / name for name in generators}


@contextmanager
def serving(folders, keys=None, deployment=Deployment(), code=None, **limits):  # noqa: B008 - it is frozen
    """A client of a service in this process, which is client.service."""
    service = Service(Models(folders, code=code), Limits(**limits), Keys(keys))
    client = TestClient(create_app(service, deployment), "http://localhost", raise_server_exceptions=False)
    client.service = service
    try:
        with client:  # one event loop for all requests, as in a server
            yield client
    finally:
        service.close()


@contextmanager
def listening(folders, keys=None, deployment=Deployment(), **limits):  # noqa: B008 - it is frozen
    """(address, service, server) of a server in this process, at a socket of its own. At the end it has stopped by itself."""
    service, sock = Service(Models(folders), Limits(**limits), Keys(keys)), _socket("127.0.0.1", 0)
    server, address = make_server(service, deployment), sock.getsockname()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        yield address, service, server
    finally:
        server.should_exit = True
        thread.join(60)
        service.close()
    assert not thread.is_alive()


def message(response, status):
    """The error message of a response with this status."""
    assert response.status_code == status, (response.status_code, response.text[:300])
    answer = json.loads(response.content)
    assert list(answer) == ["error"] and isinstance(answer["error"], str) and answer["error"]
    return answer["error"]
