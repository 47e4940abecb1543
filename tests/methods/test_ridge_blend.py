"""Heads that lean on the least-squares classifier of their support set, and the choice of sampling much."""

from dataclasses import replace

import pytest
import torch
from tiny_models import PAIR, lora

from mcdi.errors import McdiError
from mcdi.generator.api import Generator
from mcdi.methods import make_method
from mcdi.methods.mcdi.calibration import calibration_quantiles, confidence, support_log_odds
from mcdi.methods.mcdi.method import Diffusion
from mcdi.methods.mcdi.selection import choose_sampler
from mcdi.methods.sampling import MIXING_WEIGHTS, SAMPLERS, Sampling
from mcdi.networks.backbones.embedder import Embedder
from mcdi.networks.backbones.vision import Conv4
from mcdi.networks.film import FilmHead
from mcdi.networks.linear_head import LinearHead
from mcdi.networks.lora import LoraClassifier
from mcdi.networks.support import blend_heads, least_squares
from mcdi.tasks.episodes import FewShot
from mcdi.trajectories.prepare import Preparation, trajectories
from mcdi.types import Examples

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


class TestBlend:
    ROWS, OTHER, MASK = normal(4, 3, 7), normal(4, 3, 7, seed=1), torch.ones(4, 3, dtype=torch.bool)

    def test_all_of_it_is_the_head_itself(self):
        assert torch.equal(blend_heads(self.ROWS, self.OTHER, self.MASK, 1.0, 6), self.ROWS)

    def test_half_and_half_of_one_length(self):
        """By hand: rows less their mean, the other's brought to the same length of weights, the mean back."""
        own, other = (r - r.mean(1, keepdim=True) for r in (self.ROWS, self.OTHER))
        ratio = own[..., :6].flatten(1).norm(dim=1) / other[..., :6].flatten(1).norm(dim=1)
        want = self.ROWS.mean(1, keepdim=True) + 0.5 * own + 0.5 * ratio[:, None, None] * other
        torch.testing.assert_close(blend_heads(self.ROWS, self.OTHER, self.MASK, 0.5, 6), want)

    def test_neither_the_others_scale_nor_what_its_rows_share_counts(self):
        want = blend_heads(self.ROWS, self.OTHER, self.MASK, 0.3, 6)
        torch.testing.assert_close(blend_heads(self.ROWS, 9 * self.OTHER + normal(4, 1, 7), self.MASK, 0.3, 6), want)

    def test_it_follows_the_order_of_classes(self):
        order = torch.tensor([2, 0, 1])
        got = blend_heads(self.ROWS[:, order], self.OTHER[:, order], self.MASK, 0.3, 6)
        torch.testing.assert_close(got, blend_heads(self.ROWS, self.OTHER, self.MASK, 0.3, 6)[:, order])

    def test_classes_that_a_task_lacks_count_for_nothing(self):
        mask = self.MASK.clone()
        mask[:, 2] = False
        got = blend_heads(self.ROWS, self.OTHER, mask, 0.3, 6)
        torch.testing.assert_close(got[:, :2], blend_heads(self.ROWS[:, :2], self.OTHER[:, :2], mask[:, :2], 0.3, 6))
        assert torch.equal(got[:, 2], self.ROWS[:, 2])

    def test_one_class_and_another_head_of_zeros(self):
        one = blend_heads(self.ROWS[:, :1], self.OTHER[:, :1], self.MASK[:, :1], 0.3, 6)
        torch.testing.assert_close(one, self.ROWS[:, :1])
        assert bool(torch.isfinite(blend_heads(self.ROWS, torch.zeros_like(self.OTHER), self.MASK, 0.3, 6)).all())


class TestClosedForm:
    def test_a_linear_heads_answers_least_squares(self):
        net = LinearHead(6, 3)
        x, y = normal(2, 9, 6), torch.arange(3).repeat(2, 3)
        rows = least_squares(x, y, 3)
        want = x @ (rows[..., :-1] / 6).transpose(1, 2) + rows[..., -1][:, None]
        torch.testing.assert_close(net.predict(net.closed_form(Examples(x, y), 3), x), want)

    def test_hardly_any_weight_classifies_as_least_squares_does(self, family, method):
        batch, net = family.sample("test", range(30), shots=3), family.downstream
        got = method.generate(net, batch.support, batch.mask, seed=0, sampling=Sampling(mixing_weight=1e-6))
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
        got = net.blend_with_ridge(weights, support, mask, 0.5)
        assert torch.equal(got[:, :, 3:], weights[:, :, 3:]) and not torch.equal(got[:, :, :3], weights[:, :, :3])

    def test_rows_of_an_adapter_are_blended_with_ridge_on_their_features(self, models):
        net = LoraClassifier(lora(models), 2)
        states, y = net.read([*PAIR, *PAIR[::-1]]), torch.tensor([[0, 1, 0, 1, 1, 0]])
        net.set_feature_bank(states, torch.arange(6))
        support, mask = Examples(states[None], y), torch.ones(1, net.space.U, dtype=torch.bool)
        weights = net.theta0(0, net.space.U)[None, None].clone()
        weights[:, :, :2] = 1e-3 * normal(2, net.space.D)
        features = net.pooled(states[None])[..., 0, :]
        rows = least_squares(features, y, 2)
        want = (features @ rows[..., :-1].transpose(1, 2) / net.features + rows[..., -1][:, None]).diff(dim=-1)[..., 0]
        got = net.predict(net.blend_with_ridge(weights, support, mask, 1e-4)[:, 0], states[None]).diff(dim=-1)[..., 0]
        assert float(torch.corrcoef(torch.stack([got[0], want[0]]))[0, 1]) > 0.999


