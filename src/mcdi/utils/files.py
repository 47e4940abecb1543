"""Files: a kill at any moment leaves the old one or the new one, and damage is noticed when they are read."""

import codecs
import fcntl
import json
import mmap
import os
import secrets
import stat
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from safetensors import SafetensorError, safe_open

from mcdi.errors import McdiError, McdiWarning, explained
from mcdi.utils.checksums import BLANK, CHECKSUM, Content, is_sealed, seal
from mcdi.utils.places import check_writable, reading, writing

if TYPE_CHECKING:
    from torch import Tensor

TEMPORARY, LOCK = ".tmp", ".lock"
WAIT = 1.0  # seconds for a lock, in which a short writer ends
DAMAGED = "restore it, or delete it and run its step again"


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` in one step: readers see the old file or the new one. A new file has the permissions of the umask, another
    keeps its own. Raises McdiError when it cannot be written."""
    check_writable(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_temporaries(path.parent)
        with _temporary(path.parent) as (name, file):
            file.write(data)
            file.flush()
            if path.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            os.fsync(file.fileno())
            os.replace(name, path)


@contextmanager
def _temporary(folder: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file with the permissions of the umask, deleted unless it is renamed. It is locked while its process lives:
    `remove_temporaries` spares it."""
    while True:
        name = folder / f".{secrets.token_hex(8)}{TEMPORARY}"
        file = os.fdopen(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb")
        with suppress(OSError):  # some network disks know no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            break
        file.close()  # another process came between and took it for one left behind
    try:
        with file:
            yield name, file
    finally:
        name.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Delete what killed processes left of `write_bytes` in `folder`; every writer does so before it writes."""
    for path in folder.glob(f".*{TEMPORARY}"):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its process lives
            path.unlink()


def append_bytes(path: Path, data: bytes) -> None:
    """Add to the end of `path`, for logs only: a kill may leave a part of `data`."""
    with writing(path), path.open("ab") as file:
        file.write(data)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace `path` by indented JSON with sorted keys, and a checksum."""
    write_bytes(path, seal(json_bytes({**data, CHECKSUM: BLANK})))


def json_bytes(data: Any) -> bytes:
    """Indented JSON with sorted keys."""
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises McdiError for one that is missing or unreadable."""
    with reading(path):
        return path.read_bytes()


def read_text(path: Path) -> str:
    """As `read_raw_text`, with "\\n" for every line break."""
    return read_raw_text(path).replace("\r\n", "\n").replace("\r", "\n")


def read_raw_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark. Raises McdiError for one that is missing,
    unreadable or no such text."""
    data = read_bytes(path)
    marks = {"utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)}
    coding = next((name for name, starts in marks.items() if data.startswith(starts)), "utf-8-sig")
    with explained(f"{path} cannot be read as UTF-8 text", "save it as UTF-8", UnicodeDecodeError):
        return data.decode(coding)


def read_json(path: Path) -> Any:
    """What a JSON file holds, verified, without its checksum. Raises McdiError for one that is missing, unreadable, changed or
    no JSON."""
    data = read_bytes(path)
    sealed = is_sealed(data, str(path))
    with explained(f"{path} cannot be read as JSON", DAMAGED, ValueError, RecursionError):
        content = json.loads(data)
    if not sealed:
        _warn_unsealed(path)
    elif isinstance(content, dict):
        content.pop(CHECKSUM, None)
    return content


def _warn_unsealed(path: Path) -> None:
    text = f"{path.absolute().parent} has files without checksums, of an earlier version: changes of them are not noticed"
    warnings.warn(text, McdiWarning, stacklevel=3)


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, Any] | None = None) -> bytes:
    """Replace `path` in one step by a safetensors file of tensors on any device, metadata that JSON can hold, and a checksum.
    Returns the bytes written."""
    data = tensor_bytes(tensors, metadata)
    write_bytes(path, data)
    return data


def tensor_bytes(tensors: Mapping[str, "Tensor"], metadata: Mapping[str, Any] | None = None) -> bytes:
    """The content of the file that `write_tensors` writes; the same for the same tensors and metadata."""
    from safetensors.torch import save  # here, so that a command that only prints does not wait for torch

    data = save({n: t.detach().cpu().contiguous() for n, t in tensors.items()})
    start = 8 + int.from_bytes(data[:8], "little")
    # Written here, because safetensors puts metadata in a random order.
    texts = {n: json.dumps(v) for n, v in sorted({**(metadata or {}), CHECKSUM: BLANK}.items())}
    header = json.dumps({"__metadata__": texts, **json.loads(data[8:start])}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return seal(b"".join((len(header).to_bytes(8, "little"), header, memoryview(data)[start:])))


def read_tensors(path: Path) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Tensors, mapped into memory, and metadata of a file of `write_tensors`, verified. Raises McdiError for one that is
    missing, unreadable or changed."""
    from safetensors.torch import load_file

    with reading(path), path.open("rb") as file:
        empty = os.fstat(file.fileno()).st_size == 0
        data: Content = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    sealed = is_sealed(data, str(path))
    with _not_tensors(str(path)), safe_open(path, "pt") as opened:
        metadata, tensors = _decoded(opened.metadata()), load_file(path)
    if not sealed:
        _warn_unsealed(path)
    return tensors, metadata


def tensors_of(data: bytes, where: str) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """As `read_tensors`, from bytes in memory, which need no checksum. where: what errors call them."""
    from safetensors.torch import load as load_bytes

    is_sealed(data, where)
    with _not_tensors(where):
        tensors = load_bytes(data)  # refuses whatever has no such header
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return tensors, _decoded(header.get("__metadata__"))


SYSTEM = (
    *("__macosx", "icon\r", "network trash folder", "temporary items"),  # macOS
    *("thumbs.db", "desktop.ini", "ehthumbs.db", "system volume information", "recycler", "found.000"),  # Windows
    *("@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@__thumb"),  # network storage
    *("lost+found", "__pycache__"),
)


def visible(*names: str) -> bool:
    """Whether files and folders of these names are the user's: not hidden, and nothing that a system or a tool put there."""
    return not any(name.startswith((".", "$", "~$")) or name.lower() in SYSTEM for name in names)


def _decoded(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    return {n: json.loads(v) for n, v in (metadata or {}).items() if n != CHECKSUM}


def _not_tensors(where: str) -> AbstractContextManager[None]:
    return explained(f"{where} is not a readable safetensors file", DAMAGED, SafetensorError, ValueError, OSError)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Lock `folder` for writing until the block or the process ends. Raises McdiError when another process has the lock and
    keeps it for more than a second."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = _lock(folder / LOCK)
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        os.close(handle)


def _lock(path: Path) -> int:
    """The descriptor of a locked file, the one that lies at `path`: another process may have deleted the one before."""
    end = time.monotonic() + WAIT
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.stat().st_ino == os.fstat(handle).st_ino:
                return handle
        except BlockingIOError as error:
            if time.monotonic() > end:
                os.close(handle)
                cure = "wait until it ends, stop it, or choose another --out"
                raise McdiError(f"another process is writing to {path.parent}: {cure}") from error
        except OSError as error:
            os.close(handle)
            cure = "choose a folder on a local disk"
            raise McdiError(f"{path.parent} cannot be locked ({error.strerror}): {cure}") from error
        os.close(handle)
        time.sleep(0.02)
