"""The generator of the paper: its symmetries, the rows of the ablation, the settings of its chain."""

from dataclasses import replace

import pytest
import torch
from worlds import GENERATOR, TRAINING

from mcdi.errors import McdiError
from mcdi.methods import make_method
from mcdi.methods.mcdi.method import Diffusion
from mcdi.methods.mcdi.settings import DiffusionSettings
from mcdi.methods.meta_training import MetaTraining
from mcdi.methods.sampling import Sampling
from mcdi.types import Examples
from mcdi.utils.settings import make


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
        with pytest.raises(McdiError, match="objective = 'score' should be"):
            make(DiffusionSettings, {"objective": "score"}, "generator")
        with pytest.raises(McdiError, match="samples = 0"):
            Sampling(samples=0)
        with pytest.raises(McdiError, match="stop = 4"):
            world.weights(world.method("mc-di"), stop=4)
        with pytest.raises(McdiError, match="unknown method 'gan'"):
            make_method("gan", {})
