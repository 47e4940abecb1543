"""Meta-training: interrupted anywhere it ends with the same weights, and errors name what cannot be resumed."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mcdi.errors import McdiError
from mcdi.methods.meta_training import MetaTraining, meta_train


class TestMetaTrain:
    @staticmethod
    def train(training, folder=None, log=lambda *a: None, width=4, scale=1.0):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.Linear(3, width)

        def batch_at(step):
            g = torch.Generator().manual_seed(step)
            return {"x": scale * torch.randn(training.inner_steps, training.learners, 5, 3, generator=g)}

        def loss(params, x):
            return ((torch.func.functional_call(net, params, (x,)) - x.sum(-1, keepdim=True)) ** 2).mean()

        meta_train(net, loss, batch_at, training, log=log, folder=folder)
        return net

    @pytest.mark.parametrize(("meta", "outer"), [("reptile", "adam"), ("reptile", "literal"), ("none", "adam")])
    @pytest.mark.parametrize("stop", [1, 5, 6])
    def test_resumed_equals_uninterrupted(self, tmp_path, meta, outer, stop):
        training = MetaTraining(meta=meta, outer=outer, iterations=9, learners=2, outer_lr=0.05, checkpoint_every=2)
        seen = []

        def killed(done, total, figures):
            seen.append(done)
            if done == stop and len(seen) == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.train(training, tmp_path, killed)
        resumed = self.train(training, tmp_path, killed)
        assert seen == [*range(1, stop + 1), *range((stop - 1) // 2 * 2 + 1, 10)]
        for a, b in zip(resumed.parameters(), self.train(training).parameters(), strict=True):
            assert torch.equal(a, b)

    def test_loss_falls(self):
        for meta in ("reptile", "none"):
            losses = []
            self.train(MetaTraining(meta=meta, iterations=200, outer_lr=0.05), log=lambda d, t, f: losses.append(f["loss"]))
            assert losses[-1] < 0.5 * losses[0]

    def test_the_rate_rises_over_the_warmup_and_then_falls(self):
        rates = []
        training = MetaTraining(meta="none", iterations=20, outer_lr=0.1, warmup=0.25)
        self.train(training, log=lambda done, total, figures: rates.append(figures["lr"]))
        assert rates[:5] == sorted(rates[:5]) and rates[4:] == sorted(rates[4:], reverse=True)
        assert rates[0] == pytest.approx(0.1 / 5) and 0.08 < rates[4] < 0.1

    @pytest.mark.parametrize("meta", ["reptile", "none"])
    def test_a_clipped_gradient_is_no_longer_than_asked(self, meta, monkeypatch):
        """Nor another direction, and one that is shorter stays as it is."""
        given = []
        monkeypatch.setattr(
            "mcdi.methods.meta_training.OuterStep.__call__",
            lambda self, d, lr, steps: given.append([-v / (lr * steps) for v in d]),
        )
        for clip in (0.0, 0.01, 1e6):
            self.train(MetaTraining(meta=meta, iterations=1, learners=1, inner_lr=0.01, clip=clip))
        whole, clipped, short = (torch.cat([g.flatten() for g in gradient]) for gradient in given)
        torch.testing.assert_close(clipped, 0.01 * whole / whole.norm())
        torch.testing.assert_close(short, whole)

    def test_the_inner_optimiser_is_the_one_that_is_asked_for(self):
        """One step of Adam inside, and the outer step as printed at full rate: every weight moves by eta."""
        training = MetaTraining(outer="literal", outer_lr=1.0, iterations=1, learners=1, inner_steps=1, inner_lr=0.01, ema=0.0)
        plain, adam = self.train(replace(training, inner_lr=1e-12)), self.train(replace(training, inner="adam"))
        for before, after in zip(plain.parameters(), adam.parameters(), strict=True):
            torch.testing.assert_close((after - before).abs(), torch.full_like(before, 0.01), rtol=1e-3, atol=1e-5)

    def test_nan_loss_and_foreign_checkpoint(self, tmp_path):
        with pytest.raises(McdiError, match=r"the loss became .* at iteration 1: lower outer_lr"):
            self.train(MetaTraining(iterations=2), scale=1e30)
        training = MetaTraining(iterations=4, checkpoint_every=2)
        self.train(training, tmp_path, width=4)
        with pytest.raises(McdiError, match="checkpoint of another network"):
            self.train(training, tmp_path, width=5)
        with pytest.raises(McdiError, match="meta = .* is unknown"):
            MetaTraining(meta="maml")
        with pytest.raises(McdiError, match="at least 1"):
            MetaTraining(learners=0)
