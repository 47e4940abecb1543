"""Kinds of real inputs: how many tests each has, and how many cases these draw.

    python benchmarks/input_kinds.py [--kinds images text ...]

Every kind is a selection of the test suite, slow tests included. The table has a row a kind: tests that passed, how many of
them draw their inputs (hypothesis), the inputs drawn, and what failed. The script ends with code 1 if anything failed.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mcdi.errors import McdiError
from mcdi.experiments.run import provenance

INPUTS, TASKS, SERVE = "tests/generator/test_inputs.py", "tests/tasks/", "tests/serve/"
KINDS = {
    "images": [f"{TASKS}test_image_folders.py", f"{TASKS}test_image_files.py"],
    "numbers, labels, seeds, devices, options": [INPUTS],
    "modules": ["tests/networks/test_any_module.py", f"{TASKS}test_own.py"],
    "text": [f"{TASKS}test_text_rows.py", f"{TASKS}test_text.py", f"{TASKS}test_intents.py"],
    "reading and writing files": ["tests/utils/test_places.py", "tests/utils/test_files.py", f"{TASKS}test_feature_cache.py"],
    "damaged files": ["tests/utils/test_checksums.py", f"{TASKS}test_omniglot.py"],
    "kills, Ctrl-C, two processes": [
        "tests/experiments/test_durability.py",
        "tests/experiments/test_only_writer.py",
        "tests/cli/test_interrupts.py",
    ],
    "threads": ["tests/networks/test_threads.py"],
    "server": [
        f"{SERVE}test_{n}.py" for n in ("deployment", "tenants", "client", "wire", "own_module", "process", "proxied_page")
    ],
    "server under attack": [f"{SERVE}test_connections.py", f"{SERVE}test_hostile.py"],
}


def counted(output: str) -> tuple[int, int, int, int]:
    """Tests that passed, tests that draw, inputs drawn, and tests that failed: from pytest's output with statistics."""
    end = output.rstrip().rpartition("\n")[2]
    passed, failed = (sum(map(int, re.findall(rf"(\d+) {word}", end))) for word in ("passed", "(?:failed|error)"))
    drawn = [int(n) for n in re.findall(r"(\d+) passing, ", output)]
    return passed, len(re.findall(r"^tests/\S+::.*:$", output, re.MULTILINE)), sum(drawn), failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    console, root = Console(width=150), Path(__file__).parents[1]
    table = Table("kind", "tests", "that draw", "inputs drawn", "failed", title="Kinds of inputs")
    failures = 0
    for kind in parser.parse_args().kinds:
        options = ["-q", "-n", "0", "-m", "not gpu", "-p", "no:cacheprovider", "--hypothesis-show-statistics"]
        command = [sys.executable, "-m", "pytest", *options, *KINDS[kind]]
        output = subprocess.run(command, cwd=root, capture_output=True, text=True).stdout
        passed, draw, drawn, failed = counted(output)
        if not passed + failed:
            raise McdiError(f"pytest ran no test of {kind}: {output[-500:]}")
        if failed:
            console.print(output)
        console.print(f"{kind}: {passed} tests passed, {failed} failed")
        table.add_row(kind, str(passed), str(draw), f"{drawn:,}", str(failed))
        failures += failed
    console.print(table)
    console.print(str(provenance()))
    raise SystemExit(failures > 0)


if __name__ == "__main__":
    main()
