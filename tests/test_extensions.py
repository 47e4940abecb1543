"""A method, a source of data and a network in a package outside mcdi: run, compared, exported and served without a change here.

The package is made of the code in docs/how-to, installed by pip, and used through the command line alone.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from drawing import process

from mcdi.serve.client import Client

HOW_TO = Path(__file__).parents[1] / "docs" / "how-to"
pytestmark = pytest.mark.skipif(not HOW_TO.exists(), reason="docs/ is in the repository, not in the source distribution")
PARTS = {"method": "medians", "data-source": "clouds", "network": "tiny_mlp"}
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "my-package"
version = "0.1"
"""
HEAD = """
methods = ["prototypes", "medians", "mc-di"]
[family]
data = "clouds"
shots = [1]
spread = 0.8
[preparation]
tasks = 24
epochs = 12
[method.medians]
scale = 2.0
[generator]
training = { iterations = 8, learners = 2, tasks = 4 }
options = { width = 16, depth = 1 }
[evaluation]
tasks = 8
validation = 8
"""
WHOLE = """
base = "head.toml"
methods = ["mc-di"]
[family]
network = "tiny-mlp"
way = 3
[generator]
denoiser = "mlp"
prior = false
"""


# `mcdi ...` for every argument, in one process, because it takes seconds to begin; exits with 0 if all succeed, 2 if all fail.
COMMANDS = """
import shlex, sys
from mcdi.cli.main import main
commands, codes = sys.argv[1:], set()
for command in commands:
    sys.argv = ["mcdi", *shlex.split(command)]
    print("$", command, flush=True)
    try:
        main()
    except SystemExit as ended:
        codes.add(ended.code or 0)
sys.exit({(0,): 0, (1,): 2}.get(tuple(codes), 1))
"""


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", (HOW_TO / f"{page}.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A folder with recipes, and a function that runs mcdi there in a process that finds the installed package."""
    root = tmp_path_factory.mktemp("extended")
    source, site = root / "source" / "my_package", root / "site"
    source.mkdir(parents=True)
    (source / "__init__.py").touch()
    project = PROJECT
    for page, module in PARTS.items():
        (code,) = blocks(f"add-a-{page}", "python")
        (source / f"{module}.py").write_text(code)
        project += next(b for b in blocks(f"add-a-{page}", "toml") if "entry-points" in b)
    (source.parent / "pyproject.toml").write_text(project)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(source.parent)], check=True, capture_output=True, text=True)
    (root / "head.toml").write_text(HEAD)
    (root / "whole.toml").write_text(WHOLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("COLUMNS", "80")

        def mcdi(*commands: str, fails: bool = False) -> str:
            done = subprocess.run([sys.executable, "-c", COMMANDS, *commands], cwd=root, capture_output=True, text=True)
            assert done.returncode == (2 if fails else 0), done.stdout + done.stderr
            return done.stdout + done.stderr

        mcdi(
            "prepare head.toml --out head --workers 1",
            "run head.toml --out head --workers 2",  # two more processes, which must find the package too
            "run whole.toml --out whole --workers 1",
        )
        yield root, mcdi


def test_a_run_measures_the_method_on_the_source(extended):
    root, _ = extended
    result = json.loads((root / "head" / "results" / "medians-0.json").read_text())
    assert result["gradient_free"] and 0.3 < result["shots"]["1"]["mean"] <= 1
    # The median of one example is that example: the head is that of class means, at another scale.
    means = json.loads((root / "head" / "results" / "prototypes-0.json").read_text())
    assert result["shots"]["1"]["mean"] == means["shots"]["1"]["mean"]
    for page in ("table.md", "report.html"):
        assert "class medians" in (root / "head" / page).read_text()


def test_it_is_compared_with_all_others(extended):
    root, mcdi = extended
    mcdi("compare head.toml --out head --methods prototypes,medians,mc-di --results results")
    (table,) = (root / "results").glob("compare-*.md")
    assert "medians" in table.read_text()


def test_all_weights_of_the_network_are_generated(extended):
    root, _ = extended
    config = json.loads((root / "whole" / "methods" / "mc-di-0" / "config.json").read_text())
    assert config["network"] == {"kind": "tiny-mlp", "features": 16, "way": 3, "hidden": 8}
    assert config["space"]["parameters"].keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}


@pytest.mark.slow
def test_it_is_exported_where_its_spec_says_so(extended):
    root, mcdi = extended
    mcdi("export whole/methods/mc-di-0 --format torch")
    assert (root / "whole" / "methods" / "mc-di-0" / "sampler.pt2").exists()
    assert "medians cannot be exported" in mcdi("export head/methods/medians-0", fails=True)


def test_it_is_served(extended):
    pytest.importorskip("fastapi", reason="the server is not installed: pip install 'mcdi[serve]'")
    root, _ = extended
    x, labels = torch.eye(16)[:3].repeat(2, 1), ["a", "b", "c"] * 2
    folders = [f"{run}-{name}={root}/{run}/methods/{name}-0" for run, name in (("head", "medians"), ("whole", "mc-di"))]
    with process(folders) as url, Client(url) as client:
        for model in ("head-medians", "whole-mc-di"):
            kept = client.keep(model, {"features": x}, labels)
            assert kept.classes == ["a", "b", "c"]
        prediction = client.predict(client.keep("head-medians", {"features": x}, labels).handle, {"features": x})
        assert prediction.labels == labels


def test_wrong_settings_are_one_sentence(extended):
    root, mcdi = extended
    wrong = (
        ("spread = -1.0", "spread = -1.0 must be positive"),
        ("wings = 2", "unknown key 'wings'"),
        ('network = "film-head"', "network = 'film-head' does not fit data = 'clouds'"),
    )
    for n, (change, _) in enumerate(wrong):
        (root / f"wrong{n}.toml").write_text(f'base = "head.toml"\n[family]\n{change}\n')
    out = mcdi(*(f"run wrong{n}.toml --out wrong" for n in range(3)), fails=True)
    assert "Traceback" not in out and all(message in " ".join(out.split()) for _, message in wrong)
