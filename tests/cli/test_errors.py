"""Whatever a user gets wrong ends in exit code 1 and one sentence that names it, without a traceback."""

import shutil

import pytest
import torch
from conftest import RECIPE, mcdi

import mcdi as package
from mcdi.errors import McdiError
from mcdi.trajectories.shards import checksum, index_bytes, sealed_index
from mcdi.utils.files import read_json, read_tensors, write_json, write_tensors


@pytest.fixture
def fails(capsys):
    """Types a command that fails; returns its sentence."""

    def call(*arguments):
        capsys.readouterr()
        assert mcdi(*arguments) == 1
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err + printed.out
        (sentence,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
        assert printed.err.rstrip().endswith(sentence)
        return sentence

    return call


class TestArguments:
    def test_recipes_and_devices(self, fails, recipe, tmp_path):
        assert "unknown recipe 'glyph': choose domainnet-sketch," in fails("run", "glyph")
        assert "unknown recipe" in fails("recipes", "nothing")
        out = ("--out", tmp_path / "x")
        assert "unknown device 'tpu': choose auto, cpu, cuda" in fails("run", recipe, *out, "--device", "tpu")
        assert "unknown device 'cuda:x'" in fails("run", recipe, *out, "--device", "cuda:x")
        if not torch.cuda.is_available():
            assert "cuda:1 is not available" in fails("prepare", recipe, *out, "--device", "cuda:1")
        assert not (tmp_path / "x").exists()

    def test_brackets_in_a_message_are_not_markup(self, fails, tmp_path):
        (tmp_path / "[bold].toml").write_text("[family")
        assert "[bold].toml is not valid TOML" in fails("run", tmp_path / "[bold].toml")

    def test_data_folders(self, fails, recipe, tmp_path):
        out = ("--out", tmp_path / "x")
        assert "holds neither images_background.zip nor" in fails("run", "omniglot", "--data", tmp_path / "no", *out)
        (tmp_path / "images_background.zip").write_bytes(b"PK but not really")
        assert "images_background.zip cannot be read (BadZipFile: File is not a zip file)" in fails(
            "run", "omniglot", "--data", tmp_path, *out
        )
        assert "data = 'glyphs' is generated and reads no --data" in fails(
            "run", recipe, "--data", tmp_path, "--out", tmp_path / "y"
        )
        sines = ("run", "sines", "--data", tmp_path, "--out", tmp_path / "z")
        assert "data = 'sines' is generated and reads no --data" in fails(*sines)
        assert "this family reads colour images: give --data" in fails("run", "natural", "--out", tmp_path / "n")

    def test_more_classes_than_there_are(self, fails, tmp_path):
        (tmp_path / "r.toml").write_text(RECIPE.replace("limit = 30", "limit = 2"))
        sentence = fails("run", tmp_path / "r.toml", "--out", tmp_path / "x")
        assert "way = 3 is more than the 2 classes of the train split: lower it" in sentence

    def test_empty_lists(self, fails, tmp_path):
        for text in ("[family]\nshots = []", "[evaluation]\nseeds = []", "methods = []"):
            (tmp_path / "r.toml").write_text(text)
            assert "at least one" in fails("run", tmp_path / "r.toml", "--out", tmp_path / "x")


class TestRunFolders:
    def test_another_recipe_in_the_same_folder(self, fails, copy, tmp_path):
        (tmp_path / "tiny.toml").write_text(RECIPE.replace("way = 3", "way = 4", 1))
        assert "holds a run with another family" in fails("run", tmp_path / "tiny.toml", "--out", copy)

    def test_no_run_no_preparation_no_such_method(self, fails, recipe, copy, tmp_path):
        assert "recipe.json does not exist" in fails("train", tmp_path)
        assert "'gan' is not a method of this run: choose prototypes" in fails("train", copy, "--method", "gan")
        shutil.rmtree(copy / "trajectories")
        shutil.rmtree(copy / "methods")
        assert "index.json does not exist: check the path, or run the step" in fails(
            "train", copy, "--method", "mc-di", "--workers", 1
        )
        (copy / "recipe.json").write_text("{}")
        assert "recipe.json" in fails("evaluate", copy)

    @pytest.mark.parametrize("damage", ["flip", "nan"])
    def test_a_damaged_shard(self, fails, recipe, copy, damage):
        shutil.rmtree(copy / "methods" / "mc-di-0")
        path, index = copy / "trajectories" / "shard-00001.safetensors", read_json(copy / "trajectories" / "index.json")
        if damage == "flip":
            data = bytearray(path.read_bytes())
            data[-9] ^= 4
            path.write_bytes(data)
        else:
            tensors, _ = read_tensors(path)
            tensors["targets"][3, 1, 0, 7] = float("nan")
            data = write_tensors(path, tensors)
            index["shards"][1]["blake2b"] = checksum(data)
            sealed = sealed_index(index["meta"], index["shards"])
            (copy / "trajectories" / "index.json").write_bytes(index_bytes(sealed))
        sentence = fails("run", recipe, "--out", copy, "--workers", 1)
        assert "shard-00001" in sentence and ("checksum" if damage == "flip" else "NaN") in sentence
        assert not (copy / "methods" / "mc-di-0" / "config.json").exists()


class TestModels:
    def broken(self, copy, change):
        path = copy / "methods" / "mc-di-0" / "config.json"
        config = read_json(path)
        change(config)
        write_json(path, config)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c["settings"]["options"].update(width=32), "do not belong together"),
            (lambda c: c["settings"]["options"].update(breadth=32), "does not take these options"),
            (lambda c: c["settings"].update(colour=1), "unknown key 'colour'"),
            (lambda c: c["network"].update(features=32), "trained for other weights"),
            (lambda c: c["network"].update(kind="resnet"), "unknown network 'resnet'"),
            (
                lambda c: c["network"]["embedder"].update(backbone="vit"),
                "unknown backbone 'vit': this version knows conv4, resnet8",
            ),
            (lambda c: c["network"]["embedder"].update(channels=3), "do not belong together"),
            (lambda c: c["network"]["embedder"].pop("side"), "do not belong together"),
            (lambda c: c.update(method="gan"), "unknown method 'gan'"),
            (lambda c: c.update(format=99), "is a generator of format 99, and this version of mcdi reads format 3"),
            (lambda c: c.pop("space"), "do not belong together"),
        ],
    )
    def test_an_edited_config(self, fails, copy, support, change, message):
        self.broken(copy, change)
        assert message in fails("generate", copy / "methods" / "mc-di-0", "--support", support)

    def test_other_tensors(self, fails, copy, support):
        model = copy / "methods" / "mc-di-0"
        command = ("generate", model, "--support", support)
        shutil.copy(copy / "methods" / "adam-0" / "model.safetensors", model / "model.safetensors")
        assert "do not belong together" in fails(*command)
        tensors, _ = read_tensors(copy / "methods" / "mv-di-0" / "model.safetensors")
        broken = {n: t * float("nan") for n, t in tensors.items() if t.is_floating_point()}
        data = write_tensors(model / "model.safetensors", broken)
        write_json(model / "config.json", {**read_json(model / "config.json"), "weights": checksum(data)})
        assert "holds NaN or infinite weights" in fails(*command)
        (model / "model.safetensors").write_bytes(b"\x80\x02 a pickle")
        assert "not a readable safetensors file" in fails(*command)
        (model / "model.safetensors").unlink()
        assert "model.safetensors does not exist" in fails(*command)
        assert "config.json does not exist" in fails("generate", copy, "--support", support)

    def test_support_folders_and_options(self, fails, done, support, tmp_path):
        command = ("generate", done / "methods" / "mc-di-0", "--out", tmp_path / "w.safetensors", "--support")
        assert "stop = 4 names no local target" in fails(*command, support, "--stop", 4)
        assert "steps = 0 is outside 1..T = 20" in fails(*command, support, "--steps", 0)
        assert "samples = 0 must be at least 1" in fails(*command, support, "--samples", 0)
        assert "at least two sub-folders" in fails(*command, tmp_path / "nowhere")
        (tmp_path / "none").mkdir()
        assert "holds no image files" in fails(*command, support, "--query", tmp_path / "none")
        (support / "ring" / "1.png").write_bytes(b"no image")
        assert "1.png cannot be read as an image" in fails(*command, support)
        shutil.rmtree(support / "ring")
        assert "needs at least two sub-folders of example images, one a class; it has 1" in fails(*command, support)
        (support / "empty").mkdir()
        assert "empty holds no image files" in fails(*command, support)

    def test_tensors_that_do_not_fit(self, done):
        generator = package.load(done / "methods" / "mc-di-0")
        x, y = torch.zeros(4, 1, 28, 28), torch.tensor([0, 0, 1, 1])
        for support, message in (
            ((x, y[:3]), "do not match"),
            ((x[:0], y[:0]), "do not match"),
            ((x, y.float()), "labels must be integers"),
            ((x, y * 2), r"labels must be 0..2"),
            ((x, y - 1), "labels must be"),
            ((x / 0, y), "NaN or infinite"),
            ((torch.zeros(4, 63), y), r"neither images \(..., 1, 28, 28\) nor features \(..., 64\)"),
        ):
            with pytest.raises(McdiError, match=message):
                generator.generate(support)
        with pytest.raises(McdiError, match="no chain to sample: ensemble"):
            package.load(done / "methods" / "adam-0").generate((x, y), ensemble=True)
