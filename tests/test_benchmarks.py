"""Every benchmark can be imported: benchmarks are run by hand, and a change in the package must not break them."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda p: p.stem)
def test_its_imports_exist(path: Path) -> None:
    assert callable(runpy.run_path(str(path), run_name="benchmark")["main"])


def test_tests_of_a_kind_are_counted() -> None:
    """Those of pytest's output: what passed, what draws, the inputs drawn, what failed."""
    counted = runpy.run_path(str(next(p for p in BENCHMARKS if p.stem == "input_kinds")), run_name="benchmark")["counted"]
    drawn = "tests/a.py::test_{}:\n\n  - during generate (0.8 s):\n    - {} passing, 0 failing, and 4 invalid test cases\n"
    output = f"...F\n{drawn.format('one', 60)}\n{drawn.format('two', 48)}\n"
    assert counted(f"{output}3 passed in 2.0s\n") == (3, 2, 108, 0)
    assert counted(f"{output}FAILED tests/a.py::test_x - 5 passed\n1 failed, 3 passed, 2 errors in 2.0s\n") == (3, 2, 108, 3)


@pytest.mark.slow
def test_a_server_survives_hostile_requests() -> None:
    """A part of what the script sends when it is run by hand."""
    pytest.importorskip("fastapi", reason="needs mcdi[serve]")
    script = next(path for path in BENCHMARKS if path.stem == "hostile_requests")
    done = subprocess.run([sys.executable, script, "--requests", "1000"], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
