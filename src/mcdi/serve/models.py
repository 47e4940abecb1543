"""Which models are served, and how is one replaced while it serves?"""

import logging
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mcdi.errors import McdiError
from mcdi.generator.api import Generator, load
from mcdi.generator.exported import FILES as EXPORTED
from mcdi.generator.exported import Exported
from mcdi.generator.saving import FILES
from mcdi.methods.sampling import Sampling, SupportsSampling
from mcdi.networks.lora import LoraClassifier
from mcdi.serve.limits import Limits
from mcdi.serve.refusals import Refused
from mcdi.serve.wire import ModelInfo

log = logging.getLogger("mcdi.serve")
NAMED = re.compile(r"([A-Za-z0-9][\w.-]{0,99})=(.+)", re.DOTALL)
SAMPLER = EXPORTED["onnx"]
Stamp = tuple[tuple[int, int, int], ...]


@dataclass
class Served:
    generator: Generator
    folder: Path
    stamp: Stamp


def stamp_of(folder: Path) -> Stamp:
    """Changes whenever one of the files is replaced. Raises McdiError for what is no folder of a generator."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise McdiError(f"{folder} {what}: give the folder of a trained generator, which holds {' and '.join(FILES)}")
    try:
        found = [(folder / name).stat() for name in FILES]
    except OSError as error:
        raise McdiError(f"{folder} holds no {' and '.join(FILES)}: give the folder of a trained generator") from error
    if (folder / SAMPLER).exists():
        found.append((folder / SAMPLER).stat())
    return tuple((s.st_ino, s.st_mtime_ns, s.st_size) for s in found)


def named(models: Iterable[str]) -> dict[str, Path]:
    """FOLDER or NAME=FOLDER, by name; a folder's own name where none is given."""
    found: dict[str, Path] = {}
    for text in models:
        match = NAMED.fullmatch(text)
        name, folder = (match[1], Path(match[2])) if match else (Path(text).resolve().name, Path(text))
        if name in found:
            raise McdiError(f"two models are called {name!r}: name them, NAME=FOLDER")
        found[name] = folder
    return found


class Models:
    """Generators by name. Names of requests are looked up here and nowhere else: no file is opened for one."""

    def __init__(self, folders: Mapping[str, Path], device: str = "cpu", *, bf16: bool = False) -> None:
        """bf16: backbones in bfloat16."""
        self.device, self.bf16 = device, bf16
        self._served = {name: self._load(folder) for name, folder in folders.items()}
        self._reloading = threading.Lock()

    def _load(self, folder: Path) -> Served:
        stamp = stamp_of(folder)
        generator = load(folder, self.device)
        if self.bf16 and generator.network.embedder is not None:
            generator.network.embedder.in_bf16()
        if (folder / SAMPLER).exists():
            generator.exported = self._exported(folder / SAMPLER)
        return Served(generator, folder, stamp)

    def _exported(self, path: Path) -> Exported | None:
        """The sampler that `mcdi export` put beside a model, where it answers as the model does. Of the two formats this one
        runs nothing when it is opened."""
        try:
            if self.device != "cpu":
                raise McdiError(f"it runs on cpu, and {self.device} is asked for")
            found = Exported.load(path)
            if found.described["asked"]:
                raise McdiError(f"it was exported for {found.described['asked']}: export it as the model was trained")
        except McdiError as error:
            log.warning("%s is not used: %s", path, error)
            return None
        log.info("%s makes the weights", path)
        return found

    def get(self, name: str) -> Generator:
        if name not in self._served:
            raise Refused(404, f"there is no model of this name: choose {', '.join(self._served)}")
        return self._served[name].generator

    def reload(self) -> dict[str, str]:
        """Load every model whose files have changed, whole, before it takes the old one's place; one that cannot be loaded
        leaves the old one serving. What happened, by name: "same", "new" or "failed"."""
        done = {}
        with self._reloading:
            for name, old in list(self._served.items()):
                try:
                    if stamp_of(old.folder) == old.stamp:
                        done[name] = "same"
                        continue
                    self._served[name] = self._load(old.folder)
                    done[name] = "new"
                    log.warning("%s: the new files of %s serve from now on", name, old.folder)
                except McdiError as error:
                    done[name] = "failed"
                    log.error("%s: the old model serves on, as the new one cannot be loaded: %s", name, error)
        return done

    def info(self, limits: Limits) -> list[ModelInfo]:
        return [describe(name, served.generator, limits) for name, served in self._served.items()]


def describe(name: str, generator: Generator, limits: Limits) -> ModelInfo:
    network, method = generator.network, generator.method
    texts, curve = isinstance(network, LoraClassifier), network.regression
    chain = method if isinstance(method, SupportsSampling) and method.is_chain else None
    most = None if chain is None else chain.chain_steps(Sampling())
    return ModelInfo(
        name=name,
        method=generator.name,
        network=network.kind,
        images=None if network.embedder is None else network.embedder.shape,
        features=None if texts else network.input_size,
        texts=texts,
        labels="numbers" if curve else "classes",
        classes=None if curve else [2, limits.classes] if network.space.unit == "row" else [network.way] * 2,
        chain=chain is not None,
        steps=None if chain is None else chain.sampling.steps or most,
        T=most,
        exported=generator.exported is not None,
    )
