"""Frozen dataclasses from the tables of a TOML or JSON file, checked by pydantic: all problems are reported at once."""

import dataclasses
import functools
import json
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from mcdi.errors import McdiError

S = TypeVar("S")


def make(cls: type[S], values: Mapping[str, Any], where: str) -> S:
    """An instance of a dataclass from plain values.

    A nested dataclass takes a table, which overrides the owner's default value by value. A dataclass may declare
    `renamed: ClassVar = {"old": "new", "key": {"old value": "new value"}}`: each is reported with its new name.

    Args:
        cls: a dataclass; its fields hold what JSON holds, and other such dataclasses.
        values: what the file says; keys that it leaves out take their defaults.
        where: what the messages call the table, such as "generator" or the name of a file.

    Raises:
        McdiError: names every unknown key, missing key and wrong value, with the legal ones.
    """
    problems: list[str] = []
    complete = _complete(cls, values, where, problems)
    try:
        (made,) = _adapter(typing.cast(Any, cls)).validate_json(json.dumps([complete], default=str))
    except ValidationError as error:
        problems += [_sentence(cls, where, e) for e in error.errors(include_url=False)]
    else:
        if not problems:
            return typing.cast(S, made)
    raise McdiError("; ".join(problems))


def check_choices(settings: Any) -> None:
    """Raises McdiError for a field of a dataclass that is none of its Literal's values; those made in Python pass no `make`."""
    for name, legal in _choices(settings.__class__).items():
        if getattr(settings, name) not in legal:
            raise McdiError(f"{name} = {getattr(settings, name)!r} is unknown: choose {', '.join(map(str, legal))}")


@functools.cache
def _choices(cls: Any) -> dict[str, tuple[Any, ...]]:
    hints = typing.get_type_hints(cls)
    return {name: typing.get_args(hint) for name, hint in hints.items() if typing.get_origin(hint) is typing.Literal}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, table by table."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


@functools.cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    """Of a list of one: pydantic takes no configuration for a dataclass itself, but hands on that of its container."""
    return TypeAdapter(list[cls], config=ConfigDict(extra="forbid", strict=True))


def _complete(cls: Any, values: Mapping[str, Any], where: str, problems: list[str]) -> dict[str, Any]:
    """`values`, each nested table on top of its owner's default, without what was renamed."""
    renamed, types, complete = getattr(cls, "renamed", {}), typing.get_type_hints(cls), dict(values)
    for key, value in values.items():
        new = renamed.get(key)
        if isinstance(new, str):
            problems.append(f"{where}.{key} was renamed: write {new}")
            del complete[key]
        elif isinstance(new, Mapping) and isinstance(value, str) and value in new:
            problems.append(f"{where}.{key} = {value!r} was renamed: write {new[value]!r}")
            del complete[key]
        elif dataclasses.is_dataclass(types.get(key)) and isinstance(value, Mapping):
            table = _complete(types[key], value, f"{where}.{key}", problems)
            complete[key] = merged(_default(cls, key), table)
    return complete


def _default(cls: Any, key: str) -> dict[str, Any]:
    field = next(f for f in dataclasses.fields(cls) if f.name == key)
    if field.default is not dataclasses.MISSING:
        return dataclasses.asdict(field.default)
    return {} if field.default_factory is dataclasses.MISSING else dataclasses.asdict(field.default_factory())


def _sentence(cls: Any, where: str, error: Any) -> str:
    """One of pydantic's errors, with its path in the file and the legal names."""
    kind, path = error["type"], error["loc"][1:]
    if kind == "value_error":  # raised by __post_init__
        return str(error["ctx"]["error"])
    if kind in ("unexpected_keyword_argument", "missing"):
        for part in path[:-1]:
            cls, where = typing.get_type_hints(cls)[part], f"{where}.{part}"
        if kind == "missing":
            return f"{where}: {path[-1]} is missing"
        return f"{where}: unknown key {path[-1]!r}, there are {', '.join(f.name for f in dataclasses.fields(cls))}"
    name = where + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return f"{name} = {error['input']!r} {error['msg'].removeprefix('Input ').replace('an object', 'a table')}"
