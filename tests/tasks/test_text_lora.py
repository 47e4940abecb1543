"""Generated adapters from end to end: pre-training, the prior, the run, the study and the command."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import mcdi
from safetensors.torch import load_file
from tiny_models import TARGETS, drawn, lora, peft, transformers

from mcdi.errors import McdiError
from mcdi.experiments.recipe import read_recipe
from mcdi.experiments.run import Context, load_family, make_family, read_run
from mcdi.experiments.studies import adapters
from mcdi.experiments.studies.variants import Variant
from mcdi.generator.adapters import peft_name
from mcdi.generator.api import load
from mcdi.methods import make_method
from mcdi.networks.lora import LoraClassifier
from mcdi.tasks.text.phrases import phrase_sets
from mcdi.trajectories.prepare import Preparation, trajectories
from mcdi.trajectories.store import TrajectoryStore
from mcdi.utils.files import read_json, read_tensors, write_json, write_tensors

RECIPE = """
methods = ["prototypes", "adam", "reptile", "hypernetwork", "mv-di", "mc-di"]
[family]
data = "text"
network = "lora"
way = 2
shots = [3]
queries = 4
backbone_steps = 3
[family.text]
texts = 80
test_texts = 80
examples = 8
[family.lora]
model = {model!r}
rank = 2
length = 16
generate = {generate!r}
[preparation]
tasks = 12
epochs = 3
chunk = 6
lr = 0.01
[generator]
prior_input = "heads"
denoiser = {denoiser!r}
functional = 1.0
options = {{ width = 16, depth = 1 }}
training = {{ iterations = 3, learners = 2, tasks = 2 }}
[method.adam]
lrs = [0.01]
steps = [2]
decays = [0.0]
tasks = 4
[method.reptile]
training = {{ iterations = 2, learners = 2 }}
tuning = {{ lrs = [0.01], steps = [2], decays = [0.0], tasks = 4 }}
[evaluation]
tasks = 4
validation = 4
"""


@pytest.fixture(scope="module")
def done(models, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "tiny.toml").write_text(RECIPE.format(model=str(models["bert"]), generate="both", denoiser="transformer"))
    assert mcdi("run", folder / "tiny.toml", "--out", folder / "run", "--workers", 1) == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Few steps in the study."""
    monkeypatch.setattr(adapters, "LONG", 3)
    monkeypatch.setattr(adapters, "CHOOSING", 1)


@pytest.fixture
def examples(tmp_path) -> Path:
    path = tmp_path / "mine.csv"
    rows = [f"{t[0]},{['bad', 'good'][y]}" for t, y in zip(*phrase_sets(3, 12)["opinion"]["train"][1:3], strict=True)]
    path.write_text("text,label\n" + "\n".join(r for r in rows if r.count(",") == 1) + "\n")
    return path


