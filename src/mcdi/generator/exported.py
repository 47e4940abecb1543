"""How is an exported sampler used? Exported.load(path).generate(support) gives what the generator it was made from gives."""

import hashlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.generator.saving import MODEL
from mcdi.networks.support import labelled
from mcdi.utils.files import read_json
from mcdi.utils.random import Seed, noise_streams, normal

FILES = {"onnx": "sampler.onnx", "torch": "sampler.pt2"}
TRUST = "trust"  # the name of the output behind the parameters
Feeds = dict[str, Tensor]
Run = Callable[[Feeds], dict[str, Tensor]]


class Exported:
    """A sampler read from a file, and what it says of itself (`described`: method, steps, parameters, way, version)."""

    def __init__(self, described: dict[str, Any], run: Run) -> None:
        self.described, self._run = described, run

    @classmethod
    def load(cls, path: str | Path) -> "Exported":
        """Of a file .onnx (read by onnxruntime) or .pt2 (by torch), or the one in a saved generator's folder.

        A .pt2 is read by torch.export.load, which may run what is in it: open only what you or people you trust have made.
        Raises McdiError for a file that is missing, damaged or made from other weights than model.safetensors beside it.
        """
        path = Path(path)
        if path.is_dir():
            found = [path / name for name in FILES.values() if (path / name).exists()]
            if not found:
                raise McdiError(f"{path} holds no {' and no '.join(FILES.values())}: run mcdi export {path}")
            path = found[0]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise McdiError(f"{path} cannot be read ({error.strerror or error}): run mcdi export") from error
        with _readable(path):
            if path.suffix == ".onnx":
                session = onnx_session(data)
                described, run = json.loads(session.get_modelmeta().custom_metadata_map["mcdi"]), onnx_run(session)
            else:
                described = read_json(path.with_suffix(".json"))
                if described["sha256"] != fingerprint(data):
                    raise McdiError(f"{path} and {path.with_suffix('.json').name} do not belong together: export again")
                run = torch_run(data)
            beside = path.with_name(MODEL)
            if described["weights"] is not None and beside.exists() and fingerprint(beside) != described["weights"]:
                raise McdiError(f"{path} was made from other weights than {beside.name} beside it: export again")
            if "asked" not in described:
                raise McdiError(f"{path} is of an earlier version, {described['version']}: export again")
        return cls(described, run)

    def generate(self, support: tuple[Any, Tensor], *, seed: int = 0) -> dict[str, Tensor]:
        """Weights of a support set, or of a batch, as Generator.generate gives them: {name: (*shape)} or (B, *shape).

        support: features x (S, ...) as the generator's `embed` gives them, and labels y (S,), or batches of both; seed: of the
        noise of a chain that has some. Raises McdiError for what does not fit.
        """
        d = self.described
        given = torch.as_tensor(support[0]).float(), torch.as_tensor(support[1])
        x, y, way, single = labelled(*given, way=d["way"], any_way=d["any_way"], real=d["real"])
        if x.shape[2:] != (d["features"],):
            raise McdiError(f"examples of shape {tuple(x.shape[2:])} are no features ({d['features']},): give it embedded ones")
        weights, _ = self.run(x, y, way + d["extra"] if d["rows"] else d["units"], seed)
        return alone(weights) if single else weights

    def serves(self, units: int) -> bool:
        """Whether it makes weights of so many units: for other classes than those it was exported with, perhaps not."""
        return bool(self.described["any_way"]) or units == self.described["units"]

    def run(self, x: Tensor, y: Tensor, units: int, seed: Seed) -> tuple[dict[str, Tensor], Tensor]:
        """Of B tasks whose sizes were checked: {name: (B, *shape)}, and their trust (B,). seed: as of a Generator."""
        d = self.described
        feeds = {"x": x, "y": y.to(x.dtype if d["real"] else torch.int64)}
        if d["rows"]:
            feeds["mask"] = torch.ones(len(y), units, dtype=torch.bool)
        if d["noise"]:
            feeds["noise"] = noise_for(d, len(y), units, seed)
        out = self._run(feeds)
        return {n: out[n] for n, _, _ in d["parameters"]}, out[TRUST]


def alone(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a batch of one task, without the dimension of the batch."""
    return {n: w[0] for n, w in weights.items()}


def noise_for(described: dict[str, Any], tasks: int, units: int, seed: Seed) -> Tensor:
    """The noise that Generator.generate draws from `seed`, all of it: (n, B, samples, U, D)."""
    g, samples = noise_streams(seed, torch.device("cpu")), described["samples"]
    like = torch.empty(tasks * samples, units, described["numbers"])
    drawn = torch.stack([normal(like.shape, g, like) for _ in range(described["noise"])])
    return drawn.unflatten(1, (tasks, samples))


def onnx_session(data: bytes) -> Any:
    """An onnxruntime session on as many threads as torch uses."""
    try:
        import onnxruntime
    except ImportError as error:
        raise McdiError("an .onnx file needs the onnxruntime package: pip install 'mcdi[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def onnx_run(session: Any) -> Run:
    """A function of named inputs."""
    names, inputs = [o.name for o in session.get_outputs()], {i.name for i in session.get_inputs()}

    def run(feeds: Feeds) -> dict[str, Tensor]:
        given = {n: t.contiguous().numpy() for n, t in feeds.items() if n in inputs}
        return dict(zip(names, map(torch.from_numpy, session.run(None, given)), strict=True))

    return run


def torch_run(data: bytes) -> Run:
    """A function of named inputs, run by torch as it is."""
    with quiet():
        module = torch.export.load(io.BytesIO(data)).module()

    def run(feeds: Feeds) -> dict[str, Tensor]:
        with torch.no_grad():
            return module(**feeds)

    return run


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's notes about itself while it writes or reads a program."""
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


def fingerprint(data: bytes | Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(data.read_bytes() if isinstance(data, Path) else data).hexdigest()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except McdiError:
        raise
    except Exception as error:  # of whatever kind onnxruntime, torch or JSON have for damage
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise McdiError(f"{path} is no sampler that mcdi export wrote ({reason[:200]}): export again") from error
