"""A recipe says what is wrong with it, all at once; the shipped ones are right."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from mcdi.errors import McdiError
from mcdi.experiments.recipe import checked, read_recipe, recipe_names
from mcdi.methods import make_method
from mcdi.utils.settings import make, merged


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    name: str
    count: int = 1
    limit: int | None = None
    sizes: tuple[int, ...] = (1,)
    on: bool = False
    inner: Inner = Inner()
    free: dict[str, Any] = field(default_factory=dict)


class TestMake:
    def test_builds_nested_values(self):
        values = {"name": "x", "sizes": [1, 2], "limit": None, "inner": {"rate": 1}, "free": {"any": [1]}}
        assert make(Outer, values, "f") == Outer("x", sizes=(1, 2), inner=Inner(1), free={"any": [1]})
        assert make(Outer, {"name": "x", "limit": 3}, "f").limit == 3

    def test_lists_everything_that_is_wrong(self):
        values = {
            "name": 3,
            "colour": 1,
            "count": True,
            "sizes": [1, "2"],
            "inner": {"rte": 1, "kind": "c"},
            "limit": 1.5,
            "on": 1,
        }
        with pytest.raises(McdiError) as error:
            make(Outer, values, "f.toml")
        problems = str(error.value).split("; ")
        assert problems == [
            "f.toml.name = 3 must be str",
            "f.toml: unknown key 'colour', there are name, count, limit, sizes, on, inner, free",
            "f.toml.count = True must be int",
            "f.toml.sizes = [1, '2'] must be tuple[int, ...]",
            "f.toml.inner: unknown key 'rte', there are rate, kind",
            "f.toml.inner.kind = 'c' must be one of a, b",
            "f.toml.limit = 1.5 must be int | None",
            "f.toml.on = 1 must be bool",
        ]
        with pytest.raises(McdiError, match=r"f.inner = 3 must be a table"):
            make(Outer, {"name": "x", "inner": 3}, "f")


def test_merged_goes_table_by_table():
    base = {"a": 1, "t": {"x": 1, "y": 2}}
    assert merged(base, {"t": {"y": 3}, "b": 2}) == {"a": 1, "b": 2, "t": {"x": 1, "y": 3}}
    assert merged(base, {"t": 5})["t"] == 5 and base == {"a": 1, "t": {"x": 1, "y": 2}}


TEXT = '[family]\ndata = "text"\nnetwork = "lora"'


class TestRecipes:
    def test_every_shipped_one_resolves(self):
        assert recipe_names() == [
            *(
                "domainnet-sketch",
                "domainnet-sketch-20way",
                "glue-lora",
                "glue-lora-examples",
                "glue-lora-templates",
                "glue-roberta",
                "glyphs",
                "glyphs-conv4",
                "glyphs-whole",
            ),
            *("imagenet", "mini-imagenet", "natural"),
            *("natural-centred", "natural-film", "natural-protonet", "natural-resnet8", "natural-span"),
            *("omniglot", "omniglot-20way", "omniglot-characters"),
            *(
                "pacs-sketch",
                "pacs-sketch-centred",
                "pacs-sketch-span",
                "shift",
                "shift-film",
                "sines",
                "styles-20way",
                "text-lora",
            ),
        ]
        for name in recipe_names():
            recipe = read_recipe(name)
            assert recipe.name == name and recipe.about
            for method in recipe.methods:
                make_method(method, recipe.settings_of(method))

    def test_a_method_takes_the_generator_table_and_its_own(self):
        values = {
            "name": "x",
            "generator": {"T": 10, "training": {"tasks": 4}},
            "method": {"mc-di": {"T": 5}, "adam": {"tasks": 9}},
        }
        recipe = checked(values, "x")
        assert recipe.settings_of("mc-di") == {"T": 5, "training": {"tasks": 4}}
        assert recipe.settings_of("mv-di") == values["generator"]
        assert recipe.settings_of("adam") == {"tasks": 9} and recipe.settings_of("prototypes") == {}

    def test_a_file_is_named_by_its_stem(self, tmp_path):
        (tmp_path / "mine.toml").write_text("[family]\nway = 3\n")
        assert read_recipe(str(tmp_path / "mine.toml")).name == "mine"
        (tmp_path / "mine.toml").write_text('name = "other"\n')
        assert read_recipe(str(tmp_path / "mine.toml")).name == "other"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("way = 3", "unknown key 'way'"),
            ("[family", "is not valid TOML"),
            ('methods = ["gan"]', "unknown method 'gan', choose mc-di"),
            (
                '[family]\nnetwork = "lora"',
                "network = 'lora' does not fit data = 'glyphs': choose linear-head, film-head, pixel-net, conv-net",
            ),
            ('[family]\ndata = "text"\nnetwork = "curve"', "network = 'curve' does not fit data = 'text': choose lora"),
            ("[method.gan]", "unknown method 'gan'"),
            ('[family]\ndata = "sines"\nnetwork = "lora"', "network = 'lora' does not fit data = 'sines': choose curve"),
            ('[family]\nnetwork = "curve"', "network = 'curve' does not fit data = 'glyphs'"),
            (
                '[family]\ndata = "natural"\nnetwork = "pixel-net"',
                "pixel-net reads drawings of a side that is a multiple of 14, not data = 'natural', side = 28; use linear-head",
            ),
            ('[family]\nnetwork = "pixel-net"\nside = 32', "multiple of 14, not data = 'glyphs', side = 32"),
            ('[generator]\naround = "heads"', "the condition of a linear-head holds no heads: set around = 'summary'"),
            ('[generator]\ndenoiser = "span"', "set around = 'heads', prior = true and parameterisation = 'x0'"),
            ('[generator]\ndenoiser = "span"\naround = "heads"\nparameterisation = "v"', "parameterisation = 'x0'"),
            (f'{TEXT}\n[generator]\ndenoiser = "span"\naround = "heads"', "set lora.generate = 'rows', or take transformer"),
            (f'{TEXT}\n[family.lora]\nstart = "drawn"', "lora.start = 'drawn' is where the study adapters fine-tunes from"),
            (TEXT.replace("[family]", '[family]\ncondition = "heads"'), "condition = 'heads' must be one of means, examples"),
            (f"{TEXT}\n[family.text]\nwords = 63", "words = 63: texts and examples must be at least 1, words 0 or 2 to 62"),
            ("[family]\nside = 15", "side = 15 is too small for conv4: give at least 16"),
            ("[family]\nlimit = 0", "limit = 0 must be at least 1"),
            ("[family]\nexamples = 0", "examples = 0 must be at least 1"),
            ("[family]\nway = 1", "way must be at least 2"),
            ("[family]\nshots = [0]", "shots and queries must be at least 1"),
            ("[evaluation]\ntasks = 0", "tasks and validation must be at least 1"),
            ("[preparation]\nk = 100", "k = 100 snapshots do not fit 60 epochs"),
            ("[generator]\nT = 2", "k = 3 segments do not fit T = 2"),
            ('[generator]\nobjective = "gan"\nmethods = ["mc-di"]', "unknown key 'methods'"),
            ("[generator.sampling]\nsteps = 99", "sampling.steps = 99 is outside 1..T = 20"),
            ('[generator]\ndenoiser = "gru"', "unknown denoiser 'gru'"),
            ("[generator]\noptions = { heads = 3 }", "width = 128 is no multiple of heads = 3"),
            ('[method.mc-di]\nparameterisation = "eps"\nweight = "x0"', "set weight = 'paper'"),
            ("[generator.training]\nouter_lr = -1.0", "outer_lr = -1.0 must be positive"),
            ("[preparation]\nlr = 0.0", "lr = 0.0 must be positive"),
            ("[method.adam]\nlr = 1", "adam: unknown key 'lr', there are lrs"),
            ("[method.reptile.training]\nouter_rate = 1", "reptile.training: unknown key 'outer_rate'"),
            (
                '[family]\nshots = 5\n[preparation]\nlr = "x"',
                r"family.shots = 5 must be .*; .*preparation.lr = 'x' must be float",
            ),
        ],
    )
    def test_a_bad_one(self, tmp_path, text, message):
        path = tmp_path / "bad.toml"
        path.write_text(text)
        with pytest.raises(McdiError, match=message):
            read_recipe(str(path))

    def test_an_unknown_one(self, tmp_path):
        for name in ("glyph", str(tmp_path / "no.toml"), str(tmp_path)):
            with pytest.raises(
                McdiError,
                match=r"unknown recipe .*: choose domainnet-sketch, .* sines, styles-20way, text-lora, or give",
            ):
                read_recipe(name)
