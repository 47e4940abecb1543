"""Recipes: shipped ones resolve, a base is read first, what is printed is read back, and all errors are reported at once."""

import tomllib
from dataclasses import asdict

import pytest

from mcdi.errors import McdiError
from mcdi.experiments.recipe import checked, read_recipe
from mcdi.experiments.recipe_files import read_tables, recipe_names, to_toml
from mcdi.methods import make_method
from mcdi.methods.sampling import Sampling

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
            *("imagenet", "intents", "intents-frozen", "mini-imagenet", "natural"),
            *(
                "natural-centred",
                "natural-conv4",
                "natural-film",
                "natural-head-combiner",
                "natural-protonet",
                "natural-resnet8",
            ),
            *("omniglot", "omniglot-20way", "omniglot-characters", "omniglot-conv4", "omniglot-conv4-20way"),
            *(
                "pacs-sketch",
                "pacs-sketch-centred",
                "pacs-sketch-head-combiner",
                "paper",
                "photos",
                "photos-metric",
                "shift",
                "shift-film",
                "sines",
                "smollm2-lora",
                "styles-20way",
                "symbols",
                "text-lora",
            ),
        ]
        for name in recipe_names():
            recipe = read_recipe(name)
            assert recipe.name == name and recipe.about
            for method in recipe.methods:
                make_method(method, recipe.settings_of(method))

    @pytest.mark.parametrize("name", recipe_names())
    def test_what_is_printed_is_read_back(self, name, tmp_path):
        recipe = read_recipe(name)
        path = tmp_path / "printed.toml"
        path.write_text("\n".join(to_toml(asdict(recipe))))
        assert read_recipe(str(path)) == recipe

    def test_any_value_is_printed(self):
        values = {
            "a": [1, -2.5, 1e-07, float("inf"), True],
            "b c": 'quotes " and \\ and\nlines, ü',
            "t": {"x.y": {"deep": [[1], [{"k": "v", "of": {}}]]}, "empty": {}, "z": 0.1},
        }
        assert tomllib.loads("\n".join(to_toml(values))) == values
        assert tomllib.loads("\n".join(to_toml({"a": (1, 2), "gone": None}))) == {"a": [1, 2]}

    def test_the_paper_has_none_of_our_additions(self):
        settings = make_method("mc-di", read_recipe("paper").settings_of("mc-di")).settings
        assert not settings.prior and settings.functional == 0 and settings.k == 3
        assert settings.sampling == Sampling(steps=20) and (settings.T, settings.training.inner_steps) == (20, 3)
        assert settings.training.meta == "reptile" and settings.training.iterations == 6000

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

    def test_a_base_is_overridden_table_by_table(self, tmp_path):
        (tmp_path / "sub").mkdir()
        (tmp_path / "a.toml").write_text('base = "natural"\nname = "a"\nmethods = ["adam"]\n[family]\nside = 64\n')
        (tmp_path / "sub" / "b.toml").write_text('base = "../a.toml"\n[generator.training]\niterations = 7\n')
        natural, b = read_recipe("natural"), read_recipe(str(tmp_path / "sub" / "b.toml"))
        assert (b.name, b.about, b.methods, b.family.side) == ("b", natural.about, ("adam",), 64)
        assert b.family.backbone_steps == natural.family.backbone_steps == 3000
        assert b.generator["training"] == {"iterations": 7, "outer_lr": 0.003} and b.generator["functional"] == 10.0

    @pytest.mark.parametrize(
        ("base", "message"),
        [
            ('"sub/b.toml"', r"a.toml -> .*b.toml -> .*a.toml: these bases form a circle; remove one of them"),
            ('"a.toml"', r"a.toml -> .*a.toml: these bases form a circle"),
            ('"nothing"', r"a.toml: unknown base 'nothing': choose domainnet-sketch, .*, or give the path of a .toml file"),
            ("3", r"a.toml: base = 3 should be the name of a recipe or the path of a .toml file"),
        ],
    )
    def test_a_bad_base(self, tmp_path, base, message):
        (tmp_path / "sub").mkdir()
        (tmp_path / "a.toml").write_text(f"base = {base}")
        (tmp_path / "sub" / "b.toml").write_text('base = "../a.toml"')
        with pytest.raises(McdiError, match=message):
            read_tables(str(tmp_path / "a.toml"))

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
            ('[generator]\nprior_input = "heads"', "of a linear-head holds no heads: set prior_input = 'summary'"),
            ('[generator]\ndenoiser = "head-combiner"', "set prior_input = 'heads', prior = true and parameterisation = 'x0'"),
            (
                '[generator]\ndenoiser = "head-combiner"\nprior_input = "heads"\nparameterisation = "v"',
                "parameterisation = 'x0'",
            ),
            ('[generator]\naround = "heads"', "generator.around was renamed: write prior_input"),
            ('[generator]\ndenoiser = "span"', "generator.denoiser = 'span' was renamed: write 'head-combiner'"),
            ("[generator]\noptions = { among = 1 }", "among was renamed: write set_attention_layers"),
            ("[generator]\nsampling = { share = 0.5 }", "generator.sampling.share was renamed: write mixing_weight"),
            (f'{TEXT}\n[generator]\ndenoiser = "head-combiner"\nprior_input = "heads"', "set lora.generate = 'rows'"),
            (f'{TEXT}\n[family.lora]\nstart = "drawn"', "lora.start = 'drawn' is where the study adapters fine-tunes from"),
            (TEXT.replace("[family]", '[family]\ncondition = "heads"'), "condition = 'heads' should be 'means' or 'examples'"),
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
                match=r"unknown recipe .*: choose domainnet-sketch, .* sines, smollm2-lora, styles-20way, symbols, text-lora, "
                r"or give",
            ):
                read_recipe(name)
