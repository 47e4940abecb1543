"""What tests share: one thread, the toy family, and one finished tiny run."""

import fcntl
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browsing import browser, visit  # noqa: F401, fixtures
from PIL import Image, ImageDraw
from worlds import World, both

from mcdi.cli import main
from mcdi.experiments import evaluate
from mcdi.experiments.studies import measures
from mcdi.tasks.curves import Sines

TESTS = Path(__file__).parent
# What takes long, the longest first: a worker of pytest-xdist that began one of them last would keep all others waiting. Files
# of `methods` belong together, because they share the methods that `worlds` has fitted.
LONG = (
    *("experiments/test_studies.py", "methods/", "test_extensions.py", "test_docs.py", "experiments/test_presets.py"),
    *(
        "cli/test_cli.py",
        "tasks/test_text_lora.py",
        "serve/test_page.py",
        "serve/test_photo_page.py",
        "serve/test_hostile.py",
        "utils/test_workers.py",
    ),
    *("test_site.py", "generator/test_export.py"),
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With -n: a file's tests in one worker, because fixtures of a module are then made once; files in our order."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return next((part for part in LONG if part.endswith("/") and file.startswith(f"tests/{part}")), file)

    if config.getvalue("dist") != "load":  # somebody asked for another way
        return None
    config.option.loadscopereorder = False
    return Files(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = str(item.path.relative_to(TESTS)) if item.path.is_relative_to(TESTS) else ""
        return next((n for n, part in enumerate(LONG) if name.startswith(part)), len(LONG))

    items.sort(key=place)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make` fills, made by the first worker of pytest-xdist that asks: do not write to it."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, complete = root / f"once-{name}", root / f"once-{name}.complete"
    with (root / f"once-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            folder.mkdir()
            make(folder)
            complete.touch()
    return folder


@pytest.fixture(scope="session", autouse=True)
def _times_are_measured_once() -> Iterator[None]:
    """Medians of thirty calls are for figures that are published."""
    milliseconds = evaluate.milliseconds
    with pytest.MonkeyPatch.context() as patch:
        for module in (evaluate, measures):
            patch.setattr(module, "milliseconds", lambda call, repeats=1: milliseconds(call, repeats=1))
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor fill the user's cache of features."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCDI_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    torch.set_num_threads(1)
    yield


@pytest.fixture(scope="session")
def sines() -> Sines:
    return Sines(shots=6, queries=20, hidden=6)


@pytest.fixture(scope="session")
def worlds(sines: Sines) -> dict[str, World]:
    return both(sines)


RECIPE = """
about = "everything, tiny"
methods = [
    "prototypes", "linear-probe", "meta-baseline", "lda", "plda", "adaptive-plda", "logistic-regression", "adam", "reptile",
    "maml", "meta-hypernetwork", "metadiff", "vae",
    "p-diff", "d2nwg", "ocd-residual", "icis", "ghn-3",
    "hypernetwork", "ocd", "tw-di", "mv-di", "mc-di",
]
[family]
way = 3
shots = [1]
queries = 5
limit = 30
backbone_steps = 4
backbone_way = 8
[evaluation]
tasks = 8
validation = 8
[preparation]
tasks = 24
epochs = 12
chunk = 10
[generator]
options = { width = 16, depth = 1 }
training = { iterations = 8, learners = 2, tasks = 4, checkpoint_every = 2 }
[method.adam]
lrs = [0.03]
steps = [2, 4]
decays = [0.0]
tasks = 8
[method.reptile]
training = { iterations = 8, learners = 2, checkpoint_every = 2 }
tuning = { lrs = [0.03], steps = [2, 4], decays = [0.0], tasks = 8 }
"""
OF_TASKS = ("maml", "meta-hypernetwork", "ghn-3")  # a learner is a task
MAML, CHAIN = "test_steps = [1, 3]\ntuning_tasks = 8\n", "T = 20\nsteps = 5\n"
ONE_LEVEL = {**dict.fromkeys(OF_TASKS[:2], MAML), **dict.fromkeys(("ghn-3", "vae", "icis"), "")}
ONE_LEVEL |= {"metadiff": CHAIN, "ocd-residual": CHAIN, **dict.fromkeys(("p-diff", "d2nwg"), f"{CHAIN}samples = 2\n")}
for name, values in ONE_LEVEL.items():
    training = f'meta = "none", iterations = 8, learners = 2, inner_steps = 1, tasks = {1 if name in OF_TASKS else 4}'
    RECIPE += f"[method.{name}]\n{values}training = {{ {training}, checkpoint_every = 2 }}\n"


def curves(*names: str) -> str:
    """RECIPE for sine curves instead of images, with these methods."""
    family = '[family]\ndata = "sines"\nshots = [6]\nqueries = 5\n'
    return with_methods(
        re.sub(r"\[family\]\n.*?(?=\[)", family, RECIPE.replace("shots = [1]", ""), count=1, flags=re.DOTALL), *names
    )


def with_methods(text: str, *names: str) -> str:
    """A recipe's text, of these methods."""
    return re.sub(r"methods = \[.*?\]", f"methods = {list(names)}", text, count=1, flags=re.DOTALL)


def mcdi(*arguments: object) -> int:
    """What a user types, run in this process: the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mcdi", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main.main()
    return int(ended.value.code or 0)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def done(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of RECIPE by one worker; copy it before you break it."""

    def run(folder: Path) -> None:
        assert mcdi("run", recipe, "--out", folder / "done", "--workers", 1) == 0

    return made_once(tmp_path_factory, "done", run) / "done"


@pytest.fixture(scope="module")
def studied(done: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run for all studies, so that they share generators as a user's do."""
    return Path(shutil.copytree(done, tmp_path_factory.mktemp("studies") / "run"))


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "copy"))


@pytest.fixture
def support(tmp_path: Path) -> Path:
    """Two classes, two drawings each: rings and strokes, dark on light."""
    for kind in ("ring", "stroke"):
        (tmp_path / "support" / kind).mkdir(parents=True)
        for n in range(2):
            image = Image.new("L", (56, 56), 255)
            draw = ImageDraw.Draw(image)
            if kind == "ring":
                draw.ellipse((8 + n, 8, 44, 44 + n), outline=0, width=4)
            else:
                draw.line((28 + n, 6, 28, 50 - n), fill=0, width=4)
            image.save(tmp_path / "support" / kind / f"{n}.png")
    return tmp_path / "support"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from tiny_models import make_models  # skips its tests where transformers or peft are not installed

    return {p.name: p for p in made_once(tmp_path_factory, "models", make_models).iterdir()}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, worlds: dict[str, World]) -> dict[str, Path]:
    from serving import make_folders  # skips its tests where fastapi is not installed

    return make_folders(tmp_path_factory.mktemp("served"), worlds)


@pytest.fixture(scope="module")
def client(folders: dict[str, Path]) -> Iterator[Any]:
    from serving import serving

    with serving(folders) as found:
        yield found