class TestCommandLine:
    def test_a_run_ends_with_a_table(self, done):
        table = (done / "table.md").read_text()
        assert all(name in table for name in ("Adam", "REPTILE", "one-step regression", "Mv-Di", "Mc-Di"))
        assert (done / "report.html").exists()
        family = load_family(read_run(done).family, done)
        assert family.downstream.feature_bank.dtype == torch.float16

    def test_sentences_in_adapter_out(self, done, models, examples, tmp_path, capsys):
        out = tmp_path / "adapter"
        assert mcdi("generate", done / "methods" / "mc-di-0", "--support", examples, "--adapter", out, "--query", examples) == 0
        model = transformers.AutoModelForSequenceClassification.from_pretrained(models["bert"], num_labels=2)
        peft.PeftModel.from_pretrained(model, out)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == len(examples.read_text().splitlines()) - 1 and all(
            x.rsplit("\t")[-1] in ("bad", "good") for x in lines
        )

    @pytest.mark.slow
    def test_the_study_measures_every_unseen_set(self, done, tmp_path):
        recipe = tmp_path / "tiny.toml"
        recipe.write_text((done.parent / "tiny.toml").read_text() + "seeds = [0, 1]\n")
        arguments = ("reproduce", "adapters", recipe, "--out", done, "--results", tmp_path, "--workers", 1)
        assert mcdi(*arguments) == 0
        rows = list(csv.DictReader((tmp_path / "adapters-tiny.csv").read_text().splitlines()))
        assert {r["set"] for r in rows} == {"opinion", "same-opinion"}
        names = {"prototypes", "linear probe", "adam", "reptile", "hypernetwork", "mv-di", "mc-di"}
        at_16, at_most = ({r["method"] for r in rows if (r["shots"] == "16") == few} for few in (True, False))
        assert at_16 == {*names, "mc-di, 10 steps", "LoRA fine-tuning"}
        assert at_most == {*at_16, "LoRA fine-tuning, 3 steps"}
        assert {r["seeds"] for r in rows if r["method"] == "LoRA fine-tuning"} == {"2"}
        tuned = [p.name for p in (done / "studies" / "models").glob("adam-*")]  # both ways of it, once for both seeds
        assert len(tuned) == 2 and all(name.endswith("-0") for name in tuned)
        assert all(0 <= float(r["score_mean"]) <= 1 and float(r["seconds_mean"]) > 0 for r in rows)
        assert (tmp_path / "adapters-tiny.png").exists()

    def test_the_same_from_python(self, done, examples):
        generator = load(done / "methods" / "mc-di-0")
        texts = [("a red rose",), ("my aunt",), ("the pond",)]
        weights = generator.generate((texts, [0, 1, 2]))  # three classes from a generator of two
        assert generator.predict(weights, texts).shape == (3, 3)
        refined = generator.refine((texts, [0, 1, 2]), weights, steps=2)
        assert set(refined) == set(weights)

    def test_plain_sentences_for_what_is_wrong(self, done, tmp_path, capfd):
        def says(*arguments: object) -> str:
            assert mcdi("generate", *arguments) == 1
            return capfd.readouterr().err.replace("\n", " ")

        model = done / "methods" / "mc-di-0"
        (tmp_path / "one.csv").write_text("text,label\nhello,yes\n")
        assert "one label only" in says(model, "--support", tmp_path / "one.csv", "--adapter", tmp_path / "a")
        assert "does not exist" in says(model, "--support", tmp_path / "none.csv", "--adapter", tmp_path / "a")
        assert "give a .tsv" in says(model, "--support", tmp_path, "--adapter", tmp_path / "a")
        assert not (tmp_path / "a").exists()

    def test_a_base_model_that_is_gone(self, done, models, tmp_path, examples, capfd):
        copy = tmp_path / "model"
        shutil.copytree(done / "methods" / "mc-di-0", copy)
        text = json.dumps(read_json(copy / "config.json"))
        write_json(copy / "config.json", json.loads(text.replace(str(models["bert"]), str(tmp_path / "moved"))))
        assert mcdi("generate", copy, "--support", examples, "--adapter", tmp_path / "a") == 1
        assert "cannot be loaded" in capfd.readouterr().err.replace("\n", " ")


def test_steps_through_layers_are_taken_on_few_support_sets(done, monkeypatch):
    """The tiny run generates pairs: Adam goes through the layers, Mc-Di does not."""
    monkeypatch.setattr(adapters, "SHOTS", (2, 4))
    context = Context(done)
    evaluation = replace(context.recipe.evaluation, tasks=8, seeds=(0, 1))
    context.recipe = replace(context.recipe, evaluation=evaluation)
    counts = {}
    for name in ("adam", "mc-di"):
        cell, method = Variant({"method": name}, name), load(done / "methods" / f"{name}-0").method
        for row in adapters.unseen_sets(context, cell, method, 1):
            counts[row.factors["method"], row.factors["shots"]] = (row.first, len(row.scores))
    most = {shots for _, shots in counts} - {2, 4}  # as many as a set's smallest class has
    few = {"adam": (2, 2), "mc-di, 10 steps": (2, 2), "mc-di": (0, 4)}  # the second seed has the second half
    assert most and counts == {(name, shots): draws for name, draws in few.items() for shots in (2, 4, *most)}


