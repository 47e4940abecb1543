"""Files at URLs, by fsspec: whole stores lie there, and are read and written file by file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec

from mcdi.errors import McdiError, explained


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
