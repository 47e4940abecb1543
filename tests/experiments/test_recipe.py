"""A recipe says what is wrong with it, all at once; the shipped ones are right."""

import pytest

from mcdi.errors import McdiError
from mcdi.experiments.recipe import checked, read_recipe, recipe_names
from mcdi.methods import make_method


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
            ('[family]\nnetwork = "lora"', "network = 'lora' does not fit data = 'glyphs'; text goes with lora"),
            ('[family]\ndata = "text"', "network = 'linear-head' does not fit data = 'text'"),
            ("[method.gan]", "unknown method 'gan'"),
            ('[family]\ndata = "sines"', "network = 'linear-head' does not fit data = 'sines'"),
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
            (TEXT.replace("[family]", '[family]\ncondition = "heads"'), "condition = 'heads' is for images"),
            (f"{TEXT}\n[family.text]\nwords = 63", "words = 63: texts and examples must be at least 1, words 0 or 2 to 62"),
            ("[family]\nside = 15", "side = 15 is too small for conv4: give at least 16"),
            ("[family]\nlimit = 0", "limit = 0 must be at least 1"),
            ("[family]\nexamples = 0", "examples = 0 must be at least 1"),
            ("[family]\nway = 1", "way must be at least 2"),
            ("[family]\nshots = [0]", "shots, queries and tasks at least 1"),
            ("[evaluation]\ntasks = 0", "shots, queries and tasks at least 1"),
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
                r"family.shots = 5 should be a valid array; .*preparation.lr = 'x' should be a valid number",
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
