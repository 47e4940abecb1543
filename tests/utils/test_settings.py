"""Dataclasses from tables: nested defaults, all problems at once, renamed options."""

import re
import typing
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcdi.errors import McdiError
from mcdi.methods.mcdi.settings import DiffusionSettings
from mcdi.methods.meta_training import MetaTraining
from mcdi.methods.sampling import Sampling
from mcdi.networks.backbones.language import LoraSettings
from mcdi.trajectories.prepare import Preparation
from mcdi.utils.settings import make, merged


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    kind: Literal["a", "b"] = "a"
    rates: tuple[float, ...] = ()
    renamed: ClassVar = {"speed": "rate", "kind": {"c": "a"}}

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise McdiError(f"rate = {self.rate} must not be negative")


@dataclass(frozen=True)
class Outer:
    name: str
    count: int = 1
    limit: int | None = None
    sizes: tuple[int, ...] = (1,)
    on: bool = False
    inner: Inner = Inner(rate=0.5)
    free: dict[str, Any] = field(default_factory=dict)


class TestMake:
    def test_builds_nested_values(self):
        values = {"name": "x", "sizes": [1, 2], "limit": None, "inner": {"kind": "b"}, "free": {"any": [1]}}
        assert make(Outer, values, "f") == Outer("x", sizes=(1, 2), inner=Inner(0.5, "b"), free={"any": [1]})
        assert make(Outer, {"name": "x", "limit": 3, "inner": {"rate": 1}}, "f").inner.rate == 1.0
        assert make(Outer, {"name": "x"}, "f") == Outer("x")

    def test_lists_everything_that_is_wrong(self):
        values = {
            "name": 3,
            "colour": 1,
            "count": True,
            "sizes": [1, "2"],
            "inner": {"rte": 1, "kind": "d"},
            "limit": 1.5,
            "on": 1,
            "free": [],
        }
        with pytest.raises(McdiError) as error:
            make(Outer, values, "f.toml")
        assert str(error.value).split("; ") == [
            "f.toml.name = 3 should be a valid string",
            "f.toml.count = True should be a valid integer",
            "f.toml.limit = 1.5 should be a valid integer",
            "f.toml.sizes[1] = '2' should be a valid integer",
            "f.toml.on = 1 should be a valid boolean",
            "f.toml.inner.kind = 'd' should be 'a' or 'b'",
            "f.toml.inner: unknown key 'rte', there are rate, kind, rates",
            "f.toml.free = [] should be a table",
            "f.toml: unknown key 'colour', there are name, count, limit, sizes, on, inner, free",
        ]

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"name": "x", "inner": 3}, "f.inner = 3 should be a table"),
            ({}, "f: name is missing"),
            ({"name": "x", "inner": {"rate": True}}, "f.inner.rate = True should be a valid number"),
            ({"name": "x", "sizes": 5, "inner": {"rate": -1}}, "f.sizes = 5 should be a valid array; rate = -1.0 must not be"),
            ({"name": "x", "inner": {"speed": 2}}, r"^f.inner.speed was renamed: write rate$"),
            ({"name": "x", "inner": {"kind": "c"}, "on": 1}, r"f.inner.kind = 'c' was renamed: write 'a'; f.on = 1 should be"),
        ],
    )
    def test_says_what_is_legal(self, values, message):
        with pytest.raises(McdiError, match=message):
            make(Outer, values, "f")


def test_merged_goes_table_by_table():
    base = {"a": 1, "t": {"x": 1, "y": 2}}
    assert merged(base, {"t": {"y": 3}, "b": 2}) == {"a": 1, "b": 2, "t": {"x": 1, "y": 3}}
    assert merged(base, {"t": 5})["t"] == 5 and base == {"a": 1, "t": {"x": 1, "y": 2}}


@given(st.text(max_size=12))
@pytest.mark.parametrize("kind", [DiffusionSettings, MetaTraining, Sampling, Preparation, LoraSettings])
def test_settings_made_in_python_know_their_choices_too(kind, word):
    """Every field that is a choice refuses any other word, whatever the dataclass."""
    choices = {n: typing.get_args(h) for n, h in typing.get_type_hints(kind).items() if typing.get_origin(h) is typing.Literal}
    assert choices
    for name, legal in choices.items():
        if word not in legal:
            with pytest.raises(McdiError, match=re.escape(f"{name} = {word!r} is unknown: choose {legal[0]}")):
                kind(**{name: word})
