"""End to end, as a user: start, run, stop, resume, the parts, generated weights in a plain torch network."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import curves, mcdi, with_methods
from safetensors.torch import load_file
from torch import nn

import mcdi as package
from mcdi.errors import McdiError
from mcdi.experiments import demo
from mcdi.experiments.logs import read_log
from mcdi.experiments.recipe import read_recipe
from mcdi.experiments.recipe_files import recipe_names
from mcdi.methods import METHODS, method_spec
from mcdi.methods.mcdi.method import Diffusion
from mcdi.tasks.images.files import read_folder
from mcdi.utils.files import read_json, write_json

SERVING = [name for name in METHODS if method_spec(name).networks != "last layer"]  # those of the recipe, on heads


def models(folder: Path) -> dict[str, bytes]:
    """What a run learnt: every file that must not depend on stops, workers or the hour."""
    patterns = ("*.safetensors", "trajectories/*", "reference/*", "methods/*/model.safetensors", "methods/*/config.json")
    return {str(p.relative_to(folder)): p.read_bytes() for pattern in patterns for p in sorted(folder.glob(pattern))}


def figures(folder: Path) -> dict[str, dict]:
    """The results without times and dates."""
    results = {p.stem: json.loads(p.read_text()) for p in sorted((folder / "results").glob("*.json"))}
    return {n: {k: r[k] for k in ("shots", "curve", "parameters", "tasks", "seed")} for n, r in results.items()}


def logs(folder: Path) -> dict[str, list]:
    """The log of every training, without its times."""
    paths = [*sorted(folder.glob("methods/*/log.jsonl")), folder / "logs" / "backbone.jsonl"]
    return {str(p.relative_to(folder)): [(*q[:3], q.figures) for q in read_log(p)] for p in paths}


def start(*arguments: object) -> subprocess.Popen[str]:
    """`mcdi ...` in a process group of its own. Ctrl-C works in it, though a test run in the background ignores SIGINT."""
    command = [sys.executable, "-m", "mcdi", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(process: subprocess.Popen[str] | None, happened: Callable[[], object]) -> None:
    end = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < end and (process is None or process.poll() is None)
        time.sleep(0.002)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


class TestStart:
    """What a user waits for at every call does not load what it does not need."""

    @staticmethod
    def loaded(*arguments: str, **environment: str) -> tuple[str, list[str]]:
        """What `mcdi ...` prints in a process of its own, and which slow packages it has loaded."""
        code = (
            f"import atexit, sys; sys.argv = {['mcdi', *arguments]}; "
            "atexit.register(lambda: print(*{'torch', 'matplotlib', 'scipy', 'fastapi', 'numpy'} & set(sys.modules))); "
            "from mcdi.cli.main import main; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | environment
        )
        *printed, slow = done.stdout.splitlines()
        return "\n".join(printed), slow.split()

    @pytest.mark.parametrize(
        ("arguments", "printed"),
        [
            (["--version"], f"mcdi {package.__version__}"),
            (["--help"], "--install-completion"),
            (["-h"], "reproduce"),
            (["run", "-h"], "--tensorboard"),
            (["store", "info", "-h"], "URL of a finished one"),
            (["recipes"], "omniglot-20way"),
            (["models"], "symbols"),
        ],
    )
    def test_loads_no_slow_package(self, arguments, printed):
        out, slow = self.loaded(*arguments)
        assert printed in out and not slow

    def test_the_shell_completes_recipes(self):
        words = {"COMP_WORDS": "mcdi run omni", "COMP_CWORD": "2", "_MCDI_COMPLETE": "complete_bash"}
        out, slow = self.loaded(**words)
        assert out.split() == [name for name in recipe_names() if name.startswith("omni")] and not slow

    def test_the_package_has_its_names(self):
        for name in package.__all__:
            assert getattr(package, name).__name__ == name
        with pytest.raises(AttributeError, match="module 'mcdi' has no attribute 'lode'"):
            _ = package.lode


class TestRun:
    def test_leaves_results_table_and_report(self, done):
        assert sorted(figures(done)) == sorted(f"{m}-0" for m in SERVING)
        table = (done / "table.md").read_text()
        assert all(method_spec(m).label in table for m in SERVING)
        page = (done / "report.html").read_text()
        assert "<svg" in page or "<img" in page
        for name in ("landscape.json", "novelty.json", "recipe.json", "table.json"):
            json.loads((done / name).read_text())
        assert not list(done.rglob("*checkpoint*")) and not list(done.rglob("*.tmp"))

    def test_again_does_nothing_new_and_shows_the_table(self, copy, recipe, capsys):
        kept = [p for p in copy.rglob("*") if p.is_file() and p.parent.name not in ("copy",)]
        before = {p: p.stat().st_mtime_ns for p in kept}
        assert mcdi("run", recipe, "--out", copy, "--workers", 1) == 0
        assert {p: p.stat().st_mtime_ns for p in kept} == before
        out = capsys.readouterr().out
        assert "8 unseen tasks" in out and "report.html" in out

    @pytest.mark.slow
    def test_killed_twice_with_two_workers_it_ends_with_the_same_bytes(self, done, recipe, tmp_path):
        """Some of the methods of the run that was never stopped, of every way to train."""
        folder, some = tmp_path / "cut", tmp_path / "tiny.toml"
        some.write_text(with_methods(recipe.read_text(), "adam", "reptile", "vae", "d2nwg", "hypernetwork", "mc-di"))
        for sign, kill, code in (("checkpoint.safetensors", signal.SIGINT, 130), ("config.json", signal.SIGKILL, -9)):
            before = set(folder.glob("methods/*/config.json"))
            process = start("run", some, "--out", folder, "--workers", "2")
            wait_for(process, lambda: set(folder.glob(f"methods/*/{sign}")) - before)
            process.send_signal(kill)
            errors = process.communicate()[1]
            assert process.returncode == code, errors
            assert "Traceback" not in errors and ("the same command resumes" in errors) == (code == 130)
            assert not (folder / "report.html").exists()
            wait_for(None, lambda: not alive(process.pid))
        assert mcdi("run", some, "--out", folder, "--workers", 2) == 0
        for of in (models, figures, logs):
            whole, found = of(done), of(folder)
            assert found == {name: whole[name] for name in found} and len(found) >= 6

    def test_an_idle_worker_does_not_outlive_a_killed_command(self, copy, recipe):
        shutil.rmtree(copy / "methods")
        long = read_json(copy / "recipe.json")
        long["generator"]["training"]["iterations"] = 100_000
        write_json(copy / "recipe.json", long)
        options = ["--method", "prototypes", "--method", "mc-di", "--workers", "2"]
        process = start("train", copy, *options)
        wait_for(process, lambda: list(copy.glob("methods/p*/config.json")) and list(copy.glob("methods/mc*/checkpoint*")))
        process.kill()
        process.communicate()
        wait_for(None, lambda: not alive(process.pid))

    def test_the_parts_give_the_same(self, done, recipe, tmp_path, capsys):
        assert mcdi("prepare", recipe, "--out", tmp_path / "run", "--workers", 1) == 0
        assert "next: mcdi train" in capsys.readouterr().err
        assert mcdi("train", tmp_path / "run", "--method", "mc-di", "--workers", 1) == 0
        assert [p.name for p in (tmp_path / "run" / "methods").iterdir()] == ["mc-di-0"]
        assert mcdi("evaluate", tmp_path / "run", "--method", "mc-di", "--workers", 1) == 0
        assert "Mc-Di" in capsys.readouterr().out
        whole, part = models(done), models(tmp_path / "run")
        assert part == {n: whole[n] for n in part} and "methods/mc-di-0/model.safetensors" in part
        assert figures(tmp_path / "run") == {"mc-di-0": figures(done)["mc-di-0"]}

    def test_curves_and_another_seed(self, tmp_path, capsys):
        (tmp_path / "curves.toml").write_text(curves("adam", "mc-di"))
        assert mcdi("run", tmp_path / "curves.toml", "--out", tmp_path / "run", "--seed", 3, "--workers", 1) == 0
        assert sorted(figures(tmp_path / "run")) == ["adam-3", "mc-di-3"]
        assert "sines: 8 unseen tasks" in capsys.readouterr().out
        generator = package.load(tmp_path / "run" / "methods" / "mc-di-3")
        x = torch.linspace(-3, 3, 6)[:, None]
        weights = generator.generate((x, x[:, 0].sin()))
        net = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 1))
        net.load_state_dict(weights)
        torch.testing.assert_close(net(x)[:, 0], generator.predict(weights, x))
        whole = generator.generate((x, torch.zeros(6, dtype=torch.long)))  # integers are numbers too
        assert all(torch.equal(w, whole[n]) for n, w in generator.generate((x, torch.zeros(6))).items())

    def test_models(self, capsys):
        assert mcdi("models") == 0
        photos, symbols, texts = capsys.readouterr().out.splitlines()
        assert texts.startswith("texts  ") and "Makes a linear classifier for short texts of any classes" in texts
        assert photos.startswith("photos  Makes a linear classifier for photos of any classes")
        assert symbols.startswith("symbols  Makes every weight of a small convolutional network for drawn symbols")
        assert mcdi("models", "symbols") == 0
        assert "**Limits.**" in capsys.readouterr().out
        assert mcdi("models", "symbol") == 1
        assert "no ready-made generator 'symbol': choose photos, symbols" in capsys.readouterr().err

    def test_recipes(self, tmp_path, capsys):
        assert mcdi("recipes") == 0
        assert "omniglot " in capsys.readouterr().out
        assert mcdi("recipes", "natural-film") == 0
        (tmp_path / "mine.toml").write_text(capsys.readouterr().out)
        assert read_recipe(str(tmp_path / "mine.toml")) == read_recipe("natural-film")
        assert (tmp_path / "mine.toml").read_text().startswith("# All values of the recipe natural-film, for `mcdi run")

    def test_demo(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(demo, "TASKS", 30)
        monkeypatch.setattr(demo, "UNSEEN", 8)
        monkeypatch.setitem(demo.GENERATOR, "training", {"iterations": 5, "learners": 2, "tasks": 4})
        assert mcdi("demo", "--out", tmp_path / "demo.png") == 0
        assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
        assert "Mc-Di" in capsys.readouterr().out


class TestGenerate:
    def test_from_folders_of_images(self, done, support, tmp_path, capsys):
        out = tmp_path / "w.safetensors"
        model = done / "methods" / "mc-di-0"
        query = support / "ring"
        assert mcdi("generate", model, "--support", support, "--out", out, "--query", query, "--samples", 2, "--stop", 3) == 0
        printed = capsys.readouterr()
        assert "2 classes: ring, stroke" in printed.err
        lines = [line.split("\t") for line in printed.out.splitlines()]
        assert [Path(p).name for p, _ in lines] == ["0.png", "1.png"] and {c for _, c in lines} <= {"ring", "stroke"}
        head = nn.Linear(64, 2)
        head.load_state_dict(load_file(out))  # three classes in training, two here
        x, y, names = read_folder(support)
        generator = package.load(model)
        weights = generator.generate((x, y), samples=2, stop=3)
        assert names == ["ring", "stroke"] and all(torch.equal(weights[n], p) for n, p in head.state_dict().items())
        torch.testing.assert_close(generator.predict(weights, x), head(generator.embed(x)))

    @pytest.mark.parametrize(
        ("level", "note"), [(99.0, ""), (-99.0, "note: confidence 0%: these examples are unlike the training tasks")]
    )
    def test_low_confidence_is_noted(self, done, support, tmp_path, capsys, level, note):
        model, out = tmp_path / "model", tmp_path / "w.safetensors"
        shutil.copytree(done / "methods" / "mc-di-0", model)
        config = read_json(model / "config.json")
        config["settings"]["sampling"]["calibration_quantiles"] = {"1": [level] * 11}
        write_json(model / "config.json", config)
        assert mcdi("generate", model, "--support", support, "--out", out) == 0
        assert note in (text := capsys.readouterr().err) and ("unlike" in text) == bool(note)
        assert mcdi("generate", model, "--support", support, "--out", out, "--steps", 2) == 0
        assert "unlike" not in capsys.readouterr().err

    @pytest.mark.parametrize("name", SERVING)
    def test_every_method_serves(self, done, support, name):
        x, y, _ = read_folder(support)
        generator = package.load(done / "methods" / f"{name}-0")
        weights = generator.generate((x, y))
        assert {n: tuple(w.shape) for n, w in weights.items()} == {"weight": (2, 64), "bias": (2,)}
        assert all(torch.equal(w, generator.generate((x.float() / 255, y))[n]) for n, w in weights.items())

        def loss(w):
            return float(nn.functional.cross_entropy(generator.predict(w, x), y))

        before = loss(weights)  # 0 where logits are large and right, as those of prototypes are
        assert before == 0 or loss(generator.refine((x, y), weights, steps=20)) < before
        if isinstance(generator.method, Diffusion):
            assert generator.generate((x, y), temperature=0.0, steps=1)["bias"].shape == (2,)
        else:
            with pytest.raises(McdiError, match=f"{name} has no chain to sample: steps"):
                generator.generate((x, y), steps=2)

    def test_batches_ensembles_and_targets(self, done, support):
        generator = package.load(done / "methods" / "mc-di-0")
        x, y, _ = read_folder(support)
        x, y = torch.stack([x, x.flip(0)]), torch.stack([y, y.flip(0)])
        batch = generator.generate((x, y), temperature=0.0)
        one = generator.generate((x[0], y[0]), temperature=0.0)
        assert batch["weight"].shape == (2, 2, 64)
        for n in one:
            torch.testing.assert_close(batch[n][0], one[n], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(batch[n][1], one[n], rtol=1e-3, atol=1e-4)  # the order of examples means nothing
        assert generator.predict(batch, x).shape == (2, 4, 2)
        several = generator.generate((x, y), samples=3, ensemble=True)
        assert several["weight"].shape == (2, 3, 2, 64)
        averaged = generator.generate((x, y), samples=3)
        torch.testing.assert_close(several["weight"].mean(1), averaged["weight"])
        assert generator.generate((x[0], y[0]), samples=3, ensemble=True)["bias"].shape == (3, 2)
        stops = [generator.generate((x[0], y[0]), stop=i, temperature=0.0)["weight"] for i in (1, 2, 3)]
        assert torch.equal(stops[2], one["weight"]) and not torch.equal(stops[0], stops[2])
        drawn = [generator.generate((x[0], y[0]), temperature=1.0, seed=s)["weight"] for s in (0, 1)]
        assert not torch.equal(*drawn)
        features = generator.embed(x)
        assert torch.equal(generator.generate((features, y), temperature=0.0)["weight"], batch["weight"])
