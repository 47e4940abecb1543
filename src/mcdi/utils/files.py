"""Files that are written so that a kill at any moment leaves the old file or the new one, and files at URLs."""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file, save
from torch import Tensor

from mcdi.errors import McdiError, explained


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` in one step: readers see the old file or the new one. Raises McdiError when it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _writing(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)  # mkstemp makes files private; these are ordinary results
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def append_bytes(path: Path, data: bytes) -> None:
    """Add to the end of `path`, for logs only: a kill may leave a part of `data`."""
    with _writing(path), path.open("ab") as file:
        file.write(data)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise McdiError(f"cannot write to {path}: {reason}; free space or choose another --out") from error


@contextmanager
def _reading(path: Path, cure: str, *kinds: type[Exception]) -> Iterator[None]:
    """A missing file, and errors of these kinds, as McdiError. cure: the end of the sentence, with {error}."""
    try:
        yield
    except FileNotFoundError as error:
        raise McdiError(f"{path} does not exist: check the path, or run the step that makes it") from error
    except kinds as error:
        raise McdiError(f"{path} {cure.format(error=getattr(error, 'strerror', None) or error)}") from error


def write_json(path: Path, data: Any) -> None:
    """Replace `path` by indented JSON with sorted keys."""
    write_bytes(path, (json.dumps(data, indent=1, sort_keys=True) + "\n").encode())


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises McdiError for one that is missing or unreadable."""
    with _reading(path, "cannot be read ({error}): check its permissions", OSError):
        return path.read_bytes()


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises McdiError for one that is missing, unreadable or no JSON."""
    with _reading(path, "cannot be read as JSON ({error}): delete it and run the step that made it again", OSError, ValueError):
        return json.loads(path.read_text())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> bytes:
    """Replace `path` in one step by a safetensors file of tensors on any device, and metadata that JSON can hold. Returns the
    bytes written."""
    data = tensor_bytes(tensors, metadata)
    write_bytes(path, data)
    return data


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> bytes:
    """The content of the file that `write_tensors` writes."""
    return save(
        {n: t.detach().cpu().contiguous() for n, t in tensors.items()},
        {n: json.dumps(v) for n, v in (metadata or {}).items()} or None,
    )


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file of `write_tensors`. Raises McdiError for one that is missing or corrupt."""
    cure = "is not a readable safetensors file ({error}): delete it and run its step again"
    with _reading(path, cure, OSError, SafetensorError, json.JSONDecodeError):
        with safe_open(path, "pt") as file:
            metadata = {n: json.loads(v) for n, v in (file.metadata() or {}).items()}
        return load_file(path), metadata


def tensors_of(data: bytes, where: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """As `read_tensors`, from bytes in memory. where: what errors call them."""
    with explained(f"{where} is not a readable safetensors file", "restore it", SafetensorError, ValueError):
        tensors = load_bytes(data)  # refuses whatever has no such header
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return tensors, {n: json.loads(v) for n, v in header.get("__metadata__", {}).items()}


SYSTEM = ("__macosx", "thumbs.db", "desktop.ini", "ehthumbs.db", "system volume information", "@eadir", "lost+found")


def visible(*names: str) -> bool:
    """Whether files and folders of these names are the user's: not hidden, and nothing that a system or a tool put there."""
    return not any(name.startswith((".", "$")) or name.lower() in SYSTEM for name in names)


def remove_temporaries(folder: Path) -> None:
    """Delete what a killed `write_bytes` left in `folder`. Only for the process that has the lock of `only_writer`."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Lock `folder` for writing until the block or the process ends. Raises McdiError when another process has the lock."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with explained(f"{folder} cannot be locked", "choose a folder on a local disk", OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                cure = "wait until it ends, stop it, or choose another --out"
                raise McdiError(f"another process is writing to {folder}: {cure}") from error
        yield
    finally:
        os.close(handle)


def url_or_path(where: str | Path) -> str | Path:
    """A URL as a str, a folder as a Path."""
    return where if isinstance(where, str) and "://" in where else Path(where)


@contextmanager
def _file_at(url: str) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
    """The file system of a URL and the path in it; all that goes wrong with it is a McdiError."""
    protocol = url.partition("://")[0]
    if protocol not in fsspec.available_protocols():
        raise McdiError(f"unknown protocol {protocol!r} in {url}: choose a folder, file, memory, s3, hf or another of fsspec's")
    # Every protocol's package has errors of its own: no access, no network, no such bucket.
    with explained(f"{url} cannot be used", "check the address and your access to it"):
        try:
            yield fsspec.url_to_fs(url)
        except FileNotFoundError as error:
            raise McdiError(f"{url} does not exist: check the address") from error
        except ImportError as error:
            raise McdiError(f"{url} needs a package that is not installed: {error}") from error


def read_url(url: str) -> bytes:
    """The content of one file. Raises McdiError naming a URL that does not exist or cannot be reached."""
    with _file_at(url) as (system, path):
        return system.cat_file(path)


def write_url(url: str, data: bytes) -> None:
    """Replace one file. Raises McdiError naming a URL that cannot be written."""
    with _file_at(url) as (system, path):
        system.makedirs(system._parent(path), exist_ok=True)
        system.pipe_file(path, data)


def url_exists(url: str) -> bool:
    """Whether there is a file at `url`. Raises McdiError naming a URL that cannot be reached."""
    with _file_at(url) as (system, path):
        return bool(system.exists(path))
