"""The contract that every method keeps, on curves and on few-shot heads; and what is particular to each."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mcdi.embed import cl2n
from mcdi.errors import McdiError
from mcdi.generator import Generator
from mcdi.methods import METHODS, Diffusion, adapt, make_method
from mcdi.methods.diffusion_settings import DiffusionSettings
from mcdi.methods.loop import MetaTraining
from mcdi.methods.maml import descend
from mcdi.methods.sampling import Sampling
from mcdi.methods.vae import divergence
from mcdi.prepare import Preparation, trajectories
from mcdi.tasks.base import Examples
from mcdi.tasks.downstream import PixelNet
from mcdi.tasks.fewshot import FewShot
from mcdi.tasks.heads import LinearHead
from mcdi.tasks.sets import centre_of

TRAINING = {"iterations": 40, "learners": 2, "tasks": 8, "outer_lr": 0.003}
TUNING = {"lrs": [0.03, 0.1], "steps": [5, 20], "decays": [0.0], "tasks": 20}
SETTINGS = {
    "adam": TUNING,
    "reptile": {"training": {**TRAINING, "inner_lr": 0.02, "inner_steps": 5, "outer_lr": 0.01}, "tuning": TUNING},
    "maml": {
        "training": {**TRAINING, "meta": "none", "inner_steps": 1, "tasks": 1, "learners": 16, "outer_lr": 0.01},
        "tuned": 20,
    },
    "vae": {"width": 32, "latent": 4, "training": {**TRAINING, "meta": "none", "iterations": 150}},
    "prototypes": {},
    "linear-probe": {},
    "meta-baseline": {},
}
HEADS = ("prototypes", "linear-probe", "meta-baseline")  # of nothing but a head
# Forty iterations: too few for the printed weight, which hardly asks anything of the first steps.
GENERATOR = {"weight": "x0", "options": {"width": 16, "depth": 1}, "training": TRAINING}
SAME = [(m, f) for m in METHODS for f in ("sines", "gauss") if not (m in HEADS and f == "sines")]


def settings(name, **changes):
    return SETTINGS.get(name, GENERATOR) | changes


def gaussian_banks():
    g = torch.Generator().manual_seed(0)
    draws = {
        s: 1.5 * torch.randn(12, 1, 6, generator=g) + torch.randn(12, 25, 6, generator=g) for s in ("train", "val", "test")
    }
    return {s: cl2n(x, torch.zeros(6)) for s, x in draws.items()}  # of one length, as image features are


class World:
    """A family with its stored trajectories, and every method fitted once."""

    def __init__(self, family, epochs):
        self.family, self.fitted = family, {}
        self.how = Preparation(tasks=60, epochs=epochs, k=3, lr=0.03)
        self.data = trajectories(family, "train", range(60), self.how)
        self.batch = family.sample("test", range(40))

    def fit(self, name, **changes):
        return make_method(name, settings(name, **changes)).fit(self.family, self.data, seed=0)

    def method(self, name):
        if name not in self.fitted:
            self.fitted[name] = self.fit(name)
        return self.fitted[name]

    def weights(self, method, batch=None, **how):
        batch = batch or self.batch
        if how:
            return method.generate(self.family.downstream, batch.support, batch.mask, seed=3, how=Sampling(**how))
        return method.generate(self.family.downstream, batch.support, batch.mask, seed=3)

    def score(self, weights):
        return float(self.family.downstream.score(weights, self.batch.query, self.batch.mask).mean())


@pytest.fixture(scope="module")
def worlds(sines):
    gauss = FewShot("gauss", LinearHead(6, 3), gaussian_banks(), way=3, shots=(2,), queries=8)
    return {"sines": World(sines, 150), "gauss": World(gauss, 30)}


class Poisoned:
    """The family with NaN for every query of train and test tasks; validation queries are for tuning, and MAML's outer loss is
    of training queries."""

    def __init__(self, family, name="any"):
        self.family, self.clean = family, ("val", "train") if name == "maml" else ("val",)

    def __getattr__(self, name):
        return getattr(self.family, name)

    def sample(self, split, seeds, **how):
        batch = self.family.sample(split, seeds, **how)
        return batch if split in self.clean else batch._replace(query=batch.query._replace(x=batch.query.x * float("nan")))


@pytest.mark.parametrize(("name", "family"), SAME)
class TestContract:
    def test_shape_type_and_seed(self, worlds, name, family):
        world = worlds[family]
        weights = world.weights(world.method(name))
        space = world.family.downstream.space
        assert weights.shape == (40, world.batch.mask.shape[1], space.D) and weights.dtype == torch.float32
        assert bool(torch.isfinite(weights).all()) and not weights.requires_grad
        assert torch.equal(world.weights(world.method(name)), weights)

    def test_fitting_again_with_a_poisoned_query_gives_the_same_weights(self, worlds, name, family):
        world = worlds[family]
        torch.manual_seed(99)  # the global generator decides nothing, and is left alone
        before = torch.get_rng_state()
        again = make_method(name, settings(name)).fit(Poisoned(world.family, name), world.data, seed=0)
        assert torch.equal(torch.get_rng_state(), before)
        poisoned = Poisoned(world.family).sample("test", range(40))
        assert torch.equal(world.weights(again, poisoned), world.weights(world.method(name)))

    def test_save_and_load(self, worlds, name, family, tmp_path):
        world = worlds[family]
        Generator(name, world.method(name), world.family.downstream).save_pretrained(tmp_path)
        loaded = Generator.from_pretrained(tmp_path)
        assert loaded.name == name and loaded.network.config() == world.family.downstream.config()
        assert torch.equal(world.weights(loaded.method), world.weights(world.method(name)))

    def test_better_than_theta_0(self, worlds, name, family):
        world = worlds[family]
        start = world.family.downstream.theta0(0, world.batch.mask.shape[1]).expand(40, -1, -1)
        assert world.score(world.weights(world.method(name))) > world.score(start) + 0.1


class TestPrototypes:
    def test_equal_nearest_class_mean(self, worlds):
        world = worlds["gauss"]
        support, query = world.batch[:2]
        means = torch.stack([support.x[support.y == c].reshape(40, 2, 6).mean(1) for c in range(3)], 1)
        nearest = ((query.x[:, :, None] - means[:, None]) ** 2).sum(-1).argmin(-1)
        weights = world.weights(world.method("prototypes"))
        assert torch.equal(world.family.downstream.predict(weights, query.x).argmax(-1), nearest)

    @pytest.mark.parametrize("name", HEADS)
    def test_refuse_whole_networks(self, worlds, name):
        with pytest.raises(McdiError, match="linear heads only"):
            worlds["sines"].fit(name)


class TestOtherClosedForms:
    def test_a_probe_is_ridge_regression(self, worlds):
        """By the normal equations, with a bias that is not shrunk."""
        world = worlds["gauss"]
        method, (support, query) = world.method("linear-probe"), world.batch[:2]
        ridge = method.chosen["2"]
        assert ridge in method.settings.grid
        logits = world.family.downstream.predict(world.weights(method), query.x)
        for b in range(5):
            x, y = support.x[b], torch.nn.functional.one_hot(support.y[b], 3).float()
            near, far = x - x.mean(0), y - y.mean(0)
            w = torch.linalg.solve(near.T @ near + 6 * ridge * torch.eye(6), near.T @ far)
            torch.testing.assert_close(logits[b], (query.x[b] - x.mean(0)) @ w + y.mean(0), rtol=1e-4, atol=1e-5)

    def test_meta_baseline_is_the_cosine_to_class_means(self, worlds):
        world = worlds["gauss"]
        method, (support, query) = world.method("meta-baseline"), world.batch[:2]
        means = torch.stack([support.x[support.y == c].reshape(40, 2, 6).mean(1) for c in range(3)], 1)
        cosines = torch.nn.functional.cosine_similarity(query.x[:, :, None], means[:, None], dim=-1)
        logits = world.family.downstream.predict(world.weights(method), query.x)
        torch.testing.assert_close(logits, method.chosen["2"] * cosines, rtol=1e-4, atol=1e-4)

    def test_tau_is_the_most_likely_one(self, worlds):
        world = worlds["gauss"]
        method, net = world.method("meta-baseline"), world.family.downstream
        tasks = world.family.sample("val", range(300), shots=2)
        at = {
            n: float(net.loss(method._weights(net, tasks.support, tasks.mask, n), tasks.query, tasks.mask).mean())
            for n in (1.0, 100.0)
        }
        assert method.chosen["2"] not in at and len(at) == 2
        best = method._weights(net, tasks.support, tasks.mask, method.chosen["2"])
        assert float(net.loss(best, tasks.query, tasks.mask).mean()) < min(at.values())

    @pytest.mark.parametrize(
        ("name", "grid", "said"),
        [
            ("linear-probe", [], "ridges above 0"),
            ("meta-baseline", [0.0], "temperatures above 0"),
            ("prototypes", [1.0], "nothing"),
        ],
    )
    def test_grids_that_mean_nothing_are_refused(self, name, grid, said):
        with pytest.raises(McdiError, match=said):
            make_method(name, {"grid": grid})

    def test_cosines_need_features_of_one_length(self, worlds):
        world = worlds["gauss"]
        net, (support, _, mask, _) = world.family.downstream, world.batch
        longer = Examples(support.x * torch.linspace(1, 2, support.x.shape[1])[:, None], support.y)
        with pytest.raises(McdiError, match="no cosines of features of several lengths"):
            world.method("meta-baseline").generate(net, longer, mask, seed=0)


class TestMaml:
    def test_steps_are_sgd(self, worlds):
        world = worlds["gauss"]
        net, (support, _, mask, _) = world.family.downstream, world.batch
        start = torch.randn(40, 3, 7, generator=torch.Generator().manual_seed(0))
        got = descend(net, start, torch.tensor(0.1), support, mask, 3)
        head = nn.Linear(6, 3)
        head.load_state_dict({n: p[0] for n, p in net.space.unpack(start[:1]).items()})
        optimiser = torch.optim.SGD(head.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            nn.functional.cross_entropy(head(support.x[0]), support.y[0]).backward()
            optimiser.step()
        torch.testing.assert_close(got[0], torch.cat([head.weight, head.bias[:, None]], 1).detach(), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("first_order", [False, True])
    def test_the_outer_gradient_goes_through_the_inner_loop(self, worlds, first_order):
        """Against finite differences, along one direction of the start and for the rate; the first-order one misses it."""
        world = worlds["gauss"]
        net, (support, query, mask, _) = world.family.downstream, world.batch
        draws = torch.randn(2, 40, 3, 7, generator=torch.Generator().manual_seed(0))

        def outer(shift, rate):
            w = descend(net, draws[0] + shift * draws[1], rate, support, mask, 3, first_order=first_order)
            return net.loss(w, query, mask).mean()

        at = [torch.tensor(v, requires_grad=True) for v in (0.0, 0.7)]
        for place, grad in enumerate(torch.autograd.grad(outer(*at), at)):
            up, down = (float(outer(*(v + step * (n == place) for n, v in enumerate(at))).detach()) for step in (0.01, -0.01))
            assert (abs(float(grad) - (up - down) / 0.02) < 2e-4) != first_order

    def test_what_is_learnt_and_chosen(self, worlds):
        for family, shots in (("sines", "6"), ("gauss", "2")):
            world = worlds[family]
            method = world.method("maml")
            assert method.chosen[shots] in method.settings.test_steps
            net, (support, _, mask, _) = world.family.downstream, world.batch
            plain = descend(
                net, net.theta0(0, mask.shape[1]).expand(40, -1, -1), torch.tensor(0.1), support, mask, method.chosen[shots]
            )
            assert world.score(world.weights(method)) > world.score(plain)
            assert float(method.rate) != pytest.approx(0.1)

    def test_any_number_of_classes(self, worlds):
        x, y = torch.randn(1, 10, 6), torch.arange(5).repeat(1, 2)
        net = worlds["gauss"].family.downstream
        made = worlds["gauss"].method("maml").generate(net, Examples(x, y), torch.ones(1, 5, dtype=torch.bool), seed=0)
        assert made.shape == (1, 5, 7)

    @pytest.mark.parametrize(
        ("how", "said"), [({"training": {"meta": "reptile"}}, "leave training.meta"), ({"alpha": 0.0}, "must be positive")]
    )
    def test_settings_that_mean_nothing_are_refused(self, how, said):
        with pytest.raises(McdiError, match=said):
            make_method("maml", how)


class TestFineTune:
    def test_choice_is_of_the_grid(self, worlds):
        for family, shots in (("sines", "6"), ("gauss", "2")):
            lr, steps, decay = worlds[family].method("adam").chosen[shots]
            assert (lr in TUNING["lrs"], steps in TUNING["steps"], decay) == (True, True, 0.0)

    def test_steps_equal_torch_adam_and_a_near_shot_number_is_taken(self, worlds):
        world = worlds["gauss"]
        net, batch = world.family.downstream, world.family.sample("test", range(3), shots=1)
        lr, steps, _ = world.method("adam").chosen["2"]
        made = world.weights(world.method("adam"), batch)
        for b in range(3):
            head = nn.Linear(6, 3)
            head.load_state_dict({n: p[0] for n, p in net.space.unpack(net.theta0(0, 3)[None]).items()})
            optimiser = torch.optim.Adam(head.parameters(), lr=lr)
            for _ in range(steps):
                optimiser.zero_grad()
                nn.functional.cross_entropy(head(batch.support.x[b]), batch.support.y[b]).backward()
                optimiser.step()
            torch.testing.assert_close(made[b, :, :-1], head.weight.detach(), rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(made[b, :, -1], head.bias.detach(), rtol=1e-3, atol=1e-4)

    def test_one_step_moves_by_the_rate_against_the_gradient(self, worlds):
        world = worlds["sines"]
        net, (support, _, mask, _) = world.family.downstream, world.batch
        start = net.theta0(0, 1).expand(40, -1, -1).clone().requires_grad_()
        grad = torch.autograd.grad(net.loss(start, support, mask).sum(), start)[0]
        moved = adapt(net, start, support, mask, 1, 0.01)
        torch.testing.assert_close(moved, start.detach() - 0.01 * grad / (grad.abs() + 1e-8))

    def test_shots_of_a_whole_network_are_counted_per_class(self):
        banks = {n: torch.rand(4, 7, 196 + 2, generator=torch.Generator().manual_seed(0)) for n in ("train", "val", "test")}
        family = FewShot("pixels", PixelNet(2, 3, hidden=4), banks, way=3, shots=(1, 3), queries=2)
        method = make_method("adam", TUNING).fit(family, None, seed=0)
        method.chosen = {"1": (0.1, 1, 0.0), "3": (0.1, 3, 0.0)}
        net, (support, _, mask, _) = family.downstream, family.sample("test", [0], shots=1)
        start = net.theta0(0, 1)[None]
        assert torch.equal(method.generate(net, support, mask, seed=0), adapt(net, start, support, mask, 1, 0.1))

    def test_reptile_starts_elsewhere_and_serves_any_number_of_classes(self, worlds):
        world = worlds["sines"]
        net = world.family.downstream
        assert not torch.equal(world.method("reptile").initial(net, 1), world.method("adam").initial(net, 1))
        method = worlds["gauss"].method("reptile")
        x, y = torch.randn(1, 10, 6), torch.arange(5).repeat(1, 2)
        made = method.generate(worlds["gauss"].family.downstream, Examples(x, y), torch.ones(1, 5, dtype=torch.bool), seed=0)
        assert made.shape == (1, 5, 7)


@pytest.fixture(scope="module")
def centred():
    family = FewShot("gauss", LinearHead(6, 3, centred=True), gaussian_banks(), way=3, shots=(2,), queries=8)
    data = trajectories(family, "train", range(60), Preparation(tasks=60, epochs=30, k=3, lr=0.03))
    return Generator("mc-di", make_method("mc-di", GENERATOR).fit(family, data, seed=0), family.downstream), family


class TestCentred:
    """A generator of centred tasks knows nothing of where in feature space they lie."""

    def test_moved_features_get_the_moved_head(self, centred):
        made, _ = centred
        g = torch.Generator().manual_seed(0)
        x, y, away = torch.randn(2, 9, 6, generator=g), torch.arange(3).repeat(2, 3), 5 * torch.randn(2, 1, 6, generator=g)
        for how, spec in (({}, "bcf,bf->bc"), ({"ensemble": True, "samples": 2}, "bncf,bf->bnc")):
            here, there = (made.generate((e, y), seed=0, **how) for e in (x, x + away))
            torch.testing.assert_close(here["weight"], there["weight"], rtol=1e-3, atol=1e-4)
            want = here["bias"] - torch.einsum(spec, here["weight"], away[:, 0])
            torch.testing.assert_close(there["bias"], want, rtol=1e-3, atol=1e-3)
        logits = [made.predict(made.generate((e, y), temperature=0.0), e) for e in (x, x + away)]
        torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)

    def test_it_answers_as_the_family_is_measured(self, centred, tmp_path):
        made, family = centred
        batch, plain = (
            family.sample("test", range(20)),
            FewShot("gauss", LinearHead(6, 3), gaussian_banks(), way=3, shots=(2,), queries=8),
        )
        raw = plain.sample("test", range(20))
        flat = made.method.generate(family.downstream, batch.support, batch.mask, seed=0)
        want = family.downstream.predict(flat, batch.query.x)
        made.save_pretrained(tmp_path)
        loaded = Generator.from_pretrained(tmp_path)
        assert loaded.network.centred
        got = loaded.predict(loaded.generate(raw.support, seed=0), raw.query.x)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)

    def test_the_centre_does_not_depend_on_the_number_of_examples(self):
        x, y = torch.randn(1, 6, 4), torch.tensor([[0, 0, 0, 0, 1, 2]])
        means = torch.stack([x[0, y[0] == c].mean(0) for c in range(3)])
        torch.testing.assert_close(centre_of(x, y)[0, 0], means.mean(0))

    def test_other_networks_are_refused(self):
        with pytest.raises(McdiError, match="a pixel-net reads no centred features"):
            PixelNet(2, 3, hidden=4).placed(torch.zeros(1, 1, 3), torch.zeros(1, 1, 3))


class TestVae:
    def test_the_divergence_is_torchs(self):
        g = torch.Generator().manual_seed(0)
        mean, log_variance = torch.randn(5, 3, 4, generator=g), torch.randn(5, 3, 4, generator=g)
        found, prior = (
            torch.distributions.Normal(m, s) for m, s in ((mean, (0.5 * log_variance).exp()), (torch.zeros(4), torch.ones(4)))
        )
        torch.testing.assert_close(divergence(mean, log_variance), torch.distributions.kl_divergence(found, prior).sum(-1))

    def test_the_code_says_what_the_condition_does_not(self, worlds):
        """With z of the target itself the reconstruction is nearer to it than what z = 0 gives."""
        world = worlds["gauss"]
        method, net = world.method("vae"), world.family.downstream
        targets, batch = world.data.targets[:, -1], world.family.sample("train", world.data.seeds.tolist())
        cond = net.condition(batch.support, 3)
        theta = method.space.standardise(targets)
        with torch.no_grad():
            own, mean, _ = method.net(theta, cond, torch.zeros(60, 3, 4))
            middle = method.net.decode(torch.zeros_like(mean), cond)
        assert float((own - theta).square().mean()) < float((middle - theta).square().mean())

    @pytest.mark.parametrize("how", [{"latent": 0}, {"beta": 0.0}, {"training": {"meta": "reptile"}}])
    def test_settings_that_mean_nothing_are_refused(self, how):
        with pytest.raises(McdiError):
            make_method("vae", how)

    def test_rows_follow_the_order_of_classes_and_their_number(self, worlds):
        world = worlds["gauss"]
        method, (support, _, mask, _) = world.method("vae"), world.batch
        net, new = world.family.downstream, torch.tensor([2, 0, 1])
        plain = method.generate(net, support, mask, seed=0)
        torch.testing.assert_close(method.generate(net, Examples(support.x, new[support.y]), mask, seed=0)[:, new], plain)
        x, y = torch.randn(1, 10, 6), torch.arange(5).repeat(1, 2)
        assert method.generate(net, Examples(x, y), torch.ones(1, 5, dtype=torch.bool), seed=0).shape == (1, 5, 7)


class TestDiffusion:
    def test_rows_follow_the_order_of_classes(self, worlds):
        world = worlds["gauss"]
        method, (support, _, mask, _) = world.method("mc-di"), world.batch
        new = torch.tensor([2, 0, 1])  # class c becomes class new[c]
        net, cold = world.family.downstream, Sampling(temperature=0.0)
        plain = method.generate(net, support, mask, seed=0, how=cold)
        renamed = method.generate(net, Examples(support.x, new[support.y]), mask, seed=0, how=cold)
        torch.testing.assert_close(renamed[:, new], plain, rtol=1e-4, atol=1e-4)

    def test_a_batch_equals_one_task_at_a_time(self, worlds):
        for world in worlds.values():
            whole = world.weights(world.method("mc-di"), temperature=0.0)
            for seed in range(3):
                one = world.weights(world.method("mc-di"), world.family.sample("test", [seed]), temperature=0.0)
                torch.testing.assert_close(whole[seed], one[0], rtol=1e-3, atol=1e-4)

    def test_rows_of_the_ablation_are_settings(self, worlds):
        world = worlds["gauss"]
        assert torch.equal(world.weights(world.fit("mc-di", k=1)), world.weights(world.method("mv-di")))
        assert [world.method(n).schedule.k for n in ("mc-di", "mv-di", "tw-di", "ocd", "hypernetwork")] == [3, 1, 1, 1, 1]
        assert not torch.equal(world.weights(world.method("tw-di")), world.weights(world.method("mv-di")))

    def test_stop_steps_and_samples(self, worlds):
        world = worlds["sines"]
        method = world.method("mc-di")
        net, (support, _, mask, _) = world.family.downstream, world.batch
        for stop, end in ((1, 7), (2, 13), (3, 20)):
            chain = method.chain(net, support, mask, seed=0, how=Sampling(stop=stop))
            assert [t for t, _ in chain] == list(range(end + 1)) and bool(torch.isfinite(chain[-1][1]).all())
        assert world.weights(method, stop=1).shape == world.weights(method, steps=2).shape
        three = method.chain(net, support, mask, seed=3, how=Sampling(samples=3))[-1][1]
        torch.testing.assert_close(world.weights(method, samples=3), three.reshape(40, 3, *three.shape[1:]).mean(1))
        other = method.with_sampling(Sampling(temperature=0.0))
        assert torch.equal(world.weights(other), world.weights(method, temperature=0.0))

    @pytest.mark.parametrize(
        "changes",
        [
            {"functional": 0.5},
            {"prior": False},
            {"parameterisation": "eps", "weight": "paper"},
            {"parameterisation": "v", "weight": "paper", "window": "own"},
            {"denoiser": "unet", "options": {"width": 16, "channels": 4}},
            {"denoiser": "mlp", "schedule": "linear", "floor": 2e-4},
        ],
    )
    def test_every_setting_trains_to_something_of_its_own(self, worlds, changes):
        world = worlds["sines"]
        losses = []
        how = {**GENERATOR, **changes, "training": {**TRAINING, "iterations": 30}}
        method = make_method("mc-di", how)
        method.fit(world.family, world.data, seed=0, log=lambda done, total, figures: losses.append(figures["loss"]))
        weights = world.weights(method)
        assert bool(torch.isfinite(weights).all()) and sum(losses[-5:]) < sum(losses[:5])
        assert not torch.equal(weights, world.weights(world.method("mc-di")))

    def test_what_cannot_be_is_refused(self, worlds):
        world = worlds["sines"]
        plain = DiffusionSettings(training=MetaTraining(iterations=1))
        for changes, message in (
            ({"objective": "score"}, "unknown objective 'score'"),
            ({"objective": "regression", "parameterisation": "eps"}, "set parameterisation = 'x0'"),
            ({"schedule": "sqrt"}, "unknown schedule"),
            ({"parameterisation": "w", "prior": False}, "unknown parameterisation 'w'"),
            ({"denoiser": "gru"}, "unknown denoiser 'gru'"),
            ({"options": {"layers": 3}}, "does not take these options"),
            ({"k": 2}, "k = 2 targets cannot be taken evenly from 3"),
        ):
            with pytest.raises(McdiError, match=message):
                Diffusion(replace(plain, **changes)).fit(world.family, world.data, seed=0)
        with pytest.raises(McdiError, match="mcdi prepare"):
            Diffusion(plain).fit(world.family, None, seed=0)
        with pytest.raises(McdiError, match="not trained yet"):
            world.weights(Diffusion(plain))
        with pytest.raises(McdiError, match="samples = 0"):
            Sampling(samples=0)
        with pytest.raises(McdiError, match="stop = 4"):
            world.weights(world.method("mc-di"), stop=4)
        with pytest.raises(McdiError, match="unknown method 'gan'"):
            make_method("gan", {})
