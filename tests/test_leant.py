"""Heads that lean on the least-squares classifier of their support set, and the choice of how much."""

from dataclasses import replace

import pytest
import torch
from tiny_models import PAIR, lora

from mcdi.embed import Conv4, Embedder
from mcdi.errors import McdiError
from mcdi.evaluate import choose_sampler
from mcdi.methods import SAMPLERS, SHARES, Diffusion, Sampling, make_method
from mcdi.methods.leaning import fitted_shares, folds
from mcdi.prepare import Preparation, trajectories
from mcdi.tasks.adapted import FilmHead
from mcdi.tasks.base import Examples
from mcdi.tasks.fewshot import FewShot
from mcdi.tasks.heads import LinearHead
from mcdi.tasks.lora import LoraClassifier
from mcdi.tasks.sets import leant, least_squares

SETTINGS = {"options": {"width": 16, "depth": 1}, "training": {"iterations": 20, "learners": 2, "tasks": 8}, "T": 6}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def family():
    banks = {s: 1.2 * normal(12, 1, 6, seed=i) + normal(12, 25, 6, seed=9 + i) for i, s in enumerate(("train", "val", "test"))}
    return FewShot("gauss", LinearHead(6, 3), banks, way=3, shots=(1, 3), queries=8)


@pytest.fixture(scope="module")
def data(family):
    return trajectories(family, "train", range(60), Preparation(tasks=60, epochs=20, k=3, lr=0.03))


@pytest.fixture(scope="module")
def method(family, data):
    return make_method("mc-di", SETTINGS).fit(family, data, seed=0)


class TestLeant:
    ROWS, OTHER, MASK = normal(4, 3, 7), normal(4, 3, 7, seed=1), torch.ones(4, 3, dtype=torch.bool)

    def test_all_of_it_is_the_head_itself(self):
        assert torch.equal(leant(self.ROWS, self.OTHER, self.MASK, 1.0, 6), self.ROWS)

    def test_half_and_half_of_one_length(self):
        """By hand: rows less their mean, the other's brought to the same length of weights, the mean back."""
        own, other = (r - r.mean(1, keepdim=True) for r in (self.ROWS, self.OTHER))
        ratio = own[..., :6].flatten(1).norm(dim=1) / other[..., :6].flatten(1).norm(dim=1)
        want = self.ROWS.mean(1, keepdim=True) + 0.5 * own + 0.5 * ratio[:, None, None] * other
        torch.testing.assert_close(leant(self.ROWS, self.OTHER, self.MASK, 0.5, 6), want)

    def test_neither_the_others_scale_nor_what_its_rows_share_counts(self):
        want = leant(self.ROWS, self.OTHER, self.MASK, 0.3, 6)
        torch.testing.assert_close(leant(self.ROWS, 9 * self.OTHER + normal(4, 1, 7), self.MASK, 0.3, 6), want)

    def test_it_follows_the_order_of_classes(self):
        order = torch.tensor([2, 0, 1])
        got = leant(self.ROWS[:, order], self.OTHER[:, order], self.MASK, 0.3, 6)
        torch.testing.assert_close(got, leant(self.ROWS, self.OTHER, self.MASK, 0.3, 6)[:, order])

    def test_classes_that_a_task_lacks_count_for_nothing(self):
        mask = self.MASK.clone()
        mask[:, 2] = False
        got = leant(self.ROWS, self.OTHER, mask, 0.3, 6)
        torch.testing.assert_close(got[:, :2], leant(self.ROWS[:, :2], self.OTHER[:, :2], mask[:, :2], 0.3, 6))
        assert torch.equal(got[:, 2], self.ROWS[:, 2])

    def test_one_class_and_another_head_of_zeros(self):
        one = leant(self.ROWS[:, :1], self.OTHER[:, :1], self.MASK[:, :1], 0.3, 6)
        torch.testing.assert_close(one, self.ROWS[:, :1])
        assert bool(torch.isfinite(leant(self.ROWS, torch.zeros_like(self.OTHER), self.MASK, 0.3, 6)).all())