def test_a_run_is_of_one_base_model(done, tmp_path):
    """Where the model in its place has other weights than the one whose states the run holds."""
    for name in ("features", "backbone"):
        tensors, metadata = read_tensors(done / f"{name}.safetensors")
        write_tensors(tmp_path / f"{name}.safetensors", tensors, {**metadata, "base": metadata.get("base", 0) + 1})
    with pytest.raises(McdiError, match="other weights than the one that this was made with"):
        load_family(read_run(done).family, tmp_path)


def test_too_few_texts_are_noticed_before_any_is_read(models, tmp_path):
    (tmp_path / "tiny.toml").write_text(RECIPE.format(model=str(models["bert"]), generate="rows", denoiser="head-combiner"))
    family = read_recipe(str(tmp_path / "tiny.toml")).family
    seen: list[str] = []
    few = replace(family, shots=(4000,), text=replace(family.text, examples=5000))
    with pytest.raises(McdiError, match="lower shots or queries"):
        make_family(few, tmp_path / "run", data=None, device="cpu", progress=lambda what, *_: seen.append(what))
    assert not seen and not (tmp_path / "run/texts").exists()


class TestStopped:
    @pytest.mark.parametrize("at", [("texts", 70), ("backbone", 21), ("features", 1)])
    def test_what_was_read_and_trained_is_not_done_again(self, models, tmp_path, monkeypatch, at):
        """Stopped while texts are read, while pairs are trained, after that: the same features and pairs in the end."""
        (tmp_path / "tiny.toml").write_text(RECIPE.format(model=str(models["bert"]), generate="rows", denoiser="head-combiner"))
        recipe = read_recipe(str(tmp_path / "tiny.toml"))
        family = replace(recipe.family, backbone_steps=25, text=replace(recipe.family.text, pairs=(), words=0))
        seen: list[tuple[str, int]] = []

        def told(what: str, done: int, total: int, figures: dict[str, float]) -> None:
            seen.append((what, done))
            if "stop" in folder.name and what == at[0] and done >= at[1] and len(list(folder.parent.glob("stopped"))) == 0:
                (folder.parent / "stopped").touch()
                raise KeyboardInterrupt

        for folder in (tmp_path / "whole", tmp_path / "stop"):
            folder.mkdir()
            if folder.name == "stop":
                with pytest.raises(KeyboardInterrupt):
                    make_family(family, folder, data=None, device="cpu", progress=told)
                seen.clear()
            make_family(family, folder, data=None, device="cpu", progress=told)
        first = min((done for what, done in seen if what == "backbone"), default=26)  # what has ended is not begun again
        assert first == {"texts": 1, "backbone": 21, "features": 26}[at[0]]  # from the last checkpoint
        read = [done for what, done in seen if what == "texts"]
        assert len(read) > 1 if at[0] == "texts" else len(read) == 1
        for name in ("features.safetensors", "backbone.safetensors"):
            (one, _), (other, _) = (read_tensors(tmp_path / f / name) for f in ("whole", "stop"))
            assert all(torch.equal(t, other[n]) for n, t in one.items())
        assert sorted(p.name for p in (tmp_path / "stop").iterdir()) == ["backbone.safetensors", "features.safetensors", "logs"]


