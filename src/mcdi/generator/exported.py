"""Reader of exported samplers: Exported.load(path).generate(support) returns the weights of the exported generator."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcdi.errors import McdiError, explained, optional
from mcdi.generator.saving import MODEL
from mcdi.methods.sampling import Generated
from mcdi.networks.support import support_batch
from mcdi.utils.checksums import checksum, is_sealed
from mcdi.utils.files import read_bytes, read_json
from mcdi.utils.random import Seed, noise_streams, normal
from mcdi.utils.tensors import finite, labels_of, numbers_of
from mcdi.utils.torch_state import plain_torch

FILES = {"onnx": "sampler.onnx", "torch": "sampler.pt2"}
CONFIDENCE = "confidence"  # name of the last output, after the parameters
Feeds = dict[str, Tensor]
Run = Callable[[Feeds], dict[str, Tensor]]


class Exported:
    """A sampler read from a file; `metadata` holds its method, version, options, parameters and sizes."""

    def __init__(self, metadata: dict[str, Any], run: Run) -> None:
        self.metadata, self._run = metadata, run

    @classmethod
    def load(cls, path: str | Path) -> "Exported":
        """Read an .onnx file with onnxruntime or a .pt2 file with torch.

        torch.export.load may run code that a .pt2 file contains: open only files from people you trust.

        Args:
            path: the file, or the folder of a saved generator that contains one.

        Raises:
            McdiError: a file that is missing, damaged or made from other weights than the model.safetensors next to it.
        """
        path = Path(path)
        if path.is_dir():
            files = [path / name for name in FILES.values() if (path / name).exists()]
            if not files:
                raise McdiError(f"{path} holds no {' and no '.join(FILES.values())}: run mcdi export {path}")
            path = files[0]
        data = read_bytes(path)
        described = path if path.suffix == ".onnx" else path.with_suffix(".json")
        if not is_sealed(data if described == path else read_bytes(described), str(described)):
            raise McdiError(f"{described} has no checksum: it is damaged or of an earlier version; export again")
        with explained(f"{path} is not a sampler that mcdi export wrote", "export again"):
            if path.suffix == ".onnx":
                session = onnx_session(data)
                metadata, run = json.loads(session.get_modelmeta().custom_metadata_map["mcdi"]), onnx_run(session)
            else:
                metadata = read_json(path.with_suffix(".json"))
                if metadata["program"] != checksum(data):
                    raise McdiError(f"{path} and {path.with_suffix('.json').name} do not belong together: export again")
                run = torch_run(data)
            weights = path.with_name(MODEL)
            if metadata["weights"] is not None and weights.exists() and checksum(read_bytes(weights)) != metadata["weights"]:
                raise McdiError(f"{path} was made from other weights than the {MODEL} next to it: export again")
            if "options" not in metadata or "example" not in metadata:
                raise McdiError(f"{path} was exported by an earlier version, {metadata['version']}: export again")
        return cls(metadata, run)

    @plain_torch()
    def generate(self, support: tuple[Any, Any], *, seed: int = 0) -> dict[str, Tensor]:
        """Weights from a support set, without a gradient step, as `Generator.generate` returns them.

        Args:
            support: features x (S, F), as `Generator.embed` returns them, and labels y (S,), or a batch of both.
            seed: of the noise of a stochastic chain.

        Raises:
            McdiError: inputs that do not fit the model.
        """
        d = self.metadata
        inputs = numbers_of(support[0], "the examples").float(), (numbers_of if d["real"] else labels_of)(support[1], "labels")
        kind = {"way": d["way"], "any_way": d["any_way"], "regression": d["real"], "target": tuple(d["target"])}
        x, y, way, single = support_batch(*inputs, **kind)
        if x.shape[2:] != (wanted := tuple(d["example"])):
            raise McdiError(f"examples of shape {tuple(x.shape[2:])} are not features {wanted}: embed them first")
        weights, _ = self.run(x, y, way + d["extra"] if d["rows"] else d["units"], seed)
        return owned(squeeze_batch(weights) if single else weights)

    def serves(self, units: int) -> bool:
        """Whether it generates weights of this number of units; some denoisers fix the number at export."""
        return bool(self.metadata["any_way"]) or units == self.metadata["units"]

    def run(self, x: Tensor, y: Tensor, units: int, seed: Seed) -> Generated[dict[str, Tensor]]:
        """Weights {name: (B, *shape)} and confidence (B,) of B tasks whose sizes were checked; seed as in `Generator`."""
        d = self.metadata
        feeds = {"x": x, "y": y.to(x.dtype if d["real"] else torch.int64)}
        if d["rows"]:
            feeds["mask"] = torch.ones(len(y), units, dtype=torch.bool)
        if d["noise"]:
            feeds["noise"] = noise_for(d, len(y), units, seed)
        out = self._run(feeds)
        return Generated({n: out[n] for n, _, _ in d["parameters"]}, out[CONFIDENCE])


def squeeze_batch(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a batch of one task without the batch dimension."""
    return {n: w[0] for n, w in weights.items()}


def owned(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights whose memory is theirs alone, each in order. Raises McdiError for NaN or infinite ones."""
    if not all(finite(w) for w in weights.values()):
        raise McdiError("the weights are not finite: the examples, the temperature or the learning rate are too large")
    return {n: w.detach().clone(memory_format=torch.contiguous_format) for n, w in weights.items()}


def noise_for(metadata: dict[str, Any], tasks: int, units: int, seed: Seed) -> Tensor:
    """All noise that Generator.generate draws from `seed`: (n, B, samples, U, D)."""
    g, samples = noise_streams(seed, torch.device("cpu")), metadata["samples"]
    like = torch.empty(tasks * samples, units, metadata["numbers"])
    drawn = torch.stack([normal(like.shape, g, like) for _ in range(metadata["noise"])])
    return drawn.unflatten(1, (tasks, samples))


def onnx_session(data: bytes) -> Any:
    """An onnxruntime session on as many threads as torch uses."""
    onnxruntime = optional("onnxruntime", "onnx", "an .onnx file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def onnx_run(session: Any) -> Run:
    """A function of named inputs that onnxruntime runs."""
    names, inputs = [o.name for o in session.get_outputs()], {i.name for i in session.get_inputs()}

    def run(feeds: Feeds) -> dict[str, Tensor]:
        arrays = {n: t.contiguous().numpy() for n, t in feeds.items() if n in inputs}
        return dict(zip(names, map(torch.from_numpy, session.run(None, arrays)), strict=True))

    return run


def torch_run(data: bytes) -> Run:
    """A function of named inputs that torch runs."""
    with quiet():
        module = torch.export.load(io.BytesIO(data)).module()
    return torch.no_grad()(lambda feeds: module(**feeds))


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress torch's log messages and warnings while it writes or reads a program."""
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "torch._export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
