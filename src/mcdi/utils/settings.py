"""Frozen dataclasses from the tables of a TOML or JSON file, checked by pydantic: all problems are reported at once."""

import dataclasses
import functools
import json
import math
import numbers
import typing
from collections.abc import Iterator, Mapping
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


def check_fields(settings: Any) -> None:
    """Raises McdiError for a field of a dataclass that is none of its Literal's values, or no number of its type: settings made
    in Python pass no `make`."""
    for name, (legal, kind) in _fields(settings.__class__).items():
        value = getattr(settings, name)
        if legal and value not in legal:
            raise McdiError(f"{name} = {value!r} is unknown: choose {', '.join(map(str, legal))}")
        if kind is not None:
            check_number(kind, **{name: value})


def check_number(kind: type[int] | type[float], **values: Any) -> None:
    """Raises McdiError for a value, by its name, that is neither None, nor a finite number of this kind, nor made of such."""
    for name, value in values.items():
        for number in _leaves(value):
            if isinstance(number, bool) or not isinstance(number, numbers.Integral if kind is int else numbers.Real):
                raise McdiError(f"{name} = {value!r} is no {'whole ' if kind is int else ''}number: give one")
        for sentence in _unfit(name, value):
            raise McdiError(sentence)


def _fits(value: Any) -> bool:
    """Whether all numbers in a value are finite, and its integers have no more than 64 bits."""
    real = (n for n in _leaves(value) if isinstance(n, numbers.Real))
    return all(-(2**63) <= int(n) < 2**63 if isinstance(n, numbers.Integral) else math.isfinite(n) for n in real)


def _unfit(name: str, value: Any) -> Iterator[str]:
    """A sentence on every number of a value, or of the tables in it, that does not fit."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _unfit(f"{name}.{key}", part)
    elif not _fits(value):
        yield f"{name} = {value!r} is no finite number of 64 bits: give one"


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(part)
    elif value is not None:
        yield value


@functools.cache
def _fields(cls: Any) -> dict[str, tuple[tuple[Any, ...], type[int] | type[float] | None]]:
    """The legal values, and the kind of the numbers, of every field that has either."""
    out = {}
    for field in dataclasses.fields(cls):
        hint = typing.get_type_hints(cls)[field.name]
        legal = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
        types = set(_types(hint))
        kind = None if types & {str, bool} or not types & {int, float} else float if float in types else int
        if legal or kind:
            out[field.name] = legal, kind
    return out


def _types(hint: Any) -> Iterator[Any]:
    """The types that a hint is made of, without those of a mapping's keys."""
    if typing.get_origin(hint) is typing.Literal:
        return
    parts = typing.get_args(hint)
    if not parts:
        yield hint
    origin = typing.get_origin(hint)
    for part in parts[1:] if isinstance(origin, type) and issubclass(origin, Mapping) else parts:
        yield from _types(part)


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
        elif unfit := list(_unfit(f"{where}.{key}", value)):
            problems += unfit
            del complete[key]
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
