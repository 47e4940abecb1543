"""A source of data and a network of another package are found by their entry points, and behave as built-in ones."""

import json
import sys
from importlib import invalidate_caches
from importlib.metadata import entry_points

import pytest
import torch

from mcdi.errors import McdiError
from mcdi.experiments.recipe import checked, read_recipe
from mcdi.experiments.run import load_family, make_family
from mcdi.networks.registry import NETWORKS, build
from mcdi.tasks.registry import SOURCES
from mcdi.trajectories.prepare import Preparation, trajectories
from mcdi.utils import registry
from mcdi.utils.workers import silent

MODULE = '''
from dataclasses import asdict, dataclass

import torch
from torch import nn

from mcdi.errors import McdiError
from mcdi.networks.base import Network
from mcdi.networks.registry import NETWORKS, register_network
from mcdi.networks.support import class_means
from mcdi.tasks.episodes import FewShot
from mcdi.tasks.registry import FamilySettings, FamilySpec, register_source
from mcdi.utils.files import read_tensors, write_tensors


@dataclass(frozen=True)
class RingSettings(FamilySettings):
    data: str = "rings"
    network: str = "two-layers"
    classes: int = 12

    def check(self):
        super().check()
        if self.classes < 3:
            raise McdiError(f"classes = {self.classes} must be at least 3")


def build(settings, folder, *, data, device, progress):
    for step in range(2):
        progress("rings", step + 1, 2, {"loss": 1.0})
    g = torch.Generator().manual_seed(settings.seed)
    centres = torch.randn(settings.classes, 1, 4, generator=g)
    splits = {s: centres + 0.1 * torch.randn(settings.classes, 20, 4, generator=g) for s in ("train", "val", "test")}
    write_tensors(folder / "features.safetensors", splits)
    return load(settings, folder)


def load(settings, folder):
    network = NETWORKS.get(settings.network).network.for_family(settings, features=4)
    counts = {"way": settings.way, "shots": settings.shots, "queries": settings.queries}
    return FewShot("rings", network, read_tensors(folder / "features.safetensors")[0], **counts)


register_source(FamilySpec("rings", RingSettings, build, load, kind="vectors", reads_data=False))


@register_network("two-layers", "vectors")
class TwoLayers(Network):
    """A perceptron of which all weights are generated; the condition is the class means."""

    def __init__(self, features, way, hidden=3):
        super().__init__(nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, way)))
        self.features, self.way, self.hidden = features, way, hidden
        self.input_size, self.condition_size = features, way * features

    def condition(self, support, units):
        means, _ = class_means(support.x, support.y, self.way)
        return means.flatten(1)[:, None].expand(-1, units, -1)

    def config(self):
        return {"kind": self.kind, "features": self.features, "way": self.way, "hidden": self.hidden}
'''
ENTRY_POINTS = """[mcdi.tasks]
rings = rings
broken = no_such_module

[mcdi.networks]
two-layers = rings
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package as pip would install it: a module, and its metadata."""
    site = tmp_path / "site"
    (site / "rings-1.0.dist-info").mkdir(parents=True)
    (site / "rings.py").write_text(MODULE)
    (site / "rings-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: rings\nVersion: 1.0\n")
    (site / "rings-1.0.dist-info" / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(site)
    invalidate_caches()
    yield
    for of, name in ((SOURCES, "rings"), (NETWORKS, "two-layers")):
        of._specs.pop(name, None)
    sys.modules.pop("rings", None)


def test_it_is_chosen_by_name_built_and_loaded(installed, tmp_path):
    (tmp_path / "my.toml").write_text('methods = ["mc-di"]\n[family]\ndata = "rings"\nshots = [2]\nclasses = 6\n')
    recipe, folder = read_recipe(str(tmp_path / "my.toml")), tmp_path / "run"
    assert type(recipe.family).__name__ == "RingSettings" and recipe.family.network == "two-layers"
    family = make_family(recipe.family, folder, data=None, device="cpu", progress=silent)
    assert (folder / "logs" / "rings.jsonl").read_text().count("\n") == 2
    again = load_family(recipe.family, folder)
    one, other = (f.sample("test", range(3)) for f in (family, again))
    assert torch.equal(one.support.x, other.support.x) and one.support.x.shape == (3, 10, 4)
    net = again.downstream
    targets = trajectories(again, "train", range(4), Preparation(epochs=30, k=2, lr=0.03)).targets[:, -1]
    data, mask = again.training_data("train", range(4)), torch.ones(4, 1, dtype=torch.bool)
    assert float(net.score(targets, data, mask).mean()) > 0.5
    saved = build(json.loads(json.dumps(net.config())), net.state())
    assert torch.equal(saved.predict(targets, data.x), net.predict(targets, data.x))


def test_a_built_in_network_takes_its_vectors(installed):
    recipe = checked({"name": "x", "family": {"data": "rings", "network": "linear-head"}}, "x")
    assert recipe.family.traits.rows_only and recipe.family.traits.closed_form


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (
            {"data": "rings", "side": 3, "way": "5"},
            r"x.family.way = '5' should be a valid integer; x.family: unknown key 'side', there are",
        ),
        ({"data": "rings", "classes": 2}, "x: classes = 2 must be at least 3"),
        ({"data": "rings", "network": "lora"}, "'lora' does not fit data = 'rings': choose linear-head, two-layers"),
        (
            {"data": "glyphs", "network": "two-layers"},
            "'two-layers' does not fit data = 'glyphs': choose linear-head",
        ),
        ({"data": "ring"}, "x.family.data = 'ring' must be one of glyphs, .*, intents, rings, broken"),
        ({"network": "cnn"}, "unknown network 'cnn': choose linear-head, .*, own, two-layers"),
        ({"data": "broken"}, "source of data 'broken' cannot be imported from no_such_module .* mend it"),
    ],
)
def test_what_is_wrong_with_a_recipe(installed, family, message):
    with pytest.raises(McdiError, match=message):
        checked({"name": "x", "family": family}, "x")


def test_entry_points_are_read_once_and_again_after_an_installation(tmp_path, monkeypatch):
    read, site = [], tmp_path / "site"
    monkeypatch.setattr(registry, "entry_points", lambda **group: read.append(group) or entry_points(**group))
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    for _ in range(3):
        assert "late" not in list(NETWORKS) and "late" not in NETWORKS
    assert read == [{"group": "mcdi.networks"}]
    (site / "late-1.0.dist-info").mkdir()
    (site / "late-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: late\nVersion: 1.0\n")
    (site / "late-1.0.dist-info" / "entry_points.txt").write_text("[mcdi.networks]\nlate = late\n")
    invalidate_caches()
    assert "late" in NETWORKS and list(NETWORKS)[-1] == "late"


def test_a_name_is_taken_once(installed):
    with pytest.raises(McdiError, match="the source of data 'rings' is registered twice: rename one"):
        SOURCES.add("rings", SOURCES.get("rings"))
