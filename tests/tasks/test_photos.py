"""Colour images are read in all layouts, broken ones are refused, and a run on them takes photos."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import mcdi
from PIL import Image
from safetensors.torch import load_file

import mcdi as package
from mcdi.errors import McdiError
from mcdi.tasks.images.files import read_folder, read_images
from mcdi.tasks.images.photos import encoded_images, natural_images
from mcdi.types import SPLITS

Splits = dict[str, dict[str, list[bytes]]]  # {split: {class: encoded images}}
COUNTS = {"train": (3, 4, 5), "val": (3, 2), "test": (2, 6)}  # images of every class

RECIPE = """
methods = ["prototypes", "mc-di"]
[family]
data = "natural"
side = 16
examples = 6
backbone = "resnet8"
backbone_loss = "both"
backbone_steps = 3
way = 2
shots = [1]
queries = 1
[preparation]
tasks = 8
epochs = 6
[generator]
options = { width = 16, depth = 1 }
training = { iterations = 3, learners = 2, tasks = 4, checkpoint_every = 2 }
[evaluation]
tasks = 4
validation = 4
"""


def photo(seed: int, width: int = 40, height: int = 30) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(data, "PNG")
    return data.getvalue()


def images(counts: dict[str, tuple[int, ...]] = COUNTS) -> Splits:
    """Of several sizes."""

    def of(number: int, many: int) -> list[bytes]:
        return [photo(100 * number + n, 8 + 9 * (n % 4), 30 - n) for n in range(many)]

    return {split: {f"{split}-{c}": of(c, many) for c, many in enumerate(counts[split])} for split in SPLITS}


def as_folders(path: Path, splits: Splits) -> Path:
    for split, classes in splits.items():
        for name, encoded in classes.items():
            (path / split / name).mkdir(parents=True)
            for n, data in enumerate(encoded):
                (path / split / name / f"{n}.png").write_bytes(data)
    return path


def as_csv(path: Path, splits: Splits) -> Path:
    (path / "images").mkdir(parents=True)
    for split, classes in splits.items():
        with (path / f"{split}.csv").open("w", newline="") as file:
            (rows := csv.writer(file)).writerow(("filename", "label"))
            for name, encoded in classes.items():
                for n, data in enumerate(encoded):
                    rows.writerow((f"{name}-{n}.png", name))
                    (path / "images" / f"{name}-{n}.png").write_bytes(data)
    return path


def arrays(classes: dict[str, list[bytes]]) -> dict[str, np.ndarray]:
    files = [data for encoded in classes.values() for data in encoded]
    return {
        **encoded_images(files),
        "label": np.repeat(np.arange(len(classes)), [len(encoded) for encoded in classes.values()]),
        "classes": np.array(list(classes)),
    }


class TestLayouts:
    def test_a_bank_is_as_long_as_its_shortest_class(self, tmp_path):
        got = natural_images(as_folders(tmp_path, images()), size=8)
        shapes = {"train": (3, 3, 3, 8, 8), "val": (2, 2, 3, 8, 8), "test": (2, 2, 3, 8, 8)}
        assert {split: tuple(one.images.shape) for split, one in got.items()} == shapes
        assert got["train"].names == ("train-0", "train-1", "train-2") and got["train"].images.dtype == torch.uint8

    def test_folders_of_photos(self, tmp_path):
        as_folders(tmp_path, images())
        x, y, names = read_folder(tmp_path / "test", (3, 8, 8))
        assert x.shape == (8, 3, 8, 8) and y.tolist() == [0] * 2 + [1] * 6 and names == ["test-0", "test-1"]
        assert torch.equal(x[:2], natural_images(tmp_path, size=8)["test"].images[0])
        assert read_images(tmp_path / "test" / "test-1")[0].shape == (6, 1, 28, 28)

    def test_limits(self, tmp_path):
        whole = natural_images(as_folders(tmp_path, images()), size=8)
        few = natural_images(tmp_path, size=8, limit=1, examples=2)
        for split in SPLITS:
            assert few[split].names == whole[split].names[:1]
            assert torch.equal(few[split].images, whole[split].images[:1, :2])

    def test_every_layout_gives_the_same_banks(self, tmp_path):
        names = {"train": range(16), "val": range(16, 20), "test": range(20, 25)}
        splits = {split: {f"{c:02}": [photo(2 * c + n) for n in range(2)] for c in of} for split, of in names.items()}
        np.savez(tmp_path / "a.npz", **arrays({n: data for classes in splits.values() for n, data in classes.items()}))
        got = [
            natural_images(path, size=9)
            for path in (as_folders(tmp_path / "f", splits), as_csv(tmp_path / "c", splits), tmp_path / "a.npz")
        ]
        for other in got[1:]:
            for split in SPLITS:
                assert other[split].names == got[0][split].names
                assert torch.equal(other[split].images, got[0][split].images)


class TestRefusals:
    def refused(self, path: Path | None, message: str) -> None:
        with pytest.raises(McdiError, match=message):
            natural_images(path, size=4)

    def test_a_wrong_path(self, tmp_path):
        self.refused(None, r"give --data, a \.npz of encoded images, train\.csv")
        for name in ("nowhere", "nowhere.npz"):
            self.refused(tmp_path / name, rf"{name} does not exist: check --data")
        (tmp_path / "file.zip").write_bytes(b"PK")
        self.refused(tmp_path / "file.zip", r"file\.zip has no train/: it must be a \.npz")
        self.refused(tmp_path, "has no train/: it must be")
        for split in ("train", "val"):
            (tmp_path / split).mkdir()
        self.refused(tmp_path, "has no test/: it must be")
        (tmp_path / "test").mkdir()
        self.refused(tmp_path, "holds no classes for the train split: it must be")

    def test_folders(self, tmp_path):
        as_folders(tmp_path, images())
        (tmp_path / "val" / "empty").mkdir()
        self.refused(tmp_path, "class empty of the val split holds no image: add some or remove it")
        (tmp_path / "val" / "empty").rename(tmp_path / "test" / "train-1")
        (tmp_path / "test" / "train-1" / "x.png").write_bytes(photo(0))
        self.refused(tmp_path, "class train-1 is in the train and the test split, but tasks are made of unseen classes")
        (tmp_path / "test" / "train-1" / "x.png").rename(tmp_path / "test" / "test-0" / "0.png")
        (tmp_path / "test" / "train-1").rmdir()
        (tmp_path / "test" / "test-0" / "1.png").write_bytes(b"none")
        self.refused(tmp_path, r"test-0/1\.png cannot be read as an image: replace or remove it")

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ("filename,label\nnone.png,a\n", "names none.png, which .*images lacks: add it or remove the row"),
            ("file,label\nnone.png,a\n", r"cannot be read \('filename'\): it needs columns filename and label"),
            ("filename,label\ntest-0-0.png\n", "has a row without filename or label"),
            ("filename,label\n", "holds no classes for the test split"),
            ("\xff", "cannot be read"),
            (None, r"test\.csv does not exist"),
        ],
    )
    def test_csv(self, tmp_path, table, message):
        as_csv(tmp_path, images())
        (tmp_path / "test.csv").unlink()
        if table is not None:
            (tmp_path / "test.csv").write_text(table, encoding="latin-1")
        self.refused(tmp_path, message)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data set as folders and a finished run on it."""
    place = tmp_path_factory.mktemp("natural")
    as_folders(place / "data", images({"train": (7,) * 5, "val": (7,) * 2, "test": (3,) * 3}))
    (place / "tiny.toml").write_text(RECIPE)
    command = ("run", place / "tiny.toml", "--data", place / "data", "--out", place / "run", "--workers", 1)
    assert mcdi(*command) == 0
    return place


