"""The client of `mcdi serve`: what it takes from Python, and what it sends."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from serving import png

from mcdi.errors import McdiError
from mcdi.serve import client as module
from mcdi.serve.client import Client

KINDS = ("int8", "int64", "uint8", "uint64", "float16", "float32", "float64", "bool")
ARRAYS = st.sampled_from(KINDS).flatmap(
    lambda kind: npst.arrays(kind, npst.array_shapes(min_dims=1, max_dims=3, max_side=4), elements=_finite(kind))
)


def _finite(kind):
    return {"allow_nan": False, "allow_infinity": False} if "float" in kind else None


@pytest.fixture
def sent(monkeypatch):
    """Bodies that a client sends, as the server reads them."""
    bodies = []

    def call(self, method, path, body=None):
        bodies.append(json.loads(json.dumps(module._plain(body))))
        return None, json.dumps({"handle": "h", "model": "m", "classes": [], "names": {}, "milliseconds": 1, "confidence": 1})

    monkeypatch.setattr(Client, "_call", call)
    return bodies


class TestNumbers:
    @settings(max_examples=150, deadline=None)
    @given(array=ARRAYS)
    def test_arrays_of_any_kind_are_their_lists(self, array):
        wanted = json.loads(json.dumps(array.tolist()))
        numbers = [array, list(array), tuple(array), {"a": array}["a"], [[x for x in array]][0]]
        tensors = [torch.from_numpy(array)] if array.dtype != np.uint64 else []
        for value in [*numbers, *tensors]:
            assert json.loads(json.dumps(module._plain(value))) == wanted
        assert module._plain(array.flat[0]) == array.flat[0].item()

    def test_a_request(self, sent):
        features = np.arange(6, dtype=np.float32).reshape(2, 3)
        options = {"seed": np.int64(3), "steps": np.uint8(2), "temperature": np.float32(0.5)}
        labels = (
            np.array([7, 2**62]),
            [np.int32(7), np.int64(2**62)],
            torch.tensor([7, 2**62]),
            iter([7, 2**62]),
            {7: 0, 2**62: 1},
        )
        for values in labels:
            Client("http://x").keep("m", {"features": features}, values, **options)
            assert sent[-1]["labels"] == [7, 2**62] and sent[-1]["support"] == {"features": features.tolist()}
            assert {n: sent[-1][n] for n in options} == {"seed": 3, "steps": 2, "temperature": 0.5}
        for names in (np.array(["a", "b"]), ["a", np.str_("b")], ("a", "b")):
            Client("http://x").keep("m", {"features": torch.zeros(2, 3)}, names)
            assert sent[-1]["labels"] == ["a", "b"]

    def test_texts_are_not_taken_apart(self, sent):
        for texts in (["ab", "cd"], [("ab",), ["cd"]], np.array(["ab", "cd"])):
            Client("http://x").keep("m", {"texts": texts}, [0, 1])
            assert sent[-1]["support"] == {"texts": [["ab"], ["cd"]]}

    def test_images(self, sent, tmp_path):
        (tmp_path / "a.png").write_bytes(png("ring"))
        pixels = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
        files = [tmp_path / "a.png", str(tmp_path / "a.png"), png("ring"), pixels, pixels[0], torch.from_numpy(pixels[0])]
        Client("http://x").keep("m", {"images": files}, range(6))
        decoded = [base64.b64decode(f) for f in sent[-1]["support"]["images"]]
        assert decoded[:3] == [png("ring")] * 3
        for file, array in zip(decoded[3:], (pixels, pixels[0], pixels[0]), strict=True):
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), array)
        for wrong in (np.zeros((2, 2)), np.zeros(3, np.uint8), np.zeros((2, 2, 4), np.uint8), object()):
            with pytest.raises(McdiError, match="neither a file nor an array"):
                Client("http://x").keep("m", {"images": [wrong]}, [0])
        with pytest.raises(McdiError, match="does not exist"):
            Client("http://x").keep("m", {"images": ["none.png"]}, [0])

    def test_what_is_no_json(self):
        for labels in ([object()], [1 + 2j], [b"a"]):
            with pytest.raises(McdiError, match="written as JSON"):
                Client("http://127.0.0.1:9").keep("m", {"features": [[1]]}, labels)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "localhost:8000",
            "http://",
            "http://a:port",
            "http://a:99999",
            "http://[::1",
            "ftp://a",
            "http://a/?b",
            "http://a/#b",
        ),
        *("http://user:word@a", "http://a b", "http://a/ b", "http://a\n", "http://ä", ""),
    ],
)
def test_no_urls(url):
    with pytest.raises(McdiError, match="is not the URL of a server"):
        Client(url)
