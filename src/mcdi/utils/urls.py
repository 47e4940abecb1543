"""How is a finished store read from, or copied to, a place that is not a folder here? Through any URL that fsspec knows."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec

from mcdi.errors import McdiError


def place(where: str | Path) -> str | Path:
    """A URL as a str, a folder as a Path."""
    return where if isinstance(where, str) and "://" in where else Path(where)


@contextmanager
def _one_sentence(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise McdiError(f"{url} does not exist: check the address") from error
    except ImportError as error:
        raise McdiError(f"{url} needs a package that is not installed: {error}") from error
    except McdiError:
        raise
    except Exception as error:  # every protocol's package has its own: no access, no network, no such bucket
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise McdiError(f"{url} cannot be used ({said}): check the address and your access to it") from error


def _system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    protocol = url.partition("://")[0]
    if protocol not in fsspec.available_protocols():
        raise McdiError(f"unknown protocol {protocol!r} in {url}: choose a folder, file, memory, s3, hf or another of fsspec's")
    system, path = fsspec.url_to_fs(url)
    return system, path


def read_url(url: str) -> bytes:
    """The content of one file. Raises McdiError naming a URL that does not exist or cannot be reached."""
    with _one_sentence(url):
        system, path = _system(url)
        data: bytes = system.cat_file(path)
        return data


def write_url(url: str, data: bytes) -> None:
    """Replace one file. Raises McdiError naming a URL that cannot be written."""
    with _one_sentence(url):
        system, path = _system(url)
        system.makedirs(system._parent(path), exist_ok=True)
        system.pipe_file(path, data)


def url_exists(url: str) -> bool:
    with _one_sentence(url):
        system, path = _system(url)
        return bool(system.exists(path))
