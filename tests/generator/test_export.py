"""Exported samplers: the weights of the generator, for support sets of sizes that were not traced."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import mcdi
from damage import changed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from mcdi import Generator, load
from mcdi.errors import McdiError
from mcdi.generator.export import FILES, Exported, Sampler, checked, export
from mcdi.generator.exported import onnx_run, onnx_session, quiet
from mcdi.methods import make_method
from mcdi.networks.linear_head import LinearHead
from mcdi.networks.own import OwnNetwork
from mcdi.tasks.curves import Sines
from mcdi.tasks.episodes import FewShot
from mcdi.trajectories.prepare import Preparation, trajectories
from mcdi.utils.files import read_json, write_json

TRAINING = {"meta": "none", "iterations": 2, "learners": 2, "tasks": 4}
SETTINGS = {"T": 6, "options": {"width": 8, "depth": 1, "heads": 2}, "training": TRAINING}
# Deterministic, blended with ridge regression; confidence varies between tasks of 1 shot and is 0 for all tasks of 5 shots.
QUANTILES = {"1": [0.4 * q - 3 for q in range(11)], "5": [-99.0] * 11}
BLENDED = {"temperature": 0.0, "steps": 1, "mixing_weight": 0.6, "calibration_quantiles": QUANTILES}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def examples(tasks, way, shots, features=6, seed=0):
    y = torch.arange(way).repeat(shots).expand(tasks, -1).contiguous()
    return 1.5 * normal(tasks, way, features, seed=seed).repeat(1, shots, 1) + normal(*y.shape, features, seed=seed + 1), y


def heads(**options):
    features = {s: 1.2 * normal(8, 1, 6, seed=i) + normal(8, 8, 6, seed=9 + i) for i, s in enumerate(("train", "val", "test"))}
    return FewShot("gauss", LinearHead(6, 3, **options), features, way=3, shots=(1,), queries=4)


def fitted(name, family, **settings):
    data = trajectories(family, "train", range(8), Preparation(tasks=8, epochs=3, k=3))
    method = make_method(name, settings).fit(family, data, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for head in (m for n, m in getattr(method, "denoiser", nn.Module()).named_modules() if n == "network.head"):
            nn.init.normal_(head.weight, std=0.3)  # its zeros would hide the layers before it
    return Generator(name, method, family.downstream)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    generator = fitted("mc-di", heads(centred=True), **SETTINGS)
    generator.method = generator.method.with_sampling(replace(generator.method.sampling, **BLENDED))
    generator.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prototypes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    Generator("prototypes", make_method("prototypes", {}), LinearHead(6, 3)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(model):
    """The folder of `model` with its torch export."""
    assert export(load(model), model / FILES["torch"], "torch", weights=model / "model.safetensors") <= 1e-6
    return model


@pytest.fixture(scope="module")
def onnx(model, tmp_path_factory):
    pytest.importorskip("onnxscript", reason="needs mcdi[onnx]")
    pytest.importorskip("onnxruntime", reason="needs mcdi[onnx]")
    path = tmp_path_factory.mktemp("onnx") / "a.onnx"
    assert export(load(model), path, "onnx") <= 1e-5
    return path


def same(reader, generator, support, tolerance=1e-6, **options):
    got, want = reader.generate(support), generator.generate(support, **options)
    assert list(got) == list(want)
    for n, w in want.items():
        assert got[n].shape == w.shape
        torch.testing.assert_close(got[n], w, rtol=0, atol=tolerance * float(w.abs().max()))


SIZES = [(1, 3, 1), (2, 2, 1), (5, 4, 5), (1, 7, 3), (2, 3, 40)]


class TestSame:
    @pytest.mark.parametrize(("tasks", "way", "shots"), SIZES)
    def test_torch(self, exported, tasks, way, shots):
        same(Exported.load(exported), load(exported), examples(tasks, way, shots))

    @pytest.mark.parametrize(("tasks", "way", "shots"), SIZES)
    def test_onnx(self, model, onnx, tasks, way, shots):
        same(Exported.load(onnx), load(model), examples(tasks, way, shots), tolerance=1e-5)

    def test_one_task_and_confidence(self, exported):
        """The confidence of these tasks varies, so that the comparison covers the blend."""
        reader, generator = Exported.load(exported), load(exported)
        one, many, five = examples(1, 3, 1), examples(60, 3, 1), examples(2, 3, 5)
        same(reader, generator, (one[0][0], one[1][0]))
        confidence = generator.confidence(many)
        torch.testing.assert_close(reader.run(*many, 3, 0).confidence, confidence)
        assert len(confidence.unique()) > 3 and not generator.confidence(five).any()
        same(reader, generator, many)

    def test_noise_is_what_the_generator_draws(self, model, tmp_path):
        options = {"temperature": 0.7, "steps": 2}
        generator = load(model)
        sampling = replace(generator.method.sampling, samples=2, calibration_quantiles={})
        generator.method = generator.method.with_sampling(sampling)
        export(generator, tmp_path / "a.pt2", "torch", **options)
        reader, support = Exported.load(tmp_path / "a.pt2"), examples(4, 5, 2)
        assert reader.metadata["noise"] == 2 and reader.metadata["steps"] == 2
        same(reader, generator, support, **options)
        torch.testing.assert_close(reader.generate(support, seed=3), generator.generate(support, seed=3, **options))
        assert not torch.equal(reader.generate(support, seed=3)["weight"], reader.generate(support, seed=4)["weight"])
        seeds = [3, 4, 3, 9]
        torch.testing.assert_close(reader.run(*support, 5, seeds).weights, generator.generate(support, seed=seeds, **options))

    @pytest.mark.slow
    def test_noise_in_onnx(self, model, tmp_path):
        pytest.importorskip("onnxscript")
        options = {"temperature": 0.7, "steps": 3}
        export(load(model), tmp_path / "a.onnx", "onnx", **options)
        same(Exported.load(tmp_path / "a.onnx"), load(model), examples(4, 5, 2), tolerance=1e-5, **options)

    @pytest.mark.parametrize("name", ["prototypes", "vae", "icis"])
    def test_other_pure_methods(self, tmp_path, name):
        settings = {} if name == "prototypes" else {"width": 8, "latent": 4, "training": TRAINING}
        generator = fitted(name, heads(), **settings)
        export(generator, tmp_path / "a.pt2", "torch")
        same(Exported.load(tmp_path / "a.pt2"), generator, examples(2, 5, 1))

    def test_weights_that_are_not_rows(self, tmp_path):
        generator = fitted("mc-di", Sines(shots=6, queries=8, hidden=6), **SETTINGS, sampling={"temperature": 0.0, "steps": 1})
        export(generator, tmp_path / "a.pt2", "torch")
        x = normal(3, 9, 1)
        same(Exported.load(tmp_path / "a.pt2"), generator, (x, x[..., 0].sin()))

    def test_a_denoiser_with_a_fixed_number_of_units(self, tmp_path):
        settings = {**SETTINGS, "options": {"width": 8}, "denoiser": "mlp", "sampling": {"temperature": 0.0, "steps": 1}}
        generator = fitted("mc-di", heads(), **settings)
        export(generator, tmp_path / "a.pt2", "torch")
        reader = Exported.load(tmp_path / "a.pt2")
        same(reader, generator, examples(5, 3, 2))
        with pytest.raises(McdiError, match="networks for 3 classes, not 4"):
            reader.generate(examples(1, 4, 1))
        generator.exported = reader  # other numbers of classes go to the generator itself
        same(reader, generator, examples(2, 3, 1))
        with pytest.raises(McdiError, match="networks for 3 classes, not 4"):
            generator.generate(examples(1, 4, 1))


class TestRefused:
    def test_a_difference(self, prototypes, tmp_path, monkeypatch):
        monkeypatch.setattr("mcdi.generator.export.LIMIT", -1.0)
        with pytest.raises(McdiError, match="differs from this generator by .* nothing was written"):
            export(load(prototypes), tmp_path / "a.pt2", "torch")
        assert not list(tmp_path.iterdir())

    def test_a_shape_that_would_be_broadcast(self, prototypes):
        sampler = Sampler(load(prototypes))
        assert checked(sampler, lambda feeds: sampler(**feeds)) == 0
        assert checked(sampler, lambda feeds: {n: w[..., None] for n, w in sampler(**feeds).items()}) == float("inf")

    def test_methods_and_networks_that_are_not_functions(self, tmp_path, monkeypatch):
        generator = Generator("adam", make_method("adam", {}), LinearHead(6, 3))
        with pytest.raises(McdiError, match="adam cannot be exported, .*: choose .*mc-di.*prototypes"):
            export(generator, tmp_path / "a.pt2", "torch")
        own = OwnNetwork(nn.Linear(2, 3), example=(2,), target=(), way=3, regression=False, squeeze=False)
        monkeypatch.setattr(OwnNetwork, "exportable", False)
        with pytest.raises(McdiError, match="a generator of own networks cannot be exported"):
            export(Generator("prototypes", make_method("prototypes", {}), own), tmp_path / "a.pt2", "torch")

    @pytest.mark.parametrize("kind", FILES)
    def test_a_generator_that_solves_the_last_layer_is_refused_in_words(self, tmp_path, kind):
        path = tmp_path / FILES[kind]
        with pytest.raises(McdiError, match=r"solves the last layer .*mcdi generate --network") as refused:
            export(load("symbols"), path, kind)
        assert "\n" not in str(refused.value) and not path.exists()

    def test_other_weights_next_to_it(self, exported, tmp_path):
        other = shutil.copytree(exported, tmp_path / "other")
        Exported.load(other)
        data = bytearray((other / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (other / "model.safetensors").write_bytes(data)
        with pytest.raises(McdiError, match="made from other weights than the model.safetensors"):
            Exported.load(other)

    def test_a_file_of_an_earlier_version(self, exported, tmp_path):
        old = shutil.copytree(exported, tmp_path / "old")
        (old / "sampler.json").write_text(json.dumps(read_json(old / "sampler.json")))
        with pytest.raises(McdiError, match=r"sampler.json has no checksum: .* an earlier version; export again"):
            Exported.load(old)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_a_changed_file(self, exported, onnx, tmp_path, data):
        """No byte of an exported sampler can change unnoticed."""
        path = data.draw(st.sampled_from([onnx, exported / "sampler.pt2", exported / "sampler.json"]))
        folder = shutil.copytree(path.parent, tmp_path / "changed", dirs_exist_ok=True)
        (folder / path.name).write_bytes(changed(path.read_bytes(), data))
        with pytest.raises(McdiError, match=rf"{path.stem}\.(onnx|pt2|json)"):
            Exported.load(folder / path.name.replace(".json", ".pt2"))

    def test_damage_and_absence(self, exported, tmp_path):
        with pytest.raises(McdiError, match=r"holds no sampler.onnx and no sampler.pt2: run mcdi export"):
            Exported.load(tmp_path)
        with pytest.raises(McdiError, match="does not exist"):
            Exported.load(tmp_path / "a.onnx")
        broken = shutil.copytree(exported, tmp_path / "broken")
        (broken / "sampler.pt2").write_bytes(b"no archive")
        with pytest.raises(McdiError, match="do not belong together: export again"):
            Exported.load(broken)
        write_json(broken / "sampler.json", {})
        with pytest.raises(McdiError, match="not a sampler that mcdi export wrote"):
            Exported.load(broken)

    def test_inputs_that_do_not_fit(self, exported):
        reader = Exported.load(exported)
        x, y = examples(2, 3, 1)
        wrong = {"are not features": (x[..., :5], y), "labels must be 0": (x, y + 1), "do not match": (x, y[:, :2])}
        for message, support in wrong.items():
            with pytest.raises(McdiError, match=message):
                reader.generate(support)


def test_equations_near_singular_are_solved_in_float64():
    """The gram matrix of many close examples and a small ridge: in float32 elimination loses its digits."""
    pytest.importorskip("onnxscript", reason="needs mcdi[onnx]")
    from mcdi.generator.onnx_solve import SOLVE

    class Solve(nn.Module):
        def forward(self, a, b):
            return torch.linalg.solve_ex(a, b).result

    x = 1 + 0.05 * normal(2, 60, 8)
    a, b = x @ x.transpose(1, 2) + 1e-3 * torch.eye(60), normal(2, 60, 3, seed=1)
    program = torch.export.export(Solve(), (a, b), strict=False)
    with quiet():
        made = torch.onnx.export(program, dynamo=True, verbose=False, output_names=["x"], custom_translation_table=SOLVE)
    got = onnx_run(onnx_session(made.model_proto.SerializeToString()))({"a": a, "b": b})["x"]
    want = torch.linalg.solve(a.double(), b.double())
    assert float((got.double() - want).norm() / want.norm()) < 1e-6


class TestFile:
    def test_describes_itself(self, exported, onnx):
        of_torch = read_json(exported / "sampler.json")
        import onnxruntime

        of_onnx = json.loads(onnxruntime.InferenceSession(onnx).get_modelmeta().custom_metadata_map["mcdi"])
        for metadata in (of_torch, of_onnx):
            assert metadata["method"] == "mc-di" and metadata["way"] == 3 and metadata["any_way"] and metadata["steps"] == 1
            assert metadata["parameters"] == [["weight", [3, 6], "float32"], ["bias", [3], "float32"]] and "version" in metadata

    def test_holds_no_path_of_this_machine(self, exported, onnx):
        for data in ((exported / "sampler.pt2").read_bytes(), onnx.read_bytes()):
            assert b"site-packages" not in data and b"denoiser.py" not in data

    def test_command(self, prototypes, model, tmp_path, capsys):
        folder = shutil.copytree(prototypes, tmp_path / "model")
        assert mcdi("export", folder, "--format", "torch") == 0
        assert f"{folder}/sampler.pt2: differs from the generator's weights by" in capsys.readouterr().out
        same(Exported.load(folder), load(folder), examples(2, 3, 1))
        for arguments, message in (
            ((model, "a.pt2", "--format", "onnx"), "end it with .onnx"),
            ((model, "--format", "tf"), "unknown format 'tf': choose onnx or torch"),
            ((model, "--format", "torch", "--steps", 9), "steps = 9 is outside 1..T = 6"),
        ):
            assert mcdi("export", *arguments) == 1
            text = capsys.readouterr().err
            assert message in text and len(text.splitlines()) == 1
