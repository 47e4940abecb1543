"""The structure of the package: no two files import each other in a circle, no file is long, and the top level holds rooms."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mcdi

PACKAGE = Path(mcdi.__file__).parent
FILES = {".".join(("mcdi", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in PACKAGE.rglob("*.py")}
ROOMS = {"cli", "serve", "experiments", "generator", "methods", "trajectories", "tasks", "networks", "utils", "recipes"}
SINGLE = {"__init__", "__main__", "core", "weights", "types", "errors", "sklearn"}


def imports(path: Path) -> set[str]:
    """The files of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                found |= {name, node.module} & FILES.keys()
    return found


def test_no_circle_of_imports() -> None:
    graph = {name: imports(path) for name, path in FILES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_no_long_file() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert not {name: n for name, n in lines.items() if n > 300} and lines["mcdi.core"] <= 240


def test_the_top_level_holds_rooms_and_seven_files() -> None:
    assert {p.stem for p in PACKAGE.glob("*.py")} == SINGLE
    assert {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"} == ROOMS
