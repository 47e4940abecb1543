"""How is anything written so that a kill at any moment leaves the old file or the new one, and never a half?"""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file, save
from torch import Tensor

from mcdi.errors import McdiError


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` in one step: readers see the old file or the new one, whatever is killed and when."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
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
    except OSError as error:
        raise McdiError(f"cannot write {path}: {error.strerror or error}; free space or choose another --out") from error


def append_bytes(path: Path, data: bytes) -> None:
    """Add to the end of `path`, for logs only: a kill may leave a part of `data`."""
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        raise McdiError(f"cannot write {path}: {error.strerror or error}; free space or choose another --out") from error


def write_json(path: Path, data: Any) -> None:
    write_bytes(path, (json.dumps(data, indent=1, sort_keys=True) + "\n").encode())


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise McdiError(f"{path} does not exist: check the path, or run the step that makes it") from error
    except OSError as error:
        raise McdiError(f"{path} cannot be read ({error.strerror or error}): check its permissions") from error


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise McdiError(f"{path} does not exist: check the path, or run the step that makes it") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise McdiError(f"{path} cannot be read as JSON ({error}): delete it and run the step that made it again") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> bytes:
    """Tensors and JSON-able metadata in one safetensors file, replaced atomically; returns the bytes written."""
    data = tensor_bytes(tensors, metadata)
    write_bytes(path, data)
    return data


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> bytes:
    """What `write_tensors` writes."""
    return save(
        {n: t.detach().cpu().contiguous() for n, t in tensors.items()},
        {n: json.dumps(v) for n, v in (metadata or {}).items()} or None,
    )


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of `write_tensors`. Raises McdiError naming a file that is missing or corrupt."""
    try:
        with safe_open(path, "pt") as file:
            metadata = {n: json.loads(v) for n, v in (file.metadata() or {}).items()}
        return load_file(path), metadata
    except FileNotFoundError as error:
        raise McdiError(f"{path} does not exist: check the path, or run the step that makes it") from error
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise McdiError(f"{path} is not a readable safetensors file ({error}): delete it and run its step again") from error


def tensors_of(data: bytes, where: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `read_tensors` says of a file, of its bytes: tensors in memory, which nobody can change by writing to the file."""
    try:
        tensors = load_bytes(data)  # refuses whatever is no such header
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return tensors, {n: json.loads(v) for n, v in header.get("__metadata__", {}).items()}
    except (SafetensorError, ValueError) as error:
        raise McdiError(f"{where} is not a readable safetensors file ({error}): restore it") from error


def remove_temporaries(folder: Path) -> None:
    """Delete what `write_bytes` was writing into `folder` when it was killed. Only for who holds `only_writer`."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold `folder` for writing; the lock goes with the process, however it ends. Raises McdiError when another has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise McdiError(f"cannot write to {folder}: {error.strerror or error}; choose another --out") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise McdiError(
                f"another process is writing to {folder}: wait until it ends, stop it, or choose another --out"
            ) from error
        except OSError as error:
            raise McdiError(
                f"{folder} cannot be locked ({error.strerror or error}): choose a folder on a local disk"
            ) from error
        yield
    finally:
        os.close(handle)
