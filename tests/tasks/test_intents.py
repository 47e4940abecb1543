"""Tasks of many classes of sentences, from folders as people have them to weights of a head."""

import csv
import io
import json
import pickle
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import mcdi
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_models import lora

from mcdi.errors import McdiError
from mcdi.experiments.recipe import read_recipe
from mcdi.experiments.run import load_family, make_family
from mcdi.experiments.studies.transfer import with_names
from mcdi.generator.api import load
from mcdi.networks.backbones.embedder import cl2n
from mcdi.networks.backbones.language import Encoder
from mcdi.networks.sentence_head import SentenceHead, sentence_features
from mcdi.sklearn import GeneratedClassifier
from mcdi.tasks.text.intents import IntentSettings, division_of, read_intents, target_sentences
from mcdi.tasks.text.pairs import scaled_pairs
from mcdi.tasks.text.phrases import TOPICS
from mcdi.types import Examples
from mcdi.utils.workers import silent

WORDS = [word for words in TOPICS.values() for word in words]  # of the tiny model's vocabulary
RECIPE = """
base = "intents"
methods = ["prototypes", "plda"]
[family]
sets = ["one", "two"]
way = 4
shots = [1, 2]
queries = 3
examples = 8
backbone_steps = {steps}
backbone_way = 4
[family.lora]
model = {model!r}
targets = ["query", "value"]
rank = 2
length = 12
[preparation]
tasks = 4
epochs = 3
[evaluation]
tasks = 6
validation = 4
seeds = [0]
"""


def write_set(folder: Path, count: int, examples: int = 10, seed: int = 0) -> None:
    """A set whose class n has the word n in all its sentences; labels are numbers."""
    folder.mkdir(parents=True)
    r = random.Random(seed)
    rows = [(" ".join([WORDS[n], *r.sample(WORDS, 4)]), n) for n in range(count) for _ in range(examples)]
    for name, part in (("train", rows[::2]), ("test", rows[1::2])):
        (folder / f"{name}.tsv").write_text("text\tlabel\n" + "".join(f"{t}\t{y}\n" for t, y in part))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    write_set(folder / "one", 25)
    write_set(folder / "two", 50, seed=1)
    write_set(folder / "few", 6, seed=2)
    (folder / "few/notes.tsv").write_text("word\tmeaning\na\tb\n")  # not a part of the set
    (folder / "few/class_splits.tsv").write_text("fold\tsplit\tlabel\n" + "".join(f"2\ttest\t{n}\n" for n in (0, 3)))
    return folder


@pytest.fixture(scope="module")
def run(models, sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("intents")
    (folder / "small.toml").write_text(RECIPE.format(model=str(models["bert"]), steps=3))
    assert mcdi("run", folder / "small.toml", "--data", sets, "--out", folder / "run", "--workers", "1") == 0
    return folder / "run"


class TestClasses:
    def test_numbers_are_classes_and_no_class_is_in_two_splits(self, sets):
        splits = read_intents(IntentSettings(sets=("one", "two"), examples=10_000), sets)
        names = {split: set(classes) for split, classes in splits.items()}
        assert {split: len(of) for split, of in names.items()} == {"train": 48, "val": 12, "test": 15}
        assert not names["train"] & names["val"] and not names["test"] & (names["train"] | names["val"])
        for classes in splits.values():
            for name, texts in classes.items():
                word = WORDS[int(name.partition("/")[2])]
                assert len(texts) == 10 and all(word in text.split() for text in texts)

    def test_a_published_division(self, sets):
        assert division_of(sets, "few", list("012345"), 2) == {"0": "test", "3": "test"}
        assert set(target_sentences(IntentSettings(sets=("few",), fold=2), sets / "few")) == {"0", "3"}
        assert len(target_sentences(IntentSettings(sets=("one",)), sets / "few")) == 6  # nothing was trained on it
        with pytest.raises(McdiError, match="has no fold 1: choose 2"):
            division_of(sets, "few", list("012345"), 1)
        with pytest.raises(McdiError, match="has the class '3', of which the set has no sentence"):
            division_of(sets, "few", list("012"), 2)
        with pytest.raises(McdiError, match="the set new has 6 classes, but of every 25"):
            division_of(sets, "new", list("012345"), 1)

    def test_a_sentence_that_occurs_again_is_left_out(self, tmp_path):
        (tmp_path / "a.csv").write_text("text,label\nx,1\nx,1\nx,2\ny,1\nz,2\n")
        classes = target_sentences(IntentSettings(), tmp_path / "a.csv")
        assert {n: sorted(texts) for n, texts in classes.items()} == {"1": ["x", "y"], "2": ["z"]}

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"sets": ()}, "family.sets is empty"),
            ({"sets": ("none",)}, "the set 'none' is not in .*, which has few, one, two"),
            ({"examples": 4}, "examples = 4 cannot give 5 shots and 15 queries"),
            *(({"trunk_weight": w}, r"must be in \[0, 1\]; 0 leaves the trunk out") for w in (-0.1, 1e300)),
            ({"network": "lora"}, "does not fit data = 'intents': choose sentence-head"),
        ],
    )
    def test_settings_that_do_not_fit(self, sets, settings, message):
        with pytest.raises(McdiError, match=message):
            made = IntentSettings(**settings)
            made.check()
            read_intents(made, sets)

    def test_data_is_needed(self, tmp_path):
        with pytest.raises(McdiError, match="give --data"):
            make_family(IntentSettings(), tmp_path, data=None, device="cpu", progress=silent)