class TestClosedForm:
    def test_a_linear_heads_answers_least_squares(self):
        net = LinearHead(6, 3)
        x, y = normal(2, 9, 6), torch.arange(3).repeat(2, 3)
        rows = least_squares(x, y, 3)
        want = x @ (rows[..., :-1] / 6).transpose(1, 2) + rows[..., -1][:, None]
        torch.testing.assert_close(net.predict(net.closed_form(Examples(x, y), 3), x), want)

    def test_hardly_any_share_classifies_as_least_squares_does(self, family, method):
        batch, net = family.sample("test", range(30), shots=3), family.downstream
        got = method.generate(net, batch.support, batch.mask, seed=0, how=Sampling(share=1e-6))
        want = net.closed_form(batch.support, 3)
        for weights in (got, want):
            assert weights.shape == (30, 3, 7)
        choice = [net.logits(w, batch.query.x, batch.mask).argmax(-1) for w in (got, want)]
        assert float((choice[0] == choice[1]).float().mean()) > 0.999

    def test_scale_and_shift_of_a_film_head_stay(self):
        net = FilmHead(64, 3, Embedder(Conv4(), 28))
        support = Examples(normal(2, 6, net.input_size), torch.arange(3).repeat(2, 2))
        weights = normal(2, 1, net.space.U, net.space.D, seed=3)
        mask = torch.ones(2, net.space.U, dtype=torch.bool)
        got = net.leant(weights, support, mask, 0.5)
        assert torch.equal(got[:, :, 3:], weights[:, :, 3:]) and not torch.equal(got[:, :, :3], weights[:, :, :3])

    def test_rows_of_an_adapter_lean_on_what_they_read(self, models):
        net = LoraClassifier(lora(models), 2)
        states, y = net.read([*PAIR, *PAIR[::-1]]), torch.tensor([[0, 1, 0, 1, 1, 0]])
        net.hold(states, torch.arange(6))
        support, mask = Examples(states[None], y), torch.ones(1, net.space.U, dtype=torch.bool)
        weights = net.theta0(0, net.space.U)[None, None].clone()
        weights[:, :, :2] = 1e-3 * normal(2, net.space.D)
        features = net.pooled(states[None])[..., 0, :]
        rows = least_squares(features, y, 2)
        want = (features @ rows[..., :-1].transpose(1, 2) / net.features + rows[..., -1][:, None]).diff(dim=-1)[..., 0]
        got = net.predict(net.leant(weights, support, mask, 1e-4)[:, 0], states[None]).diff(dim=-1)[..., 0]
        assert float(torch.corrcoef(torch.stack([got[0], want[0]]))[0, 1]) > 0.999


class TestSampling:
    def test_every_draw_leans_and_the_mean_is_theirs(self, family, method):
        batch, net = family.sample("test", range(6), shots=3), family.downstream
        how = Sampling(samples=4, share=0.75)
        drawn = method.draws(net, batch.support, batch.mask, seed=0, how=how)
        free = method.draws(net, batch.support, batch.mask, seed=0, how=replace(how, share=1.0))
        for n in range(4):
            torch.testing.assert_close(drawn[:, n], net.leant(free[:, n : n + 1], batch.support, batch.mask, 0.75)[:, 0])
        got = method.generate(net, batch.support, batch.mask, seed=0, how=how)
        torch.testing.assert_close(got, drawn.mean(1))

    @pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
    def test_shares_that_mean_nothing_are_refused(self, share):
        with pytest.raises(McdiError, match=f"share = {share} of the generated head: choose 0 < share <= 1"):
            Sampling(share=share)

    def test_what_is_no_head_cannot_lean(self, sines):
        data = trajectories(sines, "train", range(20), Preparation(tasks=20, epochs=5, k=3))
        curve = make_method("mc-di", {**SETTINGS, "denoiser": "mlp", "prior": False}).fit(sines, data, seed=0)
        batch = sines.sample("test", range(2))
        with pytest.raises(McdiError, match="share = 0.5 is for heads, and a curve is none: set share = 1"):
            curve.generate(sines.downstream, batch.support, batch.mask, seed=0, how=Sampling(share=0.5))
        label, chosen = choose_sampler(curve, sines, tasks=20)
        assert label in SAMPLERS and chosen.settings.sampling == SAMPLERS[label]


class TestChoice:
    @pytest.mark.parametrize("name", ["mc-di", "hypernetwork"])
    def test_it_is_the_best_of_all_on_validation_tasks(self, family, data, name):
        made = make_method(name, SETTINGS).fit(family, data, seed=0)
        assert isinstance(made, Diffusion)
        samplers = SAMPLERS if made.is_chain else {"one step": made.settings.sampling}
        batches = [family.sample("val", range(40), shots=shots) for shots in family.shots]
        merit = {}
        for n, how in samplers.items():
            for share in SHARES:
                scores = []
                for b in batches:
                    weights = made.generate(family.downstream, b.support, b.mask, seed=0, how=replace(how, share=share))
                    scores.append(float(family.downstream.score(weights, b.query, b.mask).mean()))
                merit[n if share == 1 else f"{n}, share {share}"] = sum(scores) / 2
        label, chosen = choose_sampler(made, family, tasks=40)
        assert merit[label] == pytest.approx(max(merit.values()), abs=1e-4)
        share = chosen.settings.sampling.share
        assert (f"share {share}" in label) == (share < 1)
        assert len(set(merit.values())) >= 3  # there was something to choose


