"""Hostile requests: one clear message, no status 5xx, and no access to the handles of another tenant."""

import base64
import json
import pickle
import struct
import zlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from serving import images, message, png, serving, task, vectors

from mcdi.serve.deployment import Deployment

schemathesis = pytest.importorskip("schemathesis", reason="needs mcdi[dev]")
JSON = {"Content-Type": "application/json"}


def bomb(width, height):
    """A PNG with a large size in its header and a long run of zeros as data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


def pictures(*files):
    return {"images": [base64.b64encode(f).decode() for f in files]}


def two(*files):
    return task(support=pictures(*files), labels=["a", "b"])


def rows(*features):
    return {"model": "vectors", "support": {"features": list(features)}, "labels": list(range(len(features)))}


RING = png("ring")
BODIES = {
    "an image bomb": (two(RING, bomb(60_000, 60_000)), 422, "pixels"),
    "a damaged image": (two(RING, RING[: len(RING) // 2]), 422, "support.images[1]"),
    "an image without data": (two(RING, bomb(30, 30)[:43]), 422, "support.images[1]"),
    "a pickle as an image": (two(RING, pickle.dumps({"a": 1})), 422, "is not an image file"),
    "an SVG": (two(RING, b"<svg xmlns='http://www.w3.org/2000/svg'/>"), 422, "is not an image file"),
    "a TIFF": (two(RING, png("ring", form="TIFF")), 422, "is not an image file"),
    "an empty image": (two(RING, b""), 422, "is not an image file"),
    "no base64": (task(support={"images": ["%%%", "x"]}, labels=["a", "b"]), 422, "not base64"),
    "a path as an image": (task(support={"images": ["../../etc/passwd", "b"]}, labels=["a", "b"]), 422, "not base64"),
    "a path as a model": (task("../../etc/passwd"), 404, "no model of this name"),
    "a model with a zero byte": (task("drawings\0"), 404, "no model of this name"),
    "a long model": (task("x" * 1000), 422, "model"),
    "one class": (task(labels=["a"] * 4), 422, "1 classes"),
    "labels of two kinds": (task(labels=["a", 1, "b", 2]), 422, "all integers or all names"),
    "real labels": (task(labels=[0.5, 1.5, 0.5, 1.5]), 422, "all integers or all names"),
    "true and false": (task(labels=[True, False, True, False]), 422, "labels"),
    "too few labels": (task(labels=["a", "b"]), 422, "4 examples and labels 2"),
    "a huge label": (task(labels=[10**400, 1, 1, 1]), 422, "labels"),
    "a long name": (task(labels=["a" * 1000, "b", "a", "b"]), 422, "200 characters"),
    "ragged features": (rows([1.0] * 6, [1.0]), 422, "1, 6 numbers"),
    "another width": (rows([1.0], [1.0]), 422, "reads 6"),
    "no features": (rows([], []), 422, "reads 6"),
    "no example": (rows(), 422, "0 examples"),
    "huge numbers": (rows([1e300] * 6, [1.0] * 6), 422, "scale them"),
    "numbers as words": (rows(["x"] * 6, [1.0] * 6), 422, "number"),
    "a very long number": (rows([10**400] * 6, [1.0] * 6), 422, "support.features"),
    "images for vectors": (task("vectors"), 422, "reads features"),
    "two kinds": (task(support={**images("ring"), **vectors()}), 422, "exactly one"),
    "no kind": (task(support={}), 422, "exactly one"),
    "an unknown field": (task(whatever=1), 422, "whatever"),
    "no steps": (task(steps=0), 422, "steps"),
    "too many steps": (task(steps=11), 422, "outside 1..T = 10"),
    "too many samples": (task(samples=999), 422, "at most 16"),
    "a negative seed": (task(seed=-1), 422, "seed"),
    "a huge seed": (task(seed=2**70), 422, "seed"),
    "a negative temperature": (task(temperature=-1), 422, "temperature"),
    "an unknown format": (task(format="pickle"), 422, "safetensors"),
    "a list": ([1, 2], 422, "the body"),
}
RAW = {
    "no JSON": (b"{", 400),
    "nothing at all": (b"", 400),
    "null": (b"null", 422),
    "NaN": (b'{"model": "vectors", "support": {"features": [[NaN, 1, 1, 1, 1, 1]]}, "labels": [0]}', 422),
    "Infinity": (b'{"model": "vectors", "support": {"features": [[-Infinity, 1, 1, 1, 1, 1]]}, "labels": [0]}', 422),
    "1e999": (b'{"model": "vectors", "support": {"features": [[1e999, 1, 1, 1, 1, 1]]}, "labels": [0]}', 422),
    "a NaN temperature": (json.dumps(task(temperature=float("nan"))).encode(), 422),
    "deep lists": (b'{"model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
    "deep objects": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, 400),
    "half a character": (b'{"model": "\\ud800"}', 400),
    "no UTF-8": (b'{"model": "\xff\xfe"}', 400),
    "a pickle": (pickle.dumps({"model": "drawings"}), 400),
    "twice the same name": (b'{"model": "drawings", "model": "none", "support": {}, "labels": []}', 404),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_task(client, name):
    body, status, text = BODIES[name]
    assert text in message(client.post("/v1/generate", json=body), status)


@pytest.mark.parametrize("name", RAW)
def test_bad_bytes(client, name):
    data, status = RAW[name]
    message(client.post("/v1/generate", content=data, headers=JSON), status)


@pytest.mark.parametrize("route", ["generate", "chain", "landscape"])
def test_systems_of_equations_that_become_singular(client, route, monkeypatch):
    large = [[1e6, 0, 0, 0, 0, 0], [1e6, 1e-6, 0, 0, 0, 0], [-1e6, 0, 0, 0, 0, 0], [0, 1e6, 0, 0, 0, 0]]
    body = {**rows(*large), "labels": [0, 0, 1, 1]}
    assert client.post(f"/v1/{route}", json=body).status_code in (200, 422)

    def singular(*_):
        raise torch.linalg.LinAlgError("singular")

    monkeypatch.setattr(torch.linalg, "solve", singular)
    assert "not finite" in message(client.post(f"/v1/{route}", json=body), 422)


class TestLimits:
    def test_bodies(self, folders):
        with serving({"drawings": folders["drawings"]}, body=1000) as client:
            assert "at most 1000" in message(client.post("/v1/generate", content=b"x" * 1001, headers=JSON), 413)
            chunks = client.post("/v1/generate", content=iter([b" " * 600] * 2), headers=JSON)
            assert "1000 bytes" in message(chunks, 413)
            long = {**JSON, "Content-Length": "9" * 4000}
            message(client.post("/v1/generate", content=b"{}", headers=long), 413)
        message(client.post("/v1/generate", content=b"{}", headers={"Content-Type": "text/plain"}), 415)

    def test_numbers_of_examples_classes_and_pixels(self, folders):
        limits = {"examples": 3, "classes": 2, "all_pixels": 2 * 56 * 56}
        with serving(folders, **limits) as client:
            assert "4 examples" in message(client.post("/v1/generate", json=task()), 422)
            three = task(support=images("ring", "ring", "stroke"), labels=[0, 1, 1])
            assert "all images together" in message(client.post("/v1/generate", json=three), 422)
            rows = {"model": "vectors", "support": vectors(count=3), "labels": [0, 1, 2]}
            assert "3 classes" in message(client.post("/v1/generate", json=rows), 422)
            handle = client.post("/v1/generate", json={**rows, "labels": [0, 1, 1]}).json()["handle"]
            many = client.post("/v1/predict", json={"handle": handle, "queries": vectors(count=4)})
            assert "queries holds 4 examples" in message(many, 422)

    def test_a_handle_or_a_task(self, client):
        for body in ({"queries": images("ring")}, {**task(), "handle": "x", "queries": images("ring")}):
            assert "give either a handle" in message(client.post("/v1/predict", json=body), 422)
        unknown = {"handle": "../../secret", "queries": images("ring")}
        assert "this handle is unknown" in message(client.post("/v1/predict", json=unknown), 404)


class TestHandles:
    def generate(self, client, **headers):
        return client.post("/v1/generate", json=task(), headers=headers).json()["handle"]

    def status(self, client, handle, **headers):
        body = {"handle": handle, "queries": images("ring")}
        return client.post("/v1/predict", json=body, headers=headers).status_code

    def test_the_least_recently_used_is_evicted(self, folders):
        with serving({"drawings": folders["drawings"]}, handles=2) as client:
            first, second = self.generate(client), self.generate(client)
            assert self.status(client, first) == 200
            third = self.generate(client)
            assert [self.status(client, h) for h in (first, second, third)] == [200, 404, 200]
            assert len(client.service.handles) == 2 and len({first, second, third}) == 3

    def test_the_limit_of_bytes(self, folders):
        size = 4 * 2 * 65
        with serving({"drawings": folders["drawings"]}, handle_bytes=2 * size) as client:
            first, _, third = (self.generate(client) for _ in range(3))
            assert [self.status(client, h) for h in (first, third)] == [404, 200]
        with serving({"drawings": folders["drawings"]}, handle_bytes=size - 1) as client:
            assert "safetensors" in message(client.post("/v1/generate", json=task()), 422)

    def test_tenants_do_not_see_each_other(self, folders, tmp_path):
        keys = tmp_path / "keys"
        keys.write_text("# tenant:key\nann:" + "a" * 20 + "\n\nbob:" + "b" * 20 + "\n")
        ann, bob = ({"Authorization": f"Bearer {k * 20}"} for k in "ab")
        with serving({"drawings": folders["drawings"]}, keys, handles=1) as client:
            handle = self.generate(client, **ann)
            assert self.status(client, handle, **ann) == 200 and self.status(client, handle, **bob) == 404
            self.generate(client, **bob)  # does not evict the handle of another tenant
            assert self.status(client, handle, **ann) == 200
            for wrong in ("", "Bearer nobody", "Basic x", b"Bearer \xff\xfe"):
                refused = client.post("/v1/generate", json=task(), headers={"Authorization": wrong})
                assert "Bearer KEY" in message(refused, 401) and refused.headers["www-authenticate"] == "Bearer"
            assert client.get("/healthz").status_code == 200 and client.get("/v1/models").status_code == 401


CONFORMS = [getattr(schemathesis.checks, f"{n}_conformance") for n in ("status_code", "content_type", "response_schema")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_requests_generated_from_the_openapi_description(folders, mode):
    with serving(folders, deployment=Deployment(hosts=None)) as client:
        schema = schemathesis.openapi.from_asgi("/openapi.json", client.app)
        operations = [operation.ok() for operation in schema.get_all_operations()]
        assert len(operations) == 8
        for operation in operations if mode == "positive" else (o for o in operations if o.method == "post"):

            @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
            @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
            def check(case):
                response = case.call()
                case.validate_response(response, checks=[schemathesis.checks.not_a_server_error, *CONFORMS])

            check()