class TestRun:
    def test_tasks_are_of_one_set(self, run):
        family = load_family(read_recipe_of(run).family, run)
        groups = family.groups["train"]
        assert groups.tolist() == [0] * 16 + [1] * 32
        assert all(len(groups[classes].unique()) == 1 for classes in family.classes("train", range(20)))

    def test_features_are_those_of_a_loaded_generator(self, run, sets):
        family, settings = load_family(read_recipe_of(run).family, run), read_recipe_of(run).family
        texts = read_intents(settings, sets)["test"]
        generator = load(run / "methods/plda-0")
        assert isinstance(generator.network, SentenceHead) and any(
            float(p.abs().max()) for p in generator.network.pairs.values()
        )
        for features, sentences in zip(family.examples["test"], texts.values(), strict=True):
            torch.testing.assert_close(generator.network.read(sentences[: len(features)]), features, atol=2e-4, rtol=1e-3)

    def test_the_pairs_were_trained_and_shared_by_all(self, models, run):
        net = load(run / "methods/plda-0").network
        frozen = SentenceHead(net.features, net.way, net.lora, net.base, trunk_weight=net.trunk_weight)
        frozen.load_state({"centre": net.centre})
        texts = ["rose spade", "boat wave"]
        assert not torch.allclose(net.read(texts), frozen.read(texts), atol=1e-3)
        last, trunk = net.encoder.means([(t,) for t in texts]).unbind(1)
        others = frozen.encoder.means([(t,) for t in texts])[:, 1]
        torch.testing.assert_close(trunk, others)  # no pair is in front of them
        plain = SentenceHead(last.shape[-1], net.way, net.lora, net.base)
        plain.load_state({**net.state(), "centre": net.centre[: last.shape[-1]]})
        assert torch.equal(plain.read(texts), cl2n(last, net.centre[: last.shape[-1]]))

    @settings(max_examples=20, deadline=None)
    @given(seed=st.integers(0, 99), weight=st.floats(0.01, 1.0))
    def test_the_trunk_adds_its_share_to_cosines(self, seed, weight):
        """Features of both means: cosines are those of either, weighted with 1 and weight^2, and all have one length."""
        draw = torch.Generator().manual_seed(seed)
        means, centre = torch.randn(6, 2, 8, generator=draw), torch.randn(16, generator=draw)
        both = sentence_features(means, centre, weight)
        assert torch.allclose(both.square().sum(-1), torch.tensor(16.0))
        last, trunk = (sentence_features(means[:, [i]], centre.view(2, -1)[i], 0.0) for i in range(2))
        want = (last @ last.T / 8 + weight**2 * (trunk @ trunk.T) / 8) / (1 + weight**2)
        torch.testing.assert_close(both @ both.T / 16, want, atol=1e-5, rtol=1e-4)

    def test_another_model_is_refused_when_a_text_is_read(self, run):
        net = load(run / "methods/plda-0").network
        other = SentenceHead(net.features, net.way, net.lora, net.base + 1)
        with pytest.raises(McdiError, match="has other weights than the one"):
            other.read(["a"])

    def test_it_pickles_for_workers(self, run):
        net = load(run / "methods/plda-0").network
        again = pickle.loads(pickle.dumps(net))
        assert torch.equal(again.read(["rose"]), net.read(["rose"]))

    def test_transfer_to_other_sets(self, run, sets):
        """Closed forms need no trajectories, and none are made."""
        folder, out = run.parent, run.parent / "transfer"
        options = (
            "--methods",
            "prototypes,plda",
            "--data",
            sets,
            "--out",
            out,
            "--results",
            folder / "results",
            "--workers",
            "1",
        )
        assert mcdi("transfer", folder / "small.toml", "--target", f"few={sets / 'few'}", *options) == 0
        rows = list(csv.DictReader(io.StringIO((folder / "results/transfer-small.csv").read_text())))
        assert {(row["target"], row["way"]) for row in rows} == {("few", "4"), ("few", "6")}
        assert {row["label names"] for row in rows} == {"unused", "one more example"}
        assert len(list((out / "targets").iterdir())) == 1 and not (out / "trajectories").exists()
        assert load_file(out / "targets/few.safetensors")["names"].shape == (6, 64)

    def test_names_are_one_more_example_each(self):
        support = Examples(torch.randn(3, 4, 5), torch.tensor([[0, 0, 1, 1]] * 3))
        more = with_names(support, names := torch.randn(3, 2, 5))
        assert torch.equal(more.x[:, :4], support.x) and torch.equal(more.x[:, 4:], names)
        assert more.y.tolist() == [[0, 0, 1, 1, 0, 1]] * 3


