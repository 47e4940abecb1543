"""The served models, and their reload while the server runs."""

import logging
import re
import threading
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch

from mcdi.errors import McdiError, explained
from mcdi.generator.api import Generator, load
from mcdi.generator.exported import FILES as EXPORTED
from mcdi.generator.exported import Exported
from mcdi.generator.own_code import named_code
from mcdi.generator.plain import plain_network
from mcdi.generator.ready_made import ready_made
from mcdi.generator.saving import FILES
from mcdi.methods.sampling import Sampling, SupportsSampling
from mcdi.networks.sentence_head import SentenceHead
from mcdi.serve.limits import Limits, Refused
from mcdi.serve.wire import ModelInfo
from mcdi.tasks.images.class_images import Shape

log = logging.getLogger("mcdi.serve")
NAMED = re.compile(r"([A-Za-z0-9][\w.-]{0,99})=(.+)", re.DOTALL)
SAMPLER = EXPORTED["onnx"]
FileStamp = tuple[tuple[int, int, int], ...]  # inode, time and size of every file


def file_stamp(folder: Path) -> FileStamp:
    """A value that changes when one of the files is replaced. Raises McdiError if the folder holds no generator."""
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise McdiError(f"{folder} {problem}: give the folder of a trained generator, which holds {' and '.join(FILES)}")
    try:
        stats = [(folder / name).stat() for name in FILES] + [path.stat() for path in folder.glob(SAMPLER)]
    except OSError as error:
        raise McdiError(f"{folder} holds no {' and '.join(FILES)}: give the folder of a trained generator") from error
    return tuple((s.st_ino, s.st_mtime_ns, s.st_size) for s in stats)


def parse_models(models: Iterable[str]) -> dict[str, Path]:
    """Folders by name, from FOLDER or NAME=FOLDER, or the name of a ready-made generator; the default name is that of the
    folder."""
    folders: dict[str, Path] = {}
    for text in models:
        match = NAMED.fullmatch(text)
        name, folder = (match[1], Path(match[2])) if match else (Path(text).resolve().name, Path(text))
        if name in folders:
            raise McdiError(f"two models are called {name!r}: rename one with NAME=FOLDER")
        folders[name] = ready_made(folder) or folder
    return folders


def parse_code(modules: Iterable[str], names: Collection[str]) -> dict[str, str]:
    """package:factory by model, from NAME=package:factory, or of the only model from package:factory."""
    code: dict[str, str] = {}
    for text in modules:
        model, named, function = text.rpartition("=")
        if not named and len(names) != 1:
            raise McdiError(f"--module {text} is for one of {len(names)} models: say which, with NAME={text}")
        name = model if named else next(iter(names))
        if name not in names or name in code:
            problem = "already has its module" if name in code else f"is not served: choose {', '.join(names)}"
            raise McdiError(f"--module {text}: the model {name!r} {problem}")
        code[name] = function
    return code


class Models:
    """Generators by name. Requests can name only these: no file is opened for a request."""

    def __init__(
        self, folders: Mapping[str, Path], device: str = "cpu", *, bf16: bool = False, code: Mapping[str, str] | None = None
    ) -> None:
        """Load all models; with `bf16` their backbones compute in bfloat16.
        code: by name, where `named_code` finds the user's own module of a model."""
        self.folders, self.device, self.bf16, self.code = folders, device, bf16, dict(code or {})
        self._served = {name: self._load(name) for name in folders}
        self._reloading = threading.Lock()

    def _load(self, name: str) -> tuple[Generator, FileStamp]:
        folder = self.folders[name]
        stamp = file_stamp(folder)
        generator = load(folder, self.device, **named_code(self.code.get(name)))
        if target := generator.network.target_shape:
            raise McdiError(
                f"{folder} learns targets of shape {target}, and a request has one number an example: use mcdi.load"
            )
        if isinstance(generator.network, SentenceHead):
            _ = generator.network.encoder  # loads it, so that one that cannot be loaded does not take the old one's place
        if self.bf16 and generator.network.embedder is not None:
            generator.network.embedder.in_bf16()
        if (folder / SAMPLER).exists():
            generator.exported = self._load_exported(folder / SAMPLER)
        return generator, stamp

    def _load_exported(self, path: Path) -> Exported | None:
        """The exported sampler, if it gives the model's weights. Only ONNX is loaded: a .pt2 file could run code."""
        try:
            if self.device != "cpu":
                raise McdiError(f"it runs on cpu, and the server on {self.device}")
            exported = Exported.load(path)
            if exported.metadata["options"]:
                raise McdiError(f"it was exported with {exported.metadata['options']}: export it without options")
        except McdiError as error:
            log.warning("%s is not used: %s", path, error)
            return None
        log.info("using the exported sampler %s", path)
        return exported

    def get(self, name: str) -> Generator:
        if name not in self._served:
            raise Refused(404, f"there is no model of this name: choose {', '.join(self._served)}")
        return self._served[name][0]

    def reload(self) -> dict[str, str]:
        """Replace models whose files have changed, if loading succeeds. Returns {name: "same", "new" or "failed"}."""
        results = dict.fromkeys(self._served, "same")
        with self._reloading:
            for name, folder in self.folders.items():
                try:
                    with explained(f"{folder} cannot be loaded", "restore its files"):  # whatever it is: others come after it
                        if file_stamp(folder) != self._served[name][1]:
                            self._served[name] = self._load(name)
                            results[name] = "new"
                            log.warning("%s: new files of %s loaded", name, folder)
                except McdiError as error:
                    results[name] = "failed"
                    log.error("%s: the old model stays in use, the new files cannot be loaded: %s", name, error)
        return results

    def info(self, limits: Limits) -> list[ModelInfo]:
        return [describe(name, generator, limits) for name, (generator, _) in self._served.items()]


def describe(name: str, generator: Generator, limits: Limits) -> ModelInfo:
    """What GET /v1/models says of a generator."""
    network, method = generator.network, generator.method
    images, features, texts = inputs_of(generator)
    chain = method if isinstance(method, SupportsSampling) and method.is_chain else None
    T = None if chain is None else chain.chain_steps(Sampling())
    return ModelInfo(
        name=name,
        method=generator.name,
        network=network.kind,
        images=images,
        features=features,
        texts=texts,
        labels="numbers" if network.regression else "classes",
        classes=None if network.regression else [2, limits.classes] if generator.any_way else [network.way] * 2,
        chain=chain is not None,
        steps=None if chain is None else chain.sampling.steps or T,
        T=T,
        runs_anywhere=_runs_anywhere(generator),
        exported=generator.exported is not None,
    )


def inputs_of(generator: Generator) -> tuple[Shape | None, int | None, bool]:
    """Which examples it reads: the shape of images, the width of features, and whether texts."""
    network = generator.network
    images = None if network.embedder is None else network.embedder.shape
    return images, None if network.reads_texts else network.input_size, network.reads_texts


def _runs_anywhere(generator: Generator) -> bool:
    """Whether a network of it is a list of plain operations."""
    weights = generator.network.space.unpack(torch.zeros(1, generator.network.space.U, generator.network.space.D))
    try:
        plain_network(generator, {n: w[0] for n, w in weights.items()})
    except McdiError:
        return False
    return True