class TestSampling:
    def test_every_draw_is_blended_and_the_mean_is_theirs(self, family, method):
        batch, net = family.sample("test", range(6), shots=3), family.downstream
        sampling = Sampling(samples=4, mixing_weight=0.75)
        drawn = method.sample(net, batch.support, batch.mask, seed=0, sampling=sampling).weights
        free = method.sample(net, batch.support, batch.mask, seed=0, sampling=replace(sampling, mixing_weight=1.0)).weights
        for n in range(4):
            torch.testing.assert_close(
                drawn[:, n], net.blend_with_ridge(free[:, n : n + 1], batch.support, batch.mask, 0.75)[:, 0]
            )
        got = method.generate(net, batch.support, batch.mask, seed=0, sampling=sampling)
        torch.testing.assert_close(got, drawn.mean(1))

    @pytest.mark.parametrize("weight", [0.0, -0.5, 1.5])
    def test_weights_that_mean_nothing_are_refused(self, weight):
        with pytest.raises(McdiError, match=f"^mixing_weight = {weight} of the generated head: choose"):
            Sampling(mixing_weight=weight)

    def test_what_is_no_head_is_not_blended(self, sines):
        data = trajectories(sines, "train", range(20), Preparation(tasks=20, epochs=5, k=3))
        curve = make_method("mc-di", {**SETTINGS, "denoiser": "mlp", "prior": False}).fit(sines, data, seed=0)
        batch = sines.sample("test", range(2))
        with pytest.raises(McdiError, match="a curve has no linear head: nothing to blend.*set mixing_weight = 1"):
            curve.generate(sines.downstream, batch.support, batch.mask, seed=0, sampling=Sampling(mixing_weight=0.5))
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
        for n, sampling in samplers.items():
            for weight in MIXING_WEIGHTS:
                scores = []
                for b in batches:
                    mixed = replace(sampling, mixing_weight=weight)
                    weights = made.generate(family.downstream, b.support, b.mask, seed=0, sampling=mixed)
                    scores.append(float(family.downstream.score(weights, b.query, b.mask).mean()))
                merit[n if weight == 1 else f"{n}, mixing weight {weight}"] = sum(scores) / 2
        label, chosen = choose_sampler(made, family, tasks=40)
        assert merit[label] == pytest.approx(max(merit.values()), abs=1e-4)
        weight = chosen.settings.sampling.mixing_weight
        assert (f"mixing weight {weight}" in label) == (weight < 1)
        assert len(set(merit.values())) >= 3  # there was something to choose


@pytest.fixture(scope="module")
def chosen(family, method):
    return choose_sampler(method, family, tasks=100)[1]


@pytest.fixture(scope="module")
def mirrored(family):
    """The same features seen in a mirror: what tells classes apart in training says the opposite."""
    banks = {split: -bank + 3 for split, bank in family.examples.items()}
    return FewShot("mirror", family.downstream, banks, way=3, shots=(1, 3), queries=8)


