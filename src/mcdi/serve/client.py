"""A client of `mcdi serve` for Python programs, built on the standard library; it returns tensors."""

import base64
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mcdi.errors import McdiError, explained
from mcdi.generator.api import Weights
from mcdi.serve import wire
from mcdi.serve.limits import Refused, is_key
from mcdi.utils.files import read_bytes, tensors_of

# {"images": [path, bytes, or array of uint8 (H, W) or (H, W, 3)]}, {"features": array, tensor or rows}, or {"texts": [s, (s,)
# or (s, s)]}. Arrays are numpy's or what has tolist(), and so are labels and options.
Inputs = Mapping[str, Any]


class Handle(wire.Generated):
    """Weights that the server keeps; `names` holds their shapes, `confidence` is that of Generator.confidence."""


@dataclass(frozen=True)
class GeneratedWeights:
    weights: Weights
    classes: list[Any]
    milliseconds: float
    confidence: float


@dataclass(frozen=True)
class Prediction:
    """Labels and probabilities (Q, classes) of a classifier, or outputs (Q,) of a regression."""

    labels: list[Any]
    probabilities: Tensor
    classes: list[Any]
    outputs: Tensor
    milliseconds: float


class Client(AbstractContextManager["Client"]):
    """A client with one open connection; use one client per thread. It raises Refused, an McdiError, with the server's message
    and `status`, and McdiError for a server that cannot be reached."""

    def __init__(self, url: str, *, key: str | None = None, timeout: float = 60.0) -> None:
        """
        Args:
            url: http://HOST:PORT, with the path that a proxy puts in front, if there is one.
            key: of the server's --api-key-file.
            timeout: seconds for an answer to begin.
        """
        with explained(f"{url!r} is not the URL of a server", "give http://HOST:PORT", ValueError):
            parts = urlsplit(url)
            name, port = parts.hostname, parts.port
        path, plain = parts.path.rstrip("/"), url.isascii() and url.isprintable() and " " not in url
        if parts.scheme not in ("http", "https") or not name or parts.username or parts.query or parts.fragment or not plain:
            raise McdiError(
                f"{url!r} is not the URL of a server: give http://HOST:PORT, with the path of a proxy if there is one"
            )
        if key is not None and not is_key(key):
            raise McdiError("the API key holds blanks or control characters: give it as the server's file has it")
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self.url, self._path, self._connection = url, path, kind(name, port, timeout=timeout)
        authorization = {"Authorization": f"Bearer {key}".encode()} if key else {}
        self._headers: dict[str, str | bytes] = {"Content-Type": "application/json", **authorization}

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def health(self) -> dict[str, Any]:
        return self._json("GET", "/healthz")

    def models(self) -> list[dict[str, Any]]:
        """The served models, see GET /v1/models."""
        return list(self._json("GET", "/v1/models")["models"])

    def generate(self, model: str, support: Inputs, labels: Sequence[Any], **options: Any) -> GeneratedWeights:
        """Weights for load_state_dict. Options are steps, seed, temperature and samples."""
        body = {**_task(model, support, labels), **options, "format": "safetensors"}
        response, data = self._call("POST", "/v1/generate", body)
        weights, metadata = tensors_of(data, f"the answer of {self.url}")
        milliseconds, confidence = (float(response.headers[f"X-Mcdi-{n}"]) for n in ("Milliseconds", "Confidence"))
        return GeneratedWeights(weights, metadata["classes"], milliseconds, confidence)

    def keep(self, model: str, support: Inputs, labels: Sequence[Any], **options: Any) -> Handle:
        """The handle of the same weights, which the server keeps for `predict`."""
        return Handle(**self._json("POST", "/v1/generate", {**_task(model, support, labels), **options, "format": "handle"}))

    def predict(self, handle: Handle | str, queries: Inputs) -> Prediction:
        name = handle.handle if isinstance(handle, Handle) else handle
        answer = self._json("POST", "/v1/predict", {"handle": name, "queries": _inputs(queries)})
        return Prediction(**answer | {n: torch.tensor(answer[n]) for n in ("probabilities", "outputs")})

    def _json(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        return dict(json.loads(self._call(method, path, body)[1]))

    def _call(self, method: str, path: str, body: Any = None) -> tuple[HTTPResponse, bytes]:
        with explained(
            "the request cannot be written as JSON", "send numbers, names and arrays of them", TypeError, ValueError
        ):
            data = None if body is None else json.dumps(_plain(body)).encode()
        reused = self._connection.sock is not None
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # a body that is too large is refused before it is read
                self._connection.request(method, self._path + path, data, self._headers)
            response = self._connection.getresponse()
            answer = response.read()
        except (HTTPException, OSError) as error:
            self._connection.close()
            if not reused or isinstance(error, TimeoutError):
                raise McdiError(f"{self.url} does not answer ({error or type(error).__name__}): is it running?") from error
            return self._call(method, path, body)  # the server closed the idle connection
        if response.status >= 400:
            message = f"the server answered {response.status} {response.reason}"
            with suppress(ValueError, KeyError, TypeError):
                message = str(json.loads(answer)["error"])
            raise Refused(response.status, message, dict(response.headers))
        return response, answer


def _task(model: str, support: Inputs, labels: Sequence[Any]) -> dict[str, Any]:
    return {"model": model, "support": _inputs(support), "labels": list(_plain(labels))}


def _inputs(inputs: Inputs) -> dict[str, Any]:
    forms: dict[str, Callable[[Any], Any]] = {"images": _image, "texts": lambda v: [v] if isinstance(v, str) else list(v)}
    return {kind: [forms.get(kind, list)(v) for v in values] for kind, values in inputs.items()}


def _image(image: Any) -> str:
    """An image file in base64."""
    if isinstance(image, str | os.PathLike):
        image = read_bytes(Path(image))
    if not isinstance(image, bytes):
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)) or not pixels.size:
            given = f"an image is {pixels.dtype} {pixels.shape}, neither a file nor an array of pixels"
            raise McdiError(f"{given}: give uint8 (H, W) or (H, W, 3)")
        Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
        image = file.getvalue()
    return base64.b64encode(image).decode()


def _plain(value: Any) -> Any:
    """Tensors, arrays and their numbers, at any depth, as lists and numbers of Python."""
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    return value if isinstance(value, str | bytes) or not isinstance(value, Iterable) else [_plain(v) for v in value]
