"""A client of `mcdi serve` for Python programs, built on the standard library; it returns tensors."""

import base64
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.generator.api import Weights
from mcdi.serve import wire
from mcdi.serve.limits import Refused
from mcdi.utils.files import read_bytes, tensors_of

Inputs = Mapping[str, Any]  # {"images": [path or bytes]}, {"features": tensor or rows} or {"texts": [(s,) or (s, s)]}


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
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise McdiError(f"{url!r} is not the URL of a server: give http://HOST:PORT")
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self.url, self._connection = url, kind(parts.hostname, parts.port, timeout=timeout)
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

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
        data = None if body is None else json.dumps(body).encode()
        reused = self._connection.sock is not None
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # a body that is too large is refused before it is read
                self._connection.request(method, path, data, self._headers)
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
    plain = labels.tolist() if isinstance(labels, Tensor) else list(labels)
    return {"model": model, "support": _inputs(support), "labels": plain}


def _inputs(inputs: Inputs) -> dict[str, Any]:
    sent: dict[str, Any] = {}
    for kind, values in inputs.items():
        if kind == "images":
            files = [v if isinstance(v, bytes) else read_bytes(Path(v)) for v in values]
            sent[kind] = [base64.b64encode(file).decode() for file in files]
        else:
            sent[kind] = values.tolist() if isinstance(values, Tensor) else [list(v) for v in values]
    return sent
