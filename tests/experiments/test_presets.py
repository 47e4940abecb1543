"""Recipes that have not been measured here run from start to table: presets with small data, and the paper's setting."""

import io
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RECIPE, mcdi, with_methods
from PIL import Image
from tiny_models import make_models
from transformers import ResNetConfig, ResNetModel

from mcdi.errors import McdiError
from mcdi.experiments.recipe import read_recipe
from mcdi.experiments.recipe_files import to_toml
from mcdi.tasks.images.photos import natural_images
from mcdi.types import SPLITS
from mcdi.utils.files import read_json

GLUE = Path(__file__).parents[3] / "shared" / "data" / "glue"


def photo(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out := io.BytesIO(), "PNG")
    return out.getvalue()


def put(folder: Path, classes: int, many: int, first: int, name: str = "n") -> None:
    """A folder a class, `many` images in each."""
    for c in range(classes):
        (folder / f"{name}{c:03}").mkdir(parents=True)
        for n in range(many):
            (folder / f"{name}{c:03}" / f"{n}.png").write_bytes(photo(first + 100 * c + n))


def preset(name: str, path: Path, changes: dict[str, str]) -> Path:
    """The preset as it is printed, with some of its text replaced: small images, small models."""
    text = "\n".join(to_toml(asdict(read_recipe(name))))
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    (path / f"{name}.toml").write_text(text)
    return path / f"{name}.toml"


@pytest.fixture(scope="module")
def resnets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """In place of ResNet-50 and ResNet-101, by their ids."""
    torch.manual_seed(0)
    folders = {}
    for name, sizes in (("resnet-50", [8, 12]), ("resnet-101", [8, 16])):
        folders[f"microsoft/{name}"] = folder = tmp_path_factory.mktemp(name)
        config = ResNetConfig(embedding_size=8, hidden_sizes=sizes, depths=[1, 1], layer_type="bottleneck")
        ResNetModel(config).save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text('{"size": 16}')
    return folders


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As DomainNet lies on disk, a folder a domain."""
    folder = tmp_path_factory.mktemp("domains")
    for number, domain in enumerate(("clipart", "quickdraw", "real", "sketch")):
        put(folder / domain, 24, 64, 10_000 * number)
    return folder


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("imagenet", "mini-imagenet", "domainnet-sketch-20way")]


@pytest.mark.parametrize("name", ["domainnet-sketch", *SLOW])
def test_image_presets(name: str, resnets: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    data = tmp_path / "data"
    if name.startswith("domainnet"):
        data = request.getfixturevalue("domains")
    elif name == "mini-imagenet":
        for number, split in enumerate(("train", "val", "test")):
            put(data / split, 6, 21, 10_000 * number, split)
    else:
        put(data, 75, 16, 0)
    if name == "mini-imagenet":
        changes = {"side = 84": "side = 16", "width = 128": "width = 32"}
    else:
        changes = {"side = 224": "side = 16", "width = 256": "width = 32", "depth = 3": "depth = 1"}
        changes |= {model: str(folder) for model, folder in resnets.items()}
    recipe = preset(name, tmp_path, changes)
    out = ("--out", tmp_path / "run", "--results", tmp_path / "results", "--workers", 1)
    assert mcdi("reproduce", "ablation", recipe, "--quick", "--data", data, *out) == 0
    text = (tmp_path / "results" / f"ablation-{name}-quick.md").read_text()
    assert "| mc-di |" in text


def test_a_folder_a_class_is_split_as_a_file_is(tmp_path):
    for c in range(25):
        (tmp_path / f"c{c:02}").mkdir()
        for n in range(2):
            (tmp_path / f"c{c:02}" / f"{n}.png").write_bytes(photo(10 * c + n))
    banks = natural_images(tmp_path, size=4)
    names = [f"c{c:02}" for c in range(25)]
    assert [banks[split].names for split in SPLITS] == [tuple(names[:16]), tuple(names[16:20]), tuple(names[20:])]
    with pytest.raises(McdiError, match="holds 20 classes, but of every 25 classes 16 are for training"):
        for c in range(5):
            (tmp_path / f"c{c:02}").rename(tmp_path.parent / f"away{c}")
        natural_images(tmp_path, size=4)


@pytest.mark.skipif(not GLUE.is_dir(), reason="needs the GLUE sets in ../shared/data/glue")
@pytest.mark.slow
def test_the_preset_of_roberta(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    roberta = make_models(tmp_path / "models")["roberta"]
    recipe = preset("glue-roberta", tmp_path, {"FacebookAI/roberta-base": str(roberta), "layers = 6": "layers = 2"})
    out = ("--out", tmp_path / "run", "--results", tmp_path / "results", "--workers", 1)
    assert mcdi("reproduce", "ablation", recipe, "--quick", "--data", GLUE, *out) == 0
    assert "| mc-di |" in (tmp_path / "results" / "ablation-glue-roberta-quick.md").read_text()


def test_the_setting_of_the_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.toml").write_text('base = "paper"' + with_methods(RECIPE, "mc-di"))
    assert mcdi("run", tmp_path / "tiny.toml", "--out", tmp_path / "run", "--workers", 1) == 0
    lines = capsys.readouterr().err.splitlines()  # no terminal
    assert any(line.startswith("mc-di-0: 1/8, loss ") for line in lines) and "mc-di-0: evaluation: 1/1" in "\n".join(lines)
    model = tmp_path / "run" / "methods" / "mc-di-0"
    assert "sampler" not in read_json(model / "training.json")
    settings = read_json(model / "config.json")["settings"]
    assert settings["sampling"]["steps"] == 20 and not settings["prior"] and settings["sampling"]["temperature"] == 1.0
