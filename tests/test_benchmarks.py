"""Benchmarks are run by hand: a change in the package must not break them unnoticed."""

import runpy
from pathlib import Path

import pytest

BENCHMARKS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda p: p.stem)
def test_what_it_needs_is_there(path: Path) -> None:
    assert callable(runpy.run_path(str(path), run_name="benchmark")["main"])
