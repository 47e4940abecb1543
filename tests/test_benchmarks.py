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


@pytest.mark.slow
def test_a_server_survives_hostile_requests() -> None:
    """A part of what the script sends when it is run by hand."""
    pytest.importorskip("fastapi", reason="needs mcdi[serve]")
    script = next(path for path in BENCHMARKS if path.stem == "hostile_requests")
    done = subprocess.run([sys.executable, script, "--requests", "1000"], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
