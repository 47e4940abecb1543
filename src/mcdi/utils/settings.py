"""How does a table of a TOML or JSON file become a frozen dataclass? Unknown keys and wrong types are errors, all at once."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from mcdi.errors import McdiError

S = TypeVar("S")


def make(cls: type[S], values: Mapping[str, Any], where: str) -> S:
    """An instance of the dataclass `cls` from plain values; nested dataclasses from nested tables.

    Raises McdiError that lists every unknown key and every wrong type, with the names that are legal.
    """
    problems: list[str] = []
    built = _make(cls, values, where, problems)
    if problems:
        raise McdiError("; ".join(problems))
    return typing.cast(S, built)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, table by table."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def _make(cls: Any, values: Mapping[str, Any], where: str, problems: list[str]) -> Any:
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    arguments = {}
    for key, value in values.items():
        if key not in names:
            problems.append(f"{where}: unknown key {key!r}, there are {', '.join(names)}")
            continue
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            if isinstance(value, Mapping):
                full = merged(_default(cls, key), value)
                given_first = {**{n: full[n] for n in value}, **full}  # problems are told in the order of the file
                arguments[key] = _make(hint, given_first, f"{where}.{key}", problems)
            else:
                problems.append(f"{where}.{key} = {value!r} must be a table")
        elif _fits(value, hint):
            arguments[key] = tuple(value) if isinstance(value, list) else value
        else:
            problems.append(f"{where}.{key} = {value!r} must be {_describe(hint)}")
    for f in dataclasses.fields(cls):
        if f.name not in values and f.default is f.default_factory is dataclasses.MISSING:
            problems.append(f"{where}: {f.name} is missing")
    return None if problems else cls(**arguments)


def _default(cls: Any, key: str) -> dict[str, Any]:
    """The owner's own defaults of a nested table: a recipe that sets one value of it keeps the others."""
    field = next(f for f in dataclasses.fields(cls) if f.name == key)
    if field.default is not dataclasses.MISSING:
        return dataclasses.asdict(field.default)
    return {} if field.default_factory is dataclasses.MISSING else dataclasses.asdict(field.default_factory())


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in inner
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, h) for h in inner)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(_fits(v, inner[0]) for v in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    return hint is Any or isinstance(value, hint)


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint).replace("typing.", "")
