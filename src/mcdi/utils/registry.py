"""Registries by name: parts of mcdi and of other packages add themselves, and are imported when first asked for."""

import os
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoints, entry_points
from typing import Generic, TypeVar

from mcdi.errors import McdiError, explained

S = TypeVar("S")


def _changed(path: str) -> int | None:
    """When a folder's entries changed last, in nanoseconds; None where there is no such folder."""
    try:
        return os.stat(path or ".").st_mtime_ns
    except OSError:
        return None


@lru_cache(maxsize=16)
def _read(group: str, places: tuple[tuple[str, int | None], ...]) -> EntryPoints:
    """The entry points of a group: they stand in a file of every installed package, and reading all takes 20 ms and more."""
    return entry_points(group=group)


def _installed(group: str) -> EntryPoints:
    """The entry points of a group, read again where a package may have been installed since."""
    return _read(group, tuple((path, _changed(path)) for path in sys.path))


class Registry(Generic[S]):
    """Specs by name.

    Args:
        kind: what a spec describes, for messages: "network".
        group: entry point group of other packages. An entry point NAME = "package.module" names the module whose import adds
            the spec NAME; worker processes find it there too.
        built_in: {name: module that adds it} of this package.
    """

    def __init__(self, kind: str, group: str, built_in: Mapping[str, str]) -> None:
        self.kind, self.group, self._built_in = kind, group, dict(built_in)
        self._specs: dict[str, S] = {}

    def add(self, name: str, spec: S) -> None:
        """Add a spec. Raises McdiError for a name that is taken."""
        if name in self._specs:
            raise McdiError(f"the {self.kind} {name!r} is registered twice: rename one")
        self._specs[name] = spec

    def get(self, name: str) -> S:
        """The spec of that name; its module is imported where it was not.

        Raises:
            McdiError: no such name, or its module cannot be imported.
        """
        if name not in self._specs:
            self._import(name)
        if name not in self._specs:
            raise McdiError(f"unknown {self.kind} {name!r}: choose {', '.join(self)}")
        return self._specs[name]

    def _import(self, name: str) -> None:
        if name in self._built_in:
            import_module(self._built_in[name])
            return
        for point in _installed(self.group).select(name=name):
            with explained(f"{self.kind} {name!r} cannot be imported from {point.value}", "mend it"):
                point.load()  # code of another package may raise anything

    def __contains__(self, name: object) -> bool:
        return name in self._specs or name in self._built_in or any(p.name == name for p in _installed(self.group))

    def __iter__(self) -> Iterator[str]:
        """The names: of this package, then of others."""
        return iter(dict.fromkeys([*self._built_in, *self._specs, *(p.name for p in _installed(self.group))]))
