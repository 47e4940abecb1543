"""Places of files: whether one can be written to or read, and in one sentence why not."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mcdi.errors import McdiError

_EFFECTIVE = os.access in os.supports_effective_ids


def check_writable(*paths: Path) -> None:
    """Raises McdiError for what is no place of a file, so that a command says so before its work: a folder, a link, a device or
    a pipe, or a folder that is none or that may not be written to."""
    for path in paths:
        with writing(path):
            _check_file(path)
            _check_folder(path.parent)


def check_folder_writable(path: Path) -> None:
    """As `check_writable`, for a folder that files are written to."""
    with writing(path):
        _check_folder(path)


def _check_file(path: Path) -> None:
    if path.is_symlink():
        raise McdiError(f"{path} is a link to {path.readlink()}: name that file, or remove the link")
    if path.is_dir():
        raise McdiError(f"{path} is a folder: give the name of a file")
    if path.exists() and not path.is_file():
        raise McdiError(f"{path} is a device, a pipe or a socket: give the name of a file")
    if path.exists() and not os.access(path, os.W_OK, effective_ids=_EFFECTIVE):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _check_folder(folder: Path) -> None:
    while not folder.exists() and not folder.is_symlink():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=_EFFECTIVE):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within the block, what keeps `path` from being written is a McdiError that names the cause."""
    try:
        yield
    except OSError as error:
        raise McdiError(f"cannot write to {path}: {cause_of(error, path)}; or choose another --out") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within the block, a file that is missing or cannot be read is a McdiError that names the cause."""
    try:
        yield
    except FileNotFoundError as error:
        raise McdiError(f"{path} does not exist: check the path, or run the step that makes it") from error
    except OSError as error:
        raise McdiError(f"{path} cannot be read: {cause_of(error, path)}") from error


def check_readable(path: Path) -> None:
    """Raises McdiError for a file that is missing or unreadable, before a library calls it damaged."""
    with reading(path), path.open("rb"):
        pass


def cause_of(error: OSError, path: Path) -> str:
    """What the system says, and the cure."""
    at = error.filename if isinstance(error.filename, str) else str(path)
    cures = {
        errno.EACCES: f"there is no permission for {at}: change its permissions",
        errno.EPERM: f"there is no permission for {at}: change its permissions",
        errno.EROFS: "the disk is read-only: make it writable",
        errno.ENOTDIR: f"{_no_folder(Path(at))} is not a folder: check the path",
        errno.EEXIST: f"{_no_folder(Path(at))} is not a folder: check the path",
        errno.EISDIR: f"{at} is a folder: give the name of a file",
        errno.ENOENT: f"{at} does not exist: check the path",
        errno.ENOSPC: f"{error.strerror}: free space",
        errno.EDQUOT: f"{error.strerror}: free space",
        errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
        errno.ELOOP: "its links form a circle: remove one",
    }
    return cures.get(error.errno or 0, f"{error.strerror or error}: check the disk")


def _no_folder(path: Path) -> Path:
    """The first part of a path that exists and is not a folder."""
    return next((p for p in (*reversed(path.parents), path) if p.exists() and not p.is_dir()), path)
