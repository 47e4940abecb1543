"""The documentation as a site, the package as a wheel and an image."""

import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "mkdocs.yml").exists(), reason="only the repository has a site and a Dockerfile")
# What a browser fetches by itself; links that a reader may follow are not.
FETCHED = re.compile(
    r'<(?:script|img|iframe|source)[^>]*\bsrc="?([^">\s]+)|<link[^>]*\bhref="?([^">\s]+)|url\(["\']?([^)"\']+)'
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built strictly: any broken link, anchor or reference to the code would have failed it."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*.html")}, folder


def test_the_site_fetches_nothing_from_other_hosts(site):
    pages, folder = site
    texts = list(pages.values()) + [p.read_text() for p in folder.rglob("*.css")]
    fetched = {next(filter(None, found)) for text in texts for found in FETCHED.findall(text)}
    assert len(fetched) > 5 and not [f for f in fetched if re.match(r"(https?:)?//", f)]


def test_formulas_are_drawn_by_the_browser(site):
    page = site[0]["concepts/the-method.html"]
    assert page.count("<math ") > 100 and page.count('display="block"') > 10
    assert "arithmatex" not in page and "\\bar" not in re.sub(r"<math.*?</math>", "", page, flags=re.DOTALL)


def test_tables_and_pictures_of_results_are_in_the_site(site):
    pages, folder = site
    page = pages["results/samplers.html"]
    for name in ("tables/steps-natural.html", "tables/steps-natural.png"):
        assert f'"{name}"' in page and (folder / "results" / name).exists()
    assert "<table>" in pages["results/tables/steps-natural.html"]


def test_the_reference_has_signatures_and_docstrings(site):
    page = re.sub(r"<[^>]+>", "", site[0]["reference/generator.html"])
    assert "generate" in page and "Weights from a support set, without a gradient step" in page and "temperature" in page


def test_what_the_image_copies_exists_and_is_not_ignored():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") and "--from" not in line for name in line.split()[1:-1]]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == kept and all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"], "pyproject.toml", "src"} == kept  # what the wheel is built of
    asked = re.search(r'"(torch==[^"]+)"', "\n".join(lines))[1]
    assert f'torch="{asked}"' in (ROOT / "scripts/setup.sh").read_text()
    assert lines.index("USER mcdi") < next(n for n, line in enumerate(lines) if line.startswith("ENTRYPOINT"))


@pytest.mark.slow
def test_the_wheel_installs_and_runs_without_the_repository(tmp_path):
    pytest.importorskip("hatchling")

    def run(*command):
        done = subprocess.run([str(c) for c in command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("mcdi-*.whl")
    venv.create(tmp_path / "env", with_pip=True, system_site_packages=True)
    python = tmp_path / "env/bin/python"
    # torch and the rest are those of this environment, which is not the system's
    (tmp_path / "env/lib" / f"python3.{sys.version_info.minor}" / "site-packages/parent.pth").write_text(
        next(p for p in sys.path if p.endswith("site-packages"))
    )
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", "--force-reinstall", wheel)
    assert str(tmp_path) in run(python, "-I", "-c", "import mcdi; print(mcdi.__file__)")
    assert "compare" in run(tmp_path / "env/bin/mcdi", "--help")
    assert "methods = [" in run(tmp_path / "env/bin/mcdi", "recipes", "glyphs")
