"""The contract that every registered method keeps, on curves and on few-shot heads; and what is particular to some."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from worlds import GENERATOR, TRAINING, TUNING, settings

from mcdi.errors import McdiError
from mcdi.generator.api import Generator
from mcdi.methods import all_methods, make_method, method_spec
from mcdi.methods.baselines import finetune
from mcdi.methods.baselines.finetune import adapt
from mcdi.methods.mcdi.method import Diffusion
from mcdi.methods.mcdi.settings import DiffusionSettings
from mcdi.methods.meta_training import MetaTraining
from mcdi.methods.sampling import Sampling
from mcdi.networks.pixels import PixelNet
from mcdi.tasks.episodes import FewShot
from mcdi.types import Examples
from mcdi.utils.settings import make

HEADS = [name for name, spec in all_methods().items() if spec.networks == "heads"]


def pairs(*facts):
    """(method, family) of every method whose spec has these facts, as parameters of a test."""
    names = [name for name, spec in all_methods().items() if all(getattr(spec, fact) for fact in facts)]
    return pytest.mark.parametrize(
        ("name", "family"), [(n, f) for n in names for f in ("sines", "gauss") if f == "gauss" or n not in HEADS]
    )


class Poisoned:
    """The family with NaN for every query of train and test tasks; validation queries are for tuning, and the outer loss of
    MAML and the loss of GHN-3 are of training queries."""

    def __init__(self, family, name="any"):
        self.family = family
        self.clean = ("val", "train") if name in ("maml", "meta-hypernetwork", "ghn-3") else ("val",)

    def __getattr__(self, name):
        return getattr(self.family, name)

    def sample(self, split, seeds, **options):
        batch = self.family.sample(split, seeds, **options)
        return batch if split in self.clean else batch._replace(query=batch.query._replace(x=batch.query.x * float("nan")))


class TestContract:
    @pairs()
    def test_shape_type_and_seed(self, worlds, name, family):
        world = worlds[family]
        weights = world.weights(world.method(name))
        space = world.family.downstream.space
        assert weights.shape == (40, world.batch.mask.shape[1], space.D) and weights.dtype == torch.float32
        assert bool(torch.isfinite(weights).all()) and not weights.requires_grad
        assert torch.equal(world.weights(world.method(name)), weights)

    @pairs()
    def test_a_second_fit_reads_no_query_and_no_needless_trajectories(self, worlds, name, family):
        world = worlds[family]
        data = world.data if method_spec(name).needs_trajectories else None
        torch.manual_seed(99)  # the global generator is neither read nor changed
        before = torch.get_rng_state()
        again = make_method(name, settings(name)).fit(Poisoned(world.family, name), data, seed=0)
        assert torch.equal(torch.get_rng_state(), before)
        poisoned = Poisoned(world.family).sample("test", range(40))
        assert torch.equal(world.weights(again, poisoned), world.weights(world.method(name)))

    @pairs()
    def test_save_and_load(self, worlds, name, family, tmp_path):
        world = worlds[family]
        Generator(name, world.method(name), world.family.downstream).save_pretrained(tmp_path)
        loaded = Generator.from_pretrained(tmp_path)
        assert loaded.name == name and loaded.network.config() == world.family.downstream.config()
        assert torch.equal(world.weights(loaded.method), world.weights(world.method(name)))

    @pairs()
    def test_better_than_theta_0(self, worlds, name, family):
        world = worlds[family]
        start = world.family.downstream.theta0(0, world.batch.mask.shape[1]).expand(40, -1, -1)
        assert world.score(world.weights(world.method(name))) > world.score(start) + 0.1

    @pairs()
    def test_gradients_are_used_where_the_spec_says_so(self, worlds, name, family, monkeypatch):
        """Tensor.backward and torch.func.grad go through these two as well."""
        calls, method = [], worlds[family].method(name)
        for function in ("grad", "backward"):
            original = getattr(torch.autograd, function)

            def counted(*given, original=original, **options):
                calls.append(original)
                return original(*given, **options)

            monkeypatch.setattr(torch.autograd, function, counted)
        worlds[family].weights(method)
        assert method_spec(name).gradient_free == (not calls)

    @pairs("seed_per_task")
    def test_a_task_with_a_seed_of_its_own_does_not_depend_on_its_batch(self, worlds, name, family):
        world, seeds = worlds[family], (5, 6, 7)
        batch = world.weights(world.method(name), world.family.sample("test", seeds), seed=seeds)
        for n, seed in enumerate(seeds):
            one = world.weights(world.method(name), world.family.sample("test", [seed]), seed=[seed])
            torch.testing.assert_close(batch[n : n + 1], one, rtol=1e-3, atol=1e-3)

    @pairs("needs_trajectories")
    def test_no_trajectories_are_an_error_and_so_is_no_training(self, worlds, name, family):
        with pytest.raises(McdiError, match="mcdi prepare"):
            make_method(name, settings(name)).fit(worlds[family].family, None, seed=0)
        with pytest.raises(McdiError, match="not trained yet"):
            worlds[family].weights(make_method(name, settings(name)))

    @pytest.mark.parametrize("name", [n for n, spec in all_methods().items() if not spec.draws_at_random])
    def test_the_seed_decides_nothing_where_the_spec_says_so(self, worlds, name):
        world = worlds["gauss"]
        other = make_method(name, settings(name)).fit(world.family, None, seed=1)
        assert torch.equal(world.weights(other, seed=4), world.weights(world.method(name), seed=3))


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


class TestFineTune:
    def test_choice_is_of_the_grid(self, worlds):
        for family, shots in (("sines", "6"), ("gauss", "2")):
            lr, steps, decay = worlds[family].method("adam").tuned[shots]
            assert (lr in TUNING["lrs"], steps in TUNING["steps"], decay) == (True, True, 0.0)

    def test_steps_equal_torch_adam_and_a_near_shot_number_is_taken(self, worlds):
        world = worlds["gauss"]
        net, batch = world.family.downstream, world.family.sample("test", range(3), shots=1)
        lr, steps, _ = world.method("adam").tuned["2"]
        weights = world.weights(world.method("adam"), batch)
        for b in range(3):
            head = nn.Linear(6, 3)
            head.load_state_dict({n: p[0] for n, p in net.space.unpack(net.theta0(0, 3)[None]).items()})
            optimiser = torch.optim.Adam(head.parameters(), lr=lr)
            for _ in range(steps):
                optimiser.zero_grad()
                nn.functional.cross_entropy(head(batch.support.x[b]), batch.support.y[b]).backward()
                optimiser.step()
            torch.testing.assert_close(weights[b, :, :-1], head.weight.detach(), rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(weights[b, :, -1], head.bias.detach(), rtol=1e-3, atol=1e-4)

    def test_one_step_moves_by_the_rate_against_the_gradient(self, worlds):
        world = worlds["sines"]
        net, (support, _, mask, _) = world.family.downstream, world.batch
        start = net.theta0(0, 1).expand(40, -1, -1).clone().requires_grad_()
        grad = torch.autograd.grad(net.loss(start, support, mask).sum(), start)[0]
        moved = adapt(net, start, support, mask, 1, 0.01)
        torch.testing.assert_close(moved, start.detach() - 0.01 * grad / (grad.abs() + 1e-8))

    def test_small_batches_go_through_every_epoch_in_one_order_for_all_tasks(self, worlds):
        """Two of six examples at a step: seven steps equal a loop over them, and a task does not depend on its batch."""
        world = worlds["sines"]
        net, (support, _, mask, _) = world.family.downstream, world.batch
        start = net.theta0(0, 1).expand(len(mask), -1, -1)
        moved = adapt(net, start, support, mask, 7, 0.01, batch=2, seed=3)
        g = torch.Generator().manual_seed(3)
        order = torch.cat([torch.randperm(6, generator=g) for _ in range(3)]).split(2)
        w = start.clone().requires_grad_()
        optimiser = torch.optim.Adam([w], lr=0.01)
        for part in order[:7]:
            optimiser.zero_grad()
            net.loss(w, Examples(support.x[:, part], support.y[:, part]), mask).sum().backward()
            optimiser.step()
        torch.testing.assert_close(moved, w.detach())
        single = adapt(net, start[2:3], Examples(support.x[2:3], support.y[2:3]), mask[2:3], 7, 0.01, batch=2, seed=3)
        torch.testing.assert_close(single, moved[2:3], rtol=1e-4, atol=1e-6)
        whole = (adapt(net, start, support, mask, 3, 0.01, batch=size) for size in (6, None))
        assert torch.equal(*whole)
        assert torch.equal(adapt(net, start, support, mask, 0, 0.01), start)

    def test_tuning_and_generation_use_its_batches(self, worlds, monkeypatch):
        world, seen, adam_path = worlds["gauss"], [], finetune.adam_path

        def watched(*given):
            seen.append(given[-2:])
            return adam_path(*given)

        monkeypatch.setattr(finetune, "adam_path", watched)
        method = make_method("adam", {**TUNING, "batch": 2}).fit(world.family, None, seed=4)
        assert seen == [(2, 4)] * len(TUNING["lrs"])
        world.weights(method)
        assert seen[-1] == (2, 3)

    def test_batches_without_examples_are_refused(self):
        with pytest.raises(McdiError, match="batch = 0 examples a step"):
            make_method("adam", {"batch": 0})

    def test_shots_of_a_whole_network_are_counted_per_class(self):
        images = {n: torch.rand(4, 7, 196 + 2, generator=torch.Generator().manual_seed(0)) for n in ("train", "val", "test")}
        family = FewShot("pixels", PixelNet(2, 3, hidden=4), images, way=3, shots=(1, 3), queries=2)
        method = make_method("adam", TUNING).fit(family, None, seed=0)
        method.tuned = {"1": (0.1, 1, 0.0), "3": (0.1, 3, 0.0)}
        net, (support, _, mask, _) = family.downstream, family.sample("test", [0], shots=1)
        start = net.theta0(0, 1)[None]
        assert torch.equal(method.generate(net, support, mask, seed=0), adapt(net, start, support, mask, 1, 0.1))

    def test_reptile_starts_elsewhere_and_serves_any_number_of_classes(self, worlds):
        world = worlds["sines"]
        net = world.family.downstream
        assert not torch.equal(world.method("reptile").initial(net, 1), world.method("adam").initial(net, 1))
        method = worlds["gauss"].method("reptile")
        x, y = torch.randn(1, 10, 6), torch.arange(5).repeat(1, 2)
        weights = method.generate(worlds["gauss"].family.downstream, Examples(x, y), torch.ones(1, 5, dtype=torch.bool), seed=0)
        assert weights.shape == (1, 5, 7)


class TestDiffusion:
    def test_rows_follow_the_order_of_classes(self, worlds):
        world = worlds["gauss"]
        method, (support, _, mask, _) = world.method("mc-di"), world.batch
        new = torch.tensor([2, 0, 1])  # class c becomes class new[c]
        net, zero = world.family.downstream, Sampling(temperature=0.0)
        plain = method.generate(net, support, mask, seed=0, sampling=zero)
        renamed = method.generate(net, Examples(support.x, new[support.y]), mask, seed=0, sampling=zero)
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
        assert [world.method(n).denoiser.schedule.k for n in ("mc-di", "mv-di", "tw-di", "ocd", "hypernetwork")] == [
            3,
            1,
            1,
            1,
            1,
        ]
        assert not torch.equal(world.weights(world.method("tw-di")), world.weights(world.method("mv-di")))

    def test_stop_steps_and_samples(self, worlds):
        world = worlds["sines"]
        method = world.method("mc-di")
        net, (support, _, mask, _) = world.family.downstream, world.batch
        for stop, end in ((1, 7), (2, 13), (3, 20)):
            chain = method.chain(net, support, mask, seed=0, sampling=Sampling(stop=stop))
            assert [t for t, _ in chain] == list(range(end + 1)) and bool(torch.isfinite(chain[-1][1]).all())
        assert world.weights(method, stop=1).shape == world.weights(method, steps=2).shape
        three = method.chain(net, support, mask, seed=3, sampling=Sampling(samples=3))[-1][1]
        torch.testing.assert_close(world.weights(method, samples=3), three.reshape(40, 3, *three.shape[1:]).mean(1))
        other = method.with_sampling(Sampling(temperature=0.0))
        assert torch.equal(world.weights(other), world.weights(method, temperature=0.0))

    @pytest.mark.parametrize(
        "changes",
        [
            {"functional": 0.5},
            {"prior": False},
            {"parameterisation": "eps", "weight": "paper"},
            {"parameterisation": "v", "weight": "paper"},
            {"denoiser": "mlp", "schedule": "linear", "floor": 2e-4},
        ],
    )
    def test_every_setting_changes_the_weights_and_trains(self, worlds, changes):
        world = worlds["sines"]
        losses = []
        method = make_method("mc-di", {**GENERATOR, **changes, "training": {**TRAINING, "iterations": 30}})
        method.fit(world.family, world.data, seed=0, log=lambda done, total, figures: losses.append(figures["loss"]))
        weights = world.weights(method)
        assert bool(torch.isfinite(weights).all()) and sum(losses[-5:]) < sum(losses[:5])
        assert not torch.equal(weights, world.weights(world.method("mc-di")))

    def test_invalid_settings_are_refused(self, worlds):
        world = worlds["sines"]
        plain = DiffusionSettings(training=MetaTraining(iterations=1))
        for changes, message in (
            ({"objective": "regression", "parameterisation": "eps"}, "set parameterisation = 'x0'"),
            ({"schedule": "sqrt"}, "unknown schedule"),
            ({"parameterisation": "w", "prior": False}, "unknown parameterisation 'w'"),
            ({"denoiser": "gru"}, "unknown denoiser 'gru'"),
            ({"options": {"layers": 3}}, "does not take these options"),
            ({"k": 2}, "k = 2 targets cannot be taken evenly from 3"),
        ):
            with pytest.raises(McdiError, match=message):
                Diffusion(replace(plain, **changes)).fit(world.family, world.data, seed=0)
        with pytest.raises(McdiError, match="objective = 'score' must be"):
            make(DiffusionSettings, {"objective": "score"}, "generator")
        with pytest.raises(McdiError, match="samples = 0"):
            Sampling(samples=0)
        with pytest.raises(McdiError, match="stop = 4"):
            world.weights(world.method("mc-di"), stop=4)
        with pytest.raises(McdiError, match="unknown method 'gan'"):
            make_method("gan", {})
