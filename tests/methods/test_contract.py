"""The contract that every registered method keeps, on curves and on few-shot heads."""

import pytest
import torch
from torch.nn.functional import normalize
from worlds import settings

from mcdi.errors import McdiError
from mcdi.generator.api import Generator
from mcdi.methods import all_methods, make_method, method_spec
from mcdi.types import Examples

HEADS = [name for name, spec in all_methods().items() if spec.networks == "heads"]
HERE = {name: spec for name, spec in all_methods().items() if spec.networks != "last layer"}  # those are of test_whole_networks


def pairs(*facts):
    """(method, family) of every method whose spec has these facts, as parameters of a test."""
    names = [name for name, spec in HERE.items() if all(getattr(spec, fact) for fact in facts)]
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
        few = {"training": {**settings(name)["training"], "iterations": 6}} if "training" in settings(name) else {}
        once = world.fit(name, **few) if few else world.method(name)
        torch.manual_seed(99)  # the global generator is neither read nor changed
        before = torch.get_rng_state()
        again = make_method(name, settings(name, **few)).fit(Poisoned(world.family, name), data, seed=0)
        assert torch.equal(torch.get_rng_state(), before)
        poisoned = Poisoned(world.family).sample("test", range(40))
        assert torch.equal(world.weights(again, poisoned), world.weights(once))

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
        if name == "logistic-regression":
            pytest.skip("its gradients are scikit-learn's")
        calls, method = [], worlds[family].method(name)
        for function in ("grad", "backward"):
            original = getattr(torch.autograd, function)

            def counted(*given, original=original, **options):
                calls.append(original)
                return original(*given, **options)

            monkeypatch.setattr(torch.autograd, function, counted)
        worlds[family].weights(method)
        assert method_spec(name).gradient_free == (not calls)

    @pytest.mark.parametrize("name", HERE)
    def test_heads_of_any_number_of_classes(self, worlds, name):
        world = worlds["gauss"]
        five = Examples(normalize(torch.randn(1, 10, 6), dim=-1), torch.arange(5).repeat(1, 2))
        mask = torch.ones(1, 5, dtype=torch.bool)
        assert world.method(name).generate(world.family.downstream, five, mask, seed=0).shape == (1, 5, 7)

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

    @pytest.mark.parametrize("name", [n for n, spec in HERE.items() if not spec.draws_at_random])
    def test_the_seed_decides_nothing_where_the_spec_says_so(self, worlds, name):
        world = worlds["gauss"]
        other = make_method(name, settings(name)).fit(world.family, None, seed=1)
        assert torch.equal(world.weights(other, seed=4), world.weights(world.method(name), seed=3))
