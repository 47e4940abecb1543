"""Every benchmark can be imported: benchmarks are run by hand, and a change in the package must not break them."""

import runpy
from pathlib import Path

import pytest

BENCHMARKS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda p: p.stem)
def test_its_imports_exist(path: Path) -> None:
    assert callable(runpy.run_path(str(path), run_name="benchmark")["main"])