class TestRun:
    def test_results(self, place):
        result = json.loads((place / "run" / "results" / "mc-di-0.json").read_text())
        assert result["family"] == "natural" and result["latency_ms"]["embed"] > 0
        got = load_file(place / "run" / "features.safetensors")
        assert got["train"].shape == (5, 6, 128) and got["test"].shape == (3, 3, 128)

    def test_the_saved_generator_reads_photos(self, place, capsys, tmp_path):
        model, data = place / "run" / "methods" / "mc-di-0", place / "data" / "test"
        network = json.loads((model / "config.json").read_text())["network"]
        assert network["embedder"] == {"backbone": "resnet8", "channels": 3, "side": 16}
        command = ("generate", model, "--support", data, "--out", tmp_path / "w.safetensors", "--query", data / "test-1")
        assert mcdi(*command) == 0
        said = capsys.readouterr()
        assert "3 classes: test-0, test-1, test-2" in said.err and len(said.out.splitlines()) == 3
        weights = load_file(tmp_path / "w.safetensors")
        assert {n: tuple(w.shape) for n, w in weights.items()} == {"weight": (3, 128), "bias": (3,)}
        generator = package.load(model)
        x, y, _ = read_folder(data, generator.image_shape)
        assert all(torch.equal(w, weights[n]) for n, w in generator.generate((x, y)).items())
        # The features of the run are those of the saved backbone.
        torch.testing.assert_close(generator.embed(x), load_file(place / "run" / "features.safetensors")["test"].flatten(0, 1))
        for shape in ((4, 1, 16, 16), (4, 3, 28, 28), (4, 3, 128, 128), (4, 127)):
            with pytest.raises(McdiError, match=r"neither images \(\.\.\., 3, 16, 16\) nor features \(\.\.\., 128\)"):
                generator.embed(torch.zeros(shape))

    def test_a_broken_photo(self, place, capsys, tmp_path):
        as_folders(tmp_path, {"support": {"a": [photo(0)], "b": [b"none"]}})
        capsys.readouterr()
        assert mcdi("generate", place / "run" / "methods" / "prototypes-0", "--support", tmp_path / "support") == 1
        assert "b/0.png cannot be read as an image: replace or remove it" in capsys.readouterr().err

    def test_too_few_classes_or_images_are_told_before_anything_is_trained(self, place, capsys, tmp_path):
        for few, message in (
            (("way = 2", "way = 3"), "way = 3 is more than the 2 classes of the val split"),
            (("queries = 1", "queries = 3"), "the test split has 3: lower shots or queries"),
        ):
            (tmp_path / "r.toml").write_text(RECIPE.replace(*few).replace("steps = 3", "steps = 1000000"))
            assert mcdi("run", tmp_path / "r.toml", "--data", place / "data", "--out", tmp_path / "x") == 1
            assert message in capsys.readouterr().err