class TestFolds:
    @pytest.mark.parametrize("shots", [2, 3, 5, 7, 12])
    def test_every_example_is_left_out_once_and_no_class_is_lost(self, shots):
        y = torch.stack([torch.arange(4).repeat_interleave(shots), torch.arange(4).repeat(shots)])
        parts = list(folds(y, 4))
        assert len(parts) == min(shots, 5)
        left = torch.cat([out for _, out in parts], 1).sort(1).values
        assert torch.equal(left, torch.arange(4 * shots).expand(2, -1))
        for kept, out in parts:
            assert torch.equal(torch.cat([kept, out], 1).sort(1).values, torch.arange(4 * shots).expand(2, -1))
            assert all(set(row.tolist()) == {0, 1, 2, 3} for row in y.gather(1, kept))

    def test_an_only_example_stays_and_few_are_left_out_again(self):
        y = torch.tensor([[0, 1, 1, 2, 2, 2]])
        parts = list(folds(y, 3))
        assert [sorted(out[0].tolist()) for _, out in parts] == [[1, 3], [2, 4], [1, 5]]

    def test_with_one_example_a_class_nothing_can_be_left_out(self):
        assert list(folds(torch.arange(5)[None], 5)) == []


class TestFitted:
    def test_a_head_that_is_wrong_is_given_up_and_a_perfect_one_kept(self, family):
        net, batch = family.downstream, family.sample("test", range(20), shots=3)
        data = family.training_data("test", range(20))
        perfect = 30 * net.closed_form(data, 3)
        for made, low, high in ((perfect[:, [1, 2, 0]], 0.0, 0.2), (perfect, 0.55, 1.0)):
            found = fitted_shares(lambda seen, mask, made=made: made, net, batch.support, batch.mask, 0.75)
            assert low <= float(found.mean()) <= high

    def test_the_share_is_the_mean_under_the_tempered_likelihood(self, family, method):
        """By hand, for one task: five shares, three folds, the loss of what each leaves out."""
        net, batch = family.downstream, family.sample("test", [4], shots=3)
        how, (x, y) = Sampling(temperature=0.0, steps=1), batch.support
        missed = torch.zeros(5)
        for fold in range(3):
            out = torch.tensor([3 * c + fold for c in range(3)])
            kept = torch.tensor([i for i in range(9) if i not in out])
            seen = Examples(x[:, kept], y[:, kept])
            drawn = method.draws(net, seen, batch.mask, seed=0, how=how)
            for j, share in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
                logits = net.predict(net.leant(drawn, seen, batch.mask, share)[:, 0], x[:, out])
                missed[j] += torch.nn.functional.cross_entropy(logits[0], y[0, out], reduction="sum")
        want = float((-0.25 * missed).softmax(0) @ torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
        got = method.generate(net, batch.support, batch.mask, seed=0, how=replace(how, fitted=True))
        free = method.draws(net, batch.support, batch.mask, seed=0, how=how)
        torch.testing.assert_close(got, net.leant(free, batch.support, batch.mask, want)[:, 0], rtol=1e-4, atol=1e-5)

    def test_a_task_is_the_same_alone_and_beside_one_of_other_numbers(self, family, method):
        net, batch = family.downstream, family.sample("test", range(2), shots=3)
        y = batch.support.y.clone()
        y[1] = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2])
        how = Sampling(temperature=0.0, steps=1, fitted=True)
        both = method.generate(net, Examples(batch.support.x, y), batch.mask, seed=0, how=how)
        for b in range(2):
            one = Examples(batch.support.x[b, None], y[b, None])
            torch.testing.assert_close(method.generate(net, one, batch.mask[b, None], seed=0, how=how)[0], both[b])

    def test_one_shot_keeps_the_validated_share(self, family, method):
        net, batch = family.downstream, family.sample("test", range(5), shots=1)
        how = Sampling(temperature=0.0, share=0.5)
        got, want = (method.generate(net, batch.support, batch.mask, seed=0, how=h) for h in (replace(how, fitted=True), how))
        torch.testing.assert_close(got, want)

    def test_centred_tasks_stay_centred(self, family, data):
        net = LinearHead(6, 3, centred=True)
        far = FewShot("gauss", net, family.banks, way=3, shots=(1, 3), queries=8)
        batch, seen = far.sample("test", range(5), shots=3), []

        def heads(support, mask):
            seen.append(support.x.mean(1))
            return net.closed_form(support, 3)

        fitted_shares(heads, net, batch.support, batch.mask, 0.75)
        assert len(seen) == 3 and all(bool((centre.abs() < 1e-5).all()) for centre in seen)

    def test_what_is_no_head_is_refused(self, sines):
        batch = sines.sample("test", range(2))
        with pytest.raises(McdiError, match="fitted shares are for heads, and a curve is none"):
            fitted_shares(lambda *_: torch.zeros(2, 1, 1), sines.downstream, batch.support, batch.mask, 1.0)
