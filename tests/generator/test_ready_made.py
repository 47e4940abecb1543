"""The generators that come with the package: small, made by their recipes, and good on symbols of unseen scripts."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import mcdi
from mcdi.experiments.recipe import read_recipe
from mcdi.generator.ready_made import READY_MADE
from mcdi.methods import make_method
from mcdi.serve.limits import Limits
from mcdi.serve.models import describe, parse_models
from mcdi.tasks.episodes import FewShot
from mcdi.tasks.images.glyphs import glyph_images


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
