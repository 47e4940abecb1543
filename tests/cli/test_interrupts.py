"""Ctrl-C ends a command with one line and exit code 130, whenever it comes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import curves
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

BEGIN = "from mcdi.cli.entry import main; print(flush=True); main()"
LINES = ("stopped", "stopped; the same command resumes")


def interrupted(command: list[str], seconds: float) -> tuple[int, list[str]]:
    """The exit code and the lines of a command that gets SIGINT, with its workers, so long after the program begins."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None and process.stdout.readline()
    time.sleep(0.1 + seconds)  # of which main() needs the beginning to take the signal over
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors.splitlines()


def check(folder: Path, what: str, seconds: float) -> None:
    (folder / "tiny.toml").write_text(curves("prototypes", "mc-di") if what == "run" else "")
    (folder / "classes").mkdir(exist_ok=True)
    commands = {
        "recipes": ["recipes", "glyphs"],
        "help": ["--help"],
        "run": ["run", str(folder / "tiny.toml"), "--out", str(folder / "run"), "--workers", "2"],
        "demo": ["demo", "--out", str(folder / "demo.png")],
        "generate": ["generate", "symbols", "--support", str(folder / "classes"), "--out", str(folder / "w.safetensors")],
        "serve": ["serve", "symbols", "--port", "0"],
    }
    code, lines = interrupted(commands[what], seconds)
    assert "Traceback" not in "\n".join(lines)
    if code == 130:
        assert lines[-1] in LINES and sum(line.startswith("stopped") for line in lines) == 1
    else:  # it had ended before
        assert code == (1 if what == "generate" else 0) and not any(line.startswith("stopped") for line in lines)


QUICK = settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(what=st.sampled_from(["recipes", "help", "demo", "generate"]), seconds=st.floats(0, 0.5))
def test_while_it_imports(tmp_path: Path, what: str, seconds: float) -> None:
    check(tmp_path, what, seconds)


@pytest.mark.slow
@settings(QUICK, max_examples=8)
@given(what=st.sampled_from(["recipes", "run", "run", "demo", "generate", "serve"]), seconds=st.floats(0, 15))
def test_at_any_moment(tmp_path: Path, what: str, seconds: float) -> None:
    if what == "serve":
        pytest.importorskip("fastapi", reason="needs mcdi[serve]")
        seconds = seconds / 2
    check(tmp_path, what, seconds)