class TestRowsAlone:
    @pytest.mark.slow
    def test_from_a_recipe_to_an_adapter(self, models, examples, tmp_path):
        """The pairs of the adapter are those of theta_0, which episodes have moved from where peft draws them."""
        (tmp_path / "rows.toml").write_text(RECIPE.format(model=str(models["bert"]), generate="rows", denoiser="head-combiner"))
        run, out = tmp_path / "run", tmp_path / "adapter"
        assert mcdi("run", tmp_path / "rows.toml", "--out", run, "--workers", 1) == 0
        assert mcdi("generate", run / "methods" / "mc-di-0", "--support", examples, "--adapter", out) == 0
        saved, start = load_file(out / "adapter_model.safetensors"), load_family(read_run(run).family, run).downstream
        assert all(torch.equal(saved[peft_name(n)], p) for n, p in start.pairs.items())
        assert any(float(p.abs().max()) > 0 for n, p in start.pairs.items() if "lora_B" in n)
        arguments = ("reproduce", "adapters", tmp_path / "rows.toml", "--out", run, "--results", tmp_path, "--workers", 1)
        assert mcdi(*arguments) == 0
        rows = list(csv.DictReader((tmp_path / "adapters-rows.csv").read_text().splitlines()))
        assert "LoRA fine-tuning" in {r["method"] for r in rows}

    @pytest.mark.parametrize(("base", "how"), [("bert", "rows"), ("llama", "both")])
    def test_a_set_transformer_reads_every_text(self, models, examples, tmp_path, base, how):
        text = RECIPE.format(model=str(models[base]), generate=how, denoiser="cross")
        changes = {"depth = 1": "depth = 1, set_attention_layers = 1", 'data = "text"': 'data = "text"\ncondition = "examples"'}
        for was, now in {**changes, '"adam", "reptile", "hypernetwork", "mv-di", ': ""}.items():
            text = text.replace(was, now)
        (tmp_path / "sets.toml").write_text(text.replace("[family.lora]", f"[family.lora]\ntargets = {list(TARGETS[base])}"))
        run, out = tmp_path / "run", tmp_path / "adapter"
        assert mcdi("run", tmp_path / "sets.toml", "--out", run, "--workers", 1) == 0
        model = run / "methods" / "mc-di-0"
        assert mcdi("generate", model, "--support", examples, "--adapter", out) == 0
        generator, texts = load(model), [("a red rose",), ("my aunt",), ("the pond",), ("the old boat",)]
        awake = generator.method.denoiser.network.head.weight
        torch.nn.init.normal_(awake, std=0.3, generator=torch.Generator().manual_seed(0))
        one, turned, other = (
            generator.generate((texts, y), seed=0, temperature=0.0) for y in ([0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1])
        )
        mixed = generator.generate(([texts[j] for j in (3, 0, 2, 1)], [1, 0, 1, 0]), seed=0, temperature=0.0)
        name = next(n for n in one if "lora_" not in n and n.endswith("weight"))
        for n, w in one.items():
            torch.testing.assert_close(mixed[n], w, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(turned[n], w if "lora_" in n else w.flip(0), rtol=1e-3, atol=1e-4)
        assert not torch.allclose(one[name], other[name], atol=1e-3)

    def test_pairs_come_beside_rows(self, models):
        net = LoraClassifier(lora(models, generate="rows"), 2)
        rows, whole = drawn(net, 3), net.with_generated_pairs()
        both = whole.with_default_units(rows, whole.space.U)
        assert torch.equal(both[:, :2], rows) and torch.equal(both[0, 2:], whole.theta0(0, whole.space.U)[2:])
        assert whole.with_generated_pairs() is whole


class TestRefused:
    def test_only_where_a_condition_holds_heads(self, done, sines):
        method = make_method("mc-di", {"prior_input": "heads", "denoiser": "mlp"})
        data = trajectories(sines, "train", range(4), Preparation(tasks=4, epochs=3, k=3))
        with pytest.raises(McdiError, match="holds no heads"):
            method.fit(sines, data, seed=0)

    def test_span_needs_heads_of_rows_alone(self, done):
        for how, said in (
            ({}, "prior_input = 'heads'"),
            ({"prior_input": "heads", "prior": False}, "prior = true"),
            ({"self_condition": True}, "self_condition"),
        ):
            with pytest.raises(McdiError, match=said):
                make_method("mc-di", {"denoiser": "head-combiner", **how})
        family = load_family(read_run(done).family, done)
        with pytest.raises(McdiError, match="set lora.generate = 'rows'"):
            make_method("mc-di", {"denoiser": "head-combiner", "prior_input": "heads"}).fit(
                family, TrajectoryStore.open(done / "trajectories"), seed=0
            )
