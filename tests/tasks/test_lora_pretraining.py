"""LoRA pre-training: episodes of training sets move the pairs of theta_0."""

import pickle

import torch
from tiny_models import drawn, lora

from mcdi.networks.lora import LoraClassifier
from mcdi.tasks.text.phrases import phrase_sets
from mcdi.tasks.text.pools import TextSettings, choose, pools_of
from mcdi.tasks.text.source import pretrain_lora, recompute_pooled
from mcdi.tasks.text.text_tasks import TextTasks


class TestStart:
    def test_episodes_bring_classes_apart_and_the_bank_follows(self, models):
        """On a tiny model: the loss of the episodes falls; the bank's pooled rows are what a new reading gives."""
        sets = {n: p for n, p in phrase_sets(0, 60).items() if n in ("tense", "form", "opinion")}
        chosen = choose(sets, TextSettings(test=("opinion",), validation=("form",), pairs=()), 2, 0)
        net = LoraClassifier(lora(models), 2)
        texts = [t for c in chosen for t in c.texts]
        bank = torch.cat([net.read(c.texts) for c in chosen])
        pools = pools_of(chosen, bank[:, 1, :-1])
        net.set_feature_bank(bank, pools["train"][0].text_ids)
        tasks = TextTasks(net, pools, way=2, shots=(5,), queries=8, examples=20)
        before = {n: p.clone() for n, p in net.pairs.items()}
        losses = list(pretrain_lora(tasks, steps=30, seed=0, lr=0.02))
        assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
        assert all(not torch.equal(p, before[n]) and not p.requires_grad for n, p in net.pairs.items())
        assert list(recompute_pooled(net, bank))[-1] == len(bank)
        for c, rows in zip(chosen, torch.arange(len(texts)).split([len(c.texts) for c in chosen]), strict=True):
            torch.testing.assert_close(bank[rows, :2], net.read(c.texts)[:, :2], rtol=1e-4, atol=1e-5)
        sent = pickle.loads(pickle.dumps(tasks))  # what a worker gets
        weights, batch = drawn(net, 3), tasks.sample("train", range(3))
        assert torch.equal(sent.downstream.theta0(0, net.space.U), net.theta0(0, net.space.U))
        assert torch.equal(sent.sample("train", range(3)).query.x, batch.query.x)
        assert torch.equal(sent.downstream.predict(weights, batch.query.x), net.predict(weights, batch.query.x))
        assert torch.equal(sent.downstream.condition(batch.support, net.space.U), net.condition(batch.support, net.space.U))
