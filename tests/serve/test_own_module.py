"""Models of the user's own modules, served and exported with code that the command line names, and reloads of any model."""

import shutil
import sys
import threading

import pytest
import torch
from conftest import mcdi
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import message, serving, task

import mcdi as package
from mcdi.errors import McdiError
from mcdi.generator.api import Generator
from mcdi.generator.exported import Exported
from mcdi.generator.own_code import named_code
from mcdi.methods import make_method
from mcdi.networks.backbones.language import Encoder, LoraSettings
from mcdi.networks.sentence_head import SentenceHead
from mcdi.serve import models as module
from mcdi.serve.models import Models, parse_code
from mcdi.trajectories.prepare import Preparation
from mcdi.utils.files import read_json, write_json

CODE = """
import torch
from torch import nn

def curve():
    return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

def grids():
    return {"module": nn.Sequential(nn.Flatten(), nn.Linear(6, 3))}

def fails():
    raise KeyError("x")

number, listed, other = (lambda: 3), (lambda: {"module": 3}), (lambda: {"module": curve(), "steps": 1})
"""
X = {"curve": torch.linspace(-2, 2, 6)[:, None], "grids": torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0))}
Y = {"curve": X["curve"][:, 0].sin().tolist(), "grids": ["a", "b", "c"] * 2}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Folders of generators for two modules of owncode.py, which can be imported."""
    root, g = tmp_path_factory.mktemp("own"), torch.Generator().manual_seed(0)
    (root / "owncode.py").write_text(CODE)
    sys.path.insert(0, str(root))
    x = {"curve": torch.randn(24, 12, 1, generator=g), "grids": torch.randn(24, 12, 2, 3, generator=g)}
    y = {"curve": x["curve"][..., 0].sin(), "grids": torch.arange(12).remainder(3).expand(24, 12)}
    few, short = Preparation(tasks=12, epochs=3, k=3), {"T": 5, "training": {"iterations": 2}}
    for name in x:
        tasks = package.OwnTasks(named_code(f"owncode:{name}")["module"], x[name], y[name], shots=2)
        package.fit(tasks, preparation=few, settings=short).save_pretrained(root / name)
    yield {name: root / name for name in x}
    sys.path.remove(str(root))


@pytest.fixture
def code(own):
    return {name: f"owncode:{name}" for name in own}


def body(name, **more):
    return {"model": name, "support": {"features": X[name].flatten(1).tolist()}, "labels": Y[name], **more}


class TestServed:
    @pytest.mark.parametrize("name", X)
    def test_it_gives_what_the_generator_gives(self, own, code, name):
        generator = package.load(own[name], **named_code(code[name]))
        with serving(own, code=code) as client:
            answer = client.post("/v1/predict", json=body(name, queries=body(name)["support"])).json()
            y = torch.tensor(Y[name]) if name == "curve" else torch.arange(3).repeat(2)
            out = generator.predict(generator.generate((X[name], y)), X[name])
            wanted = out if name == "curve" else out.softmax(-1)
            got = torch.tensor(answer["outputs"] or answer["probabilities"])
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
            for route in ("generate", "chain", "landscape"):
                assert client.post(f"/v1/{route}", json=body(name)).status_code == 200
            wide = {**body(name), "support": {"features": [[0.0] * 7] * 6}}
            assert "7 numbers" in message(client.post("/v1/generate", json=wide), 422)

    def test_targets_of_several_numbers_are_refused_at_the_start(self, own, code, monkeypatch):
        load = module.load

        def loaded(*arguments, **options):
            generator = load(*arguments, **options)
            generator.network.target_shape = (2,)
            return generator

        monkeypatch.setattr(module, "load", loaded)
        with pytest.raises(McdiError, match="targets of shape"):
            Models({"curve": own["curve"]}, code=code)

    def test_code_that_is_missing(self, own, capsys):
        assert mcdi("serve", own["curve"]) == 1
        assert "give it as `module`" in " ".join(capsys.readouterr().err.split())


class TestNames:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            *(("owncode", "names no function"), (":f", "names no function"), ("owncode:", "names no function")),
            *(("no_such_package:f", "ModuleNotFoundError"), ("owncode:none", "AttributeError"), ("owncode:fails", "KeyError")),
            *(("owncode:number", "returned int"), ("owncode:listed", "returned dict"), ("owncode:other", "returned dict")),
        ],
    )
    def test_code_that_gives_no_module(self, own, name, text):
        with pytest.raises(McdiError, match=text):
            named_code(name)

    @settings(max_examples=50, deadline=None)
    @given(name=st.text(max_size=20))
    def test_any_text_is_a_sentence(self, own, name):
        with pytest.raises(McdiError):
            named_code(name)

    def test_of_one_model_and_of_several(self):
        assert parse_code(["a:b"], ["m"]) == {"m": "a:b"} and parse_code(["m=a:b"], ["m", "n"]) == {"m": "a:b"}
        for modules, text in ((["a:b"], "say which"), (["x=a:b"], "is not served"), (["m=a:b", "m=a:c"], "already has")):
            with pytest.raises(McdiError, match=text):
                parse_code(modules, ["m", "n"])

    def test_the_working_folder_is_looked_at_last(self, tmp_path, monkeypatch):
        (tmp_path / "code_of_mine.py").write_text(CODE)
        (tmp_path / "json.py").write_text("raise SystemExit('a file of the working folder took the place of a module')")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        assert isinstance(named_code("code_of_mine:curve")["module"], torch.nn.Module)
        monkeypatch.delitem(sys.modules, "json")
        __import__("json")


@pytest.mark.slow
class TestExported:
    @pytest.mark.parametrize(("kind", "file"), [("torch", "sampler.pt2"), ("onnx", "sampler.onnx")])
    def test_it_gives_what_the_generator_gives(self, own, tmp_path, kind, file):
        pytest.importorskip("onnxscript", reason="needs mcdi[onnx]")
        for name in X:
            folder = shutil.copytree(own[name], tmp_path / name)
            assert mcdi("export", folder, "--format", kind, "--module", f"owncode:{name}") == 0
            y = torch.tensor(Y[name]) if name == "curve" else torch.arange(3).repeat(2)
            want = package.load(folder, **named_code(f"owncode:{name}")).generate((X[name], y), seed=3)
            for key, weights in Exported.load(folder / file).generate((X[name], y), seed=3).items():
                torch.testing.assert_close(weights, want[key], rtol=1e-4, atol=1e-5)


class TestReload:
    def test_whatever_breaks_one_model_the_others_are_loaded(self, folders, tmp_path, monkeypatch, caplog):
        names = ("a", "b", "c")
        copies = {name: shutil.copytree(folders["closed"], tmp_path / name) for name in names}
        with serving(copies) as client:
            before = {name: client.service.models.get(name) for name in names}
            load = module.load

            def broken(folder, *arguments, **options):
                if folder == copies["b"]:
                    raise raised[-1]
                return load(folder, *arguments, **options)

            monkeypatch.setattr(module, "load", broken)
            raised = []
            for error in (RuntimeError("a"), OSError("a"), MemoryError(), KeyError("a"), McdiError("a"), RecursionError()):
                raised.append(error)
                for copy in copies.values():
                    write_json(copy / "config.json", {**read_json(copy / "config.json"), "more": len(raised)})
                client.service.reload()
                now = {name: client.service.models.get(name) for name in names}
                assert now["b"] is before["b"] and now["a"] is not before["a"] and now["c"] is not before["c"]
                before = now
            assert caplog.text.count("b: the old model stays in use") == 6

    def test_a_language_model_that_cannot_be_loaded_replaces_none(self, models, tmp_path):
        lora = LoraSettings(model=str(models["bert"]), targets=("query",), rank=2)
        network = SentenceHead(32, 2, lora, Encoder(lora, 2).fingerprint())
        Generator("prototypes", make_method("prototypes", {}), network).save_pretrained(tmp_path / "m")
        task = {"model": "m", "support": {"texts": ["the old boat", "a red rose"]}, "labels": [0, 1]}
        with serving({"m": tmp_path / "m"}) as client:
            config = read_json(tmp_path / "m" / "config.json")
            config["network"]["lora"]["model"] = str(tmp_path / "none")
            write_json(tmp_path / "m" / "config.json", config)
            client.service.reload()
            assert client.post("/v1/generate", json=task).status_code == 200
            assert client.service.metrics.registry.get_sample_value("mcdi_reloads_total", {"model": "m", "result": "failed"})

    def test_under_load_no_request_is_lost(self, folders, own, code, tmp_path):
        """Of every kind of model, while all files are replaced again and again."""
        every = {**folders, **own}
        copies = {name: shutil.copytree(folder, tmp_path / name) for name, folder in every.items()}
        points = {"features": X["curve"].tolist()}
        bodies = [task(), task("closed", format="safetensors"), body("curve"), body("grids", format="safetensors")]
        bodies += [{"model": "curves", "support": points, "labels": Y["curve"]}]
        with serving(copies, code=code) as client:
            statuses, stop = [], threading.Event()

            def ask(sent):
                while not stop.is_set():
                    statuses.append(client.post("/v1/generate", json=sent).status_code)

            threads = [threading.Thread(target=ask, args=(sent,)) for sent in bodies]
            for thread in threads:
                thread.start()
            for more in range(4):
                for copy in copies.values():
                    write_json(copy / "config.json", {**read_json(copy / "config.json"), "more": more})
                client.service.reload()
            stop.set()
            for thread in threads:
                thread.join()
            assert len(statuses) > 10 and set(statuses) == {200}
            assert (
                client.service.metrics.registry.get_sample_value("mcdi_reloads_total", {"model": "grids", "result": "new"}) == 4
            )