class TestConfidence:
    """A head that misses the examples it was made from is of a task unlike those of training."""

    @pytest.mark.parametrize("classes", [2, 5, 40])
    def test_support_log_odds_are_those_of_a_wrong_class(self, classes):
        """Every wrong class with logit 0, the right one with 2: odds of e^-2 each, whatever their number."""
        net = LinearHead(classes, classes)
        rows = torch.cat([2 * torch.eye(classes), torch.zeros(classes, 1)], 1)[None]
        support = Examples(torch.eye(classes)[None], torch.arange(classes)[None])
        confidences = support_log_odds(net, rows, support, torch.ones(1, classes, dtype=torch.bool))
        torch.testing.assert_close(confidences, torch.tensor([-2.0]), rtol=1e-4, atol=1e-4)

    def test_support_log_odds_of_heads_that_are_wrong_and_sure_are_finite(self):
        """Scaled logits, all wrong: the odds grow with them and never overflow."""
        net, support = LinearHead(2, 2), Examples(torch.eye(2)[None], torch.tensor([[1, 0]]))
        rows = torch.cat([torch.eye(2), torch.zeros(2, 1)], 1)[None] * torch.tensor([10.0, 1000.0, 1e6])[:, None, None]
        odds = torch.cat([support_log_odds(net, one[None], support, torch.ones(1, 2, dtype=torch.bool)) for one in rows])
        torch.testing.assert_close(odds, torch.tensor([10.0, 1000.0, 1e6]))

    def test_common_log_odds_give_full_confidence_and_rare_ones_less(self):
        quantiles = calibration_quantiles(torch.arange(1001.0))
        assert (quantiles[0], quantiles[-1], len(quantiles)) == (950.0, 1000.0, 11)
        confidences = torch.tensor([0.0, 950.0, 951.0, 974.0, 999.0, 1000.0, 1001.0, float("inf")])
        want = torch.tensor([11, 11, 10, 6, 1, 1, 0, 0]) / 11
        torch.testing.assert_close(confidence(confidences, quantiles), want)

    def test_validation_keeps_quantiles_by_number_of_shots(self, family, chosen):
        quantiles = chosen.settings.sampling.calibration_quantiles
        assert set(quantiles) == {"1", "3"} and all(list(v) == sorted(v) for v in quantiles.values())
        batch = family.sample("val", range(100), shots=3)
        confidences = chosen.sample(family.downstream, batch.support, batch.mask, seed=0).confidence
        assert 0.94 <= float((confidences == 1).float().mean()) <= 0.97

    def test_in_distribution_tasks_keep_their_head_and_others_are_blended(self, family, chosen, mirrored):
        net, sampling = family.downstream, chosen.settings.sampling
        for tasks, low, high in ((family, 0.8, 1.0), (mirrored, 0.0, 0.5)):
            batch = tasks.sample("test", range(60), shots=3)
            confidences = chosen.sample(net, batch.support, batch.mask, seed=0).confidence
            assert low <= float(confidences.mean()) <= high
            plain = replace(sampling, mixing_weight=1.0, calibration_quantiles={})
            free = chosen.sample(net, batch.support, batch.mask, seed=0, sampling=plain).weights
            want = net.blend_with_ridge(free, batch.support, batch.mask, sampling.mixing_weight * confidences)[:, 0]
            torch.testing.assert_close(chosen.generate(net, batch.support, batch.mask, seed=0), want)

    def test_the_blend_helps_out_of_distribution(self, family, chosen, mirrored):
        net, batch = family.downstream, mirrored.sample("test", range(100), shots=3)
        sampling = chosen.settings.sampling
        scores = []
        for tried in (sampling, replace(sampling, calibration_quantiles={})):
            weights = chosen.generate(net, batch.support, batch.mask, seed=0, sampling=tried)
            scores.append(float(net.score(weights, batch.query, batch.mask).mean()))
        assert scores[0] > scores[1] + 0.02

    def test_saved_served_and_dropped_where_another_way_of_sampling_is_asked(self, family, chosen, mirrored, tmp_path):
        Generator("mc-di", chosen, family.downstream).save_pretrained(tmp_path)
        generator = Generator.from_pretrained(tmp_path)
        batch = mirrored.sample("test", range(30), shots=3)
        net, (x, y), mask = family.downstream, batch.support, batch.mask
        torch.testing.assert_close(generator.confidence((x, y)), chosen.sample(net, batch.support, mask, seed=0).confidence)
        one = generator.confidence((x[0], y[0]))
        assert one.shape == () and float(one) == pytest.approx(float(generator.confidence((x, y))[0]))
        for sampling, asked in (
            (chosen.settings.sampling, {}),
            (replace(chosen.settings.sampling, calibration_quantiles={}, steps=3), {"steps": 3}),
        ):
            want = net.space.unpack(chosen.generate(net, batch.support, mask, seed=0, sampling=sampling))
            got = generator.generate((x, y), **asked)
            torch.testing.assert_close(got["weight"], want["weight"])

    def test_weights_without_a_blend_have_confidence_one(self, family, sines):
        batch = family.sample("test", range(4), shots=3)
        prototypes = Generator("prototypes", make_method("prototypes", {}).fit(family, None, seed=0), family.downstream)
        assert torch.equal(prototypes.confidence(batch.support), torch.ones(4))
        data = trajectories(sines, "train", range(20), Preparation(tasks=20, epochs=5, k=3))
        curve = make_method("mc-di", {**SETTINGS, "denoiser": "mlp", "prior": False}).fit(sines, data, seed=0)
        curve = choose_sampler(curve, sines, tasks=20)[1]
        batch = sines.sample("test", range(2))
        assert curve.settings.sampling.calibration_quantiles == {}
        assert torch.equal(curve.sample(sines.downstream, batch.support, batch.mask, seed=0).confidence, torch.ones(2))
