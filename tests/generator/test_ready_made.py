"""The generators that come with the package: small, made by their recipes, good on unseen symbols and on photos."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from conftest import mcdi as command
from PIL import Image

import mcdi
from mcdi.experiments.recipe import read_recipe
from mcdi.generator.ready_made import READY_MADE
from mcdi.methods import make_method
from mcdi.serve.limits import Limits
from mcdi.serve.models import describe, parse_models
from mcdi.tasks.episodes import FewShot
from mcdi.tasks.images.glyphs import glyph_images
from mcdi.utils.files import read_json


def test_it_is_small_and_has_a_card() -> None:
    files = {p.name: p.stat().st_size for p in (READY_MADE / "symbols").iterdir()}
    assert set(files) == {"config.json", "model.safetensors", "README.md"}
    assert sum(files.values()) < 3 * 2**20


def test_its_settings_are_those_of_its_recipe() -> None:
    generator, recipe = mcdi.load("symbols"), read_recipe("symbols")
    settings = generator.method.settings  # type: ignore[attr-defined]
    expected = make_method("mc-di", recipe.settings_of("mc-di")).settings  # type: ignore[attr-defined]
    assert asdict(replace(settings, sampling=expected.sampling)) == asdict(expected)
    assert generator.network.way == recipe.family.way


@pytest.mark.parametrize(("way", "least"), [(2, 0.9), (5, 0.85), (10, 0.7)])
def test_it_makes_networks_for_unseen_symbols(way: int, least: float) -> None:
    generator = mcdi.load("symbols")
    images = glyph_images(7, limit=30)["test"]
    net = generator.network
    family = FewShot("symbols", net, {"test": net.embed(images.pixels)}, way=way, shots=(5,))
    batch = family.sample("test", range(20))
    weights = generator.method.generate(net, batch.support, batch.mask, seed=0)
    assert float(net.score(weights, batch.query, batch.mask).mean()) > least
    one = generator.generate((images.pixels[:way, :3].flatten(0, 1), torch.arange(way).repeat_interleave(3)))
    assert next(reversed(one.values())).shape == (way,)


def test_it_is_served_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_models(["symbols", "mine=symbols"]) == dict.fromkeys(("symbols", "mine"), READY_MADE / "symbols")
    monkeypatch.chdir(tmp_path)
    Path("symbols").mkdir()  # a folder of that name comes first
    assert parse_models(["symbols"]) == {"symbols": Path("symbols")}


def test_a_server_tells_for_how_many_classes_it_answers() -> None:
    """Any, unless the denoiser reads the weights of all classes as one vector."""
    generator = mcdi.load("symbols")
    assert generator.any_way and describe("symbols", generator, Limits()).classes == [2, Limits().classes]
    generator.method.denoiser.network.any_units = False  # type: ignore[attr-defined]
    assert not generator.any_way and describe("symbols", generator, Limits()).classes == [5, 5]


class TestPhotos:
    """`photos` reads what its dependency holds: the two photographs that scikit-learn ships, in pieces."""

    @pytest.fixture
    def pieces(self, tmp_path: Path) -> Path:
        pytest.importorskip("efficientnet_lite_pytorch", reason="needs mcdi[photos]")
        from sklearn.datasets import load_sample_images

        for name, photo in zip(("temple", "flower"), load_sample_images().images, strict=True):
            for n, (top, left) in enumerate(((0, 0), (100, 200), (150, 100), (60, 330))):
                folder = tmp_path / ("support" if n < 2 else "query") / (name if n < 2 else "")
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(photo[top : top + 260, left : left + 300]).save(folder / f"{name}{n}.jpg")
        return tmp_path

    def test_from_folders_to_predictions(self, pieces: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = ("--out", pieces / "weights.safetensors")
        assert command("generate", "photos", "--support", pieces / "support", "--query", pieces / "query", *out) == 0
        lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        assert [(Path(file).stem[:-1], label) for file, label in lines] == [(n, n) for n in ("flower",) * 2 + ("temple",) * 2]

    def test_a_new_class_in_scikit_learns_way(self, pieces: Path) -> None:
        from mcdi.sklearn import GeneratedClassifier

        paths = sorted((pieces / "support").rglob("*.jpg"))
        labels = [p.parent.name for p in paths]
        head = GeneratedClassifier().fit(paths, labels)
        queries = sorted((pieces / "query").glob("*.jpg"))
        assert list(head.predict(queries)) == ["flower"] * 2 + ["temple"] * 2
        head.partial_fit([Image.new("RGB", (300, 300), "grey")], ["nothing"])
        assert (
            list(head.predict([Image.new("RGB", (200, 300), "grey"), *queries]))
            == ["nothing"] + ["flower"] * 2 + ["temple"] * 2
        )

    def test_it_is_small_has_a_card_and_is_of_its_recipe(self) -> None:
        files = {p.name: p.stat().st_size for p in (READY_MADE / "photos").iterdir()}
        assert set(files) == {"config.json", "model.safetensors", "README.md"} and sum(files.values()) < 5 * 2**20
        described, recipe = read_json(READY_MADE / "photos" / "config.json"), read_recipe("photos")
        assert described["method"] in recipe.methods and described["network"]["way"] == recipe.family.way
        assert described["network"]["embedder"]["backbone"] == getattr(recipe.family, "backbone")  # noqa: B009