def read_recipe_of(run):
    return read_recipe(str(run.parent / "small.toml"))


class TestUse:
    SUPPORT = ("rose spade hedge", "rose lawn bee", "boat wave tide", "boat harbour net")

    def test_sentences_and_labels_in_python(self, run):
        generator = load(run / "methods/plda-0")
        weights = generator.generate((list(self.SUPPORT), [0, 0, 1, 1]))
        assert generator.predict(weights, "rose spade hedge").argmax(-1).item() == 0
        assert generator.predict(weights, ["boat wave", "rose bee"]).shape == (2, 2)
        assert generator.predict(weights, []).shape == (0, 2) and generator.predict(weights, "").shape == (2,)
        assert generator.predict(weights, (text for text in ["boat wave", "rose bee"])).shape == (2, 2)
        for queries in (None, 5, {"a", "b"}, np.array("a")):
            with pytest.raises(McdiError, match="texts are a list of strings"):
                generator.predict(weights, queries)
        with pytest.raises(McdiError, match="labels must be 0..1"):
            generator.generate(("rose spade hedge", 1))
        with pytest.raises(McdiError, match="reads single sentences, not pairs"):
            generator.generate(([("a", "b"), ("c", "d")], [0, 1]))

    def test_the_classifier_of_scikit_learn(self, run):
        classifier = GeneratedClassifier(run / "methods/plda-0").fit(self.SUPPORT, ["garden", "garden", "sea", "sea"])
        assert classifier.predict(self.SUPPORT).tolist() == ["garden", "garden", "sea", "sea"]
        assert classifier.partial_fit(["oven bread pan"], ["kitchen"]).classes_.tolist() == ["garden", "kitchen", "sea"]

    def test_more_than_twenty_classes_on_the_command_line(self, run, tmp_path, capsys):
        rows = [(" ".join([WORDS[n], WORDS[(n + 7) % 30]]), f"intent {n}") for n in range(30)]
        with (tmp_path / "support.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("utterance", "intent"), *rows])
        strange = ["boat\twave", 'a "quoted"\nline', "back\\slash"]
        (tmp_path / "new.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in strange))
        options = (
            "--support",
            tmp_path / "support.csv",
            "--query",
            tmp_path / "new.jsonl",
            "--out",
            tmp_path / "w.safetensors",
        )
        for form in ("tsv", "jsonl"):
            capsys.readouterr()
            assert mcdi("generate", run / "methods/plda-0", *options, "--format", form) == 0
            lines = capsys.readouterr().out.splitlines()[-3:]
            if form == "tsv":
                cells = [line.split("\t") for line in lines]
                assert [len(c) for c in cells] == [2, 2, 2] and cells[0][0] == "boat\\twave" and cells[2][0] == "back\\\\slash"
            else:
                assert [json.loads(line)["query"] for line in lines] == strange
                assert all(json.loads(line)["label"].startswith("intent ") for line in lines)

    def test_what_a_text_generator_refuses(self, run, tmp_path, capsys):
        (tmp_path / "support.csv").write_text("text,label\nrose,1\nboat,2\n")
        (tmp_path / "pairs.csv").write_text("sentence1,sentence2\nrose,boat\n")
        options = ("--support", tmp_path / "support.csv", "--out", tmp_path / "w.safetensors")
        assert mcdi("generate", run / "methods/plda-0", *options, "--query", tmp_path / "pairs.csv") == 1
        assert "a query is a pair, and an example is a single sentence" in capsys.readouterr().err
        assert not (tmp_path / "w.safetensors").exists()
        assert mcdi("generate", run / "methods/plda-0", *options, "--network", tmp_path / "net.onnx") == 1
        assert "reads text, which no file without a tokenizer can" in capsys.readouterr().err


def test_pairs_are_taken_as_far_as_their_weight(models):
    """Every adapted layer adds `weight` times what it adds: its output lies on the line from the frozen to the trained one."""
    encoder = Encoder(lora(models, generate="rows"), 2)
    generator = torch.Generator().manual_seed(0)
    whole = {n: torch.randn(p.shape, generator=generator).half().float() for n, p in encoder.pairs.items()}
    layer = encoder.tail.get_submodule(next(iter(whole)).partition(".lora_")[0])
    x, outputs = torch.randn(3, layer.in_features, generator=generator), {}
    for weight in (0.0, 0.25, 1.0):
        encoder.set_pairs(whole)
        encoder.set_pairs(scaled_pairs(encoder, weight))
        outputs[weight] = layer(x)
    assert float((outputs[1.0] - outputs[0.0]).abs().max()) > 0.1
    torch.testing.assert_close(outputs[0.25], 0.75 * outputs[0.0] + 0.25 * outputs[1.0])
    with pytest.raises(McdiError, match=r"backbone_weight = 0.0 must be in \(0, 1\]"):
        IntentSettings(backbone_weight=0.0).check()


def test_a_resumed_training_of_the_pairs_ends_with_the_same_weights(models, sets, tmp_path):
    settings = IntentSettings(
        sets=("one",), way=3, shots=(1,), queries=2, examples=6, backbone_steps=42, backbone_way=3, lora=lora(models)
    )

    class Stop(Exception):
        pass

    def stopping(name, done, total, figures):
        if name == "backbone" and done == 30:
            raise Stop

    for folder, progress in (("whole", silent), ("stopped", stopping)):
        try:
            make_family(settings, tmp_path / folder, data=sets, device="cpu", progress=progress)
        except Stop:
            assert (tmp_path / folder / "backbone.checkpoint.safetensors").exists()
    make_family(settings, tmp_path / "stopped", data=sets, device="cpu", progress=silent)
    make_family(replace(settings, backbone_weight=1.0), tmp_path / "full", data=sets, device="cpu", progress=silent)
    half, full = (load_file(tmp_path / name / "backbone.safetensors") for name in ("whole", "full"))
    for name in (n for n in full if n.startswith("pair.")):
        torch.testing.assert_close(half[name], full[name] * (0.5 if "lora_B" in name else 1), rtol=1e-3, atol=1e-6)
    assert (tmp_path / "whole/backbone.safetensors").read_bytes() == (tmp_path / "stopped/backbone.safetensors").read_bytes()
    assert not (tmp_path / "stopped/backbone.checkpoint.safetensors").exists()
