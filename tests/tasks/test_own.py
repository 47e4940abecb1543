"""A module and data of the user's own: tasks, generator, files, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mcdi
from mcdi.errors import McdiError
from mcdi.experiments.statistics import interval
from mcdi.generator import fit
from mcdi.networks import registry
from mcdi.networks.own import PROBES, OwnNetwork
from mcdi.tasks.own import OwnTasks
from mcdi.trajectories.prepare import Preparation, prepare
from mcdi.types import Examples

QUICK = {"options": {"width": 32, "depth": 1}, "training": {"iterations": 60, "tasks": 8}}
ONCE = {"training": {"iterations": 1}}
ADAM = {"lrs": [0.1], "steps": [2], "decays": [0.0], "tasks": 3}
HOW = Preparation(epochs=20, lr=0.05)


def sides(tasks=60, count=40, seed=0):
    """On which side of a line of its own does a point lie?"""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tasks, count, 2, generator=g)
    return x, (x @ torch.randn(tasks, 2, 1, generator=g))[..., 0].gt(0).long()


def small(outputs=2, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, outputs))


@pytest.fixture(scope="module")
def generator():
    return mcdi.fit(OwnTasks(small(), *sides(), shots=4), preparation=HOW, settings=QUICK)


class TestTasks:
    def test_support_has_the_shots_of_every_class_and_never_meets_the_queries(self):
        x, y = sides()
        tasks = OwnTasks(small(), x, y, shots=4)
        assert len(tasks) == 54
        for split, first in (("train", 0), ("val", 54)):
            batch = tasks.sample(split, [2, 5], draw=3)
            assert batch.support.y.shape == (2, 8) and (batch.support.y.sum(1) == 4).all()
            for n, task in enumerate((2, 5)):
                both = torch.cat([batch.support.x[n], batch.query.x[n]])
                order = [(both == point).all(1).nonzero().item() for point in x[first + task]]  # every example once
                assert sorted(order) == list(range(40))
                assert torch.equal(torch.cat([batch.support.y[n], batch.query.y[n]])[order], y[first + task])

    def test_a_task_is_the_same_in_every_batch_and_other_draws_and_later_seeds_draw_others(self):
        tasks = OwnTasks(small(), *sides(), shots=4)
        one, many = tasks.sample("train", [7]), tasks.sample("train", [3, 7, 61])
        assert torch.equal(one.support.x[0], many.support.x[1])
        assert torch.equal(tasks.training_data("train", [7]).x, tasks.training_data("train", [61]).x)  # of 54: the same task
        draws = [one, tasks.sample("train", [7], draw=1), tasks.sample("train", [61])]
        assert len({tuple(d.support.x.flatten().tolist()) for d in draws}) == 3

    def test_the_users_module_is_left_alone_and_is_where_training_starts(self):
        module = small().train()
        before = {n: p.clone() for n, p in module.named_parameters()}
        tasks = OwnTasks(module, *sides(), shots=4)
        mcdi.fit(tasks, preparation=HOW, settings=ONCE)
        assert module.training and all(p.requires_grad and torch.equal(p, before[n]) for n, p in module.named_parameters())
        start = tasks.downstream.space.unpack(tasks.downstream.theta0(0, 1)[None])
        assert all(torch.equal(start[n][0], p) for n, p in before.items())

    def test_neither_its_modes_nor_its_statistics_change(self):
        x, y = sides()
        module = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
        OwnTasks(module, x, y, shots=3)
        assert module.training and not module[1].running_mean.any() and int(module[1].num_batches_tracked) == 0

    def test_the_description_is_a_kernel_ridge_estimate_at_training_inputs(self):
        x, y = torch.linspace(-3, 3, 200).expand(20, -1)[..., None], torch.linspace(-3, 3, 200).sin().expand(20, -1)
        net = OwnTasks(nn.Linear(1, 1), x, y, shots=60).downstream
        found = net.condition(Examples(x[:1, ::3], y[:1, ::3]), 1)
        assert found.shape == (1, 1, 2 * PROBES)
        wanted = (net.probes[:, 0].sin() - y[:18].mean()) / y[:18].std()
        assert (found[0, 0, :PROBES] - wanted).abs().max() < 0.1


class TestGenerator:
    def test_weights_for_unseen_tasks_go_into_the_module_and_are_better_than_its_own(self, generator):
        x, y = sides(seed=1)
        weights, module = generator.generate((x[0, :10], y[0, :10])), small()
        module.load_state_dict(weights)
        assert torch.allclose(generator.predict(weights, x[0]), module(x[0]), atol=1e-6)
        balanced = OwnTasks(small(), x, y, shots=5).sample("train", range(50))
        made = generator.generate(balanced.support)
        right = (generator.predict(made, balanced.query.x).argmax(-1) == balanced.query.y).float().mean(1)
        own = (small()(balanced.query.x).argmax(-1) == balanced.query.y).float().mean()
        assert interval(right)["mean"] > 0.8 > 0.65 > float(own)

    def test_it_is_saved_and_loaded_with_the_module_alone(self, generator, tmp_path):
        generator.save_pretrained(tmp_path)
        again = mcdi.load(tmp_path, module=small(seed=5))
        x, y = sides(seed=1)
        for n, w in again.generate((x[:, :30], y[:, :30])).items():
            assert torch.equal(w, generator.generate((x[:, :30], y[:, :30]))[n])
        with pytest.raises(McdiError, match="give it as `module`"):
            mcdi.load(tmp_path)
        with pytest.raises(McdiError, match="other parameters"):
            mcdi.load(tmp_path, module=nn.Sequential(nn.Linear(2, 9), nn.Tanh(), nn.Linear(9, 2)))
        with pytest.raises(McdiError, match="leave describe out"):
            mcdi.load(tmp_path, module=small(), describe=lambda x, y: x.mean(1))

    def test_frozen_parts_are_saved_too(self, tmp_path):
        made = mcdi.fit(OwnTasks(small(), *sides(), shots=4, select="^2"), preparation=HOW, settings=QUICK)
        x, y = sides(seed=1)
        weights = made.generate((x[0, :10], y[0, :10]))
        assert set(weights) == {"2.weight", "2.bias"}
        made.save_pretrained(tmp_path)
        again = mcdi.load(tmp_path, module=small(seed=5))
        assert torch.equal(again.predict(weights, x[0]), made.predict(weights, x[0]))

    def test_stored_trajectories_give_the_same_generator_and_other_data_do_not_resume_them(self, generator, tmp_path):
        tasks = OwnTasks(small(), *sides(), shots=4)
        how = Preparation(epochs=20, lr=0.05, tasks=len(tasks), chunk=20)
        made = mcdi.fit(tasks, stored=prepare(tasks, tmp_path, how), settings=QUICK)
        x, y = sides(seed=1)
        for n, w in made.generate((x[0, :10], y[0, :10])).items():
            assert torch.allclose(w, generator.generate((x[0, :10], y[0, :10]))[n], atol=1e-5)
        with pytest.raises(McdiError, match="holds other trajectories|another"):
            prepare(OwnTasks(small(), *sides(seed=2), shots=4), tmp_path, how)

    def test_other_methods_are_fitted_likewise(self):
        tuning = {"lrs": [0.1], "steps": [20], "decays": [0.0], "tasks": 10}
        made = mcdi.fit(OwnTasks(small(), *sides(), shots=4), "adam", preparation=HOW, settings=tuning)
        x, y = sides(seed=1)
        right = made.predict(made.generate((x[0], y[0])), x[0]).argmax(-1) == y[0]
        assert right.float().mean() > 0.85


class TestKinds:
    def test_real_numbers_one_or_several_and_a_loss_of_ones_own(self):
        x = torch.randn(30, 20, 2, generator=torch.Generator().manual_seed(0))
        slope = torch.randn(30, 2, 2, generator=torch.Generator().manual_seed(1))
        for y, outputs in (((x @ slope)[..., 0], 1), (x @ slope, 2)):
            tasks = OwnTasks(nn.Linear(2, outputs), x, y, shots=8, loss=F.l1_loss)
            data, net = tasks.training_data("train", [0, 1]), tasks.downstream
            weights = net.theta0(0, 1).expand(2, -1, -1)
            out = net.module(data.x).reshape(data.y.shape)
            assert torch.allclose(net.loss(weights, data, torch.ones(2, 1)), (out - data.y).abs().flatten(1).mean(1))
            assert net.score(weights, data, torch.ones(2, 1)).shape == (2,)
            made = mcdi.fit(tasks, preparation=HOW, settings=QUICK)
            found = made.generate((x[0, :8], y[0, :8]))  # one task, whose y may have two dimensions
            assert found["weight"].shape == (outputs, 2) and made.predict(found, x[0]).shape == y[0].shape

    def test_tokens_are_described_by_the_user(self, tmp_path):
        def counts(x, y):
            return F.one_hot(x, 6).float().mean((1, 2)) @ torch.eye(6) + y.float().mean(1, keepdim=True)

        x = torch.randint(0, 6, (30, 24, 4), generator=torch.Generator().manual_seed(0))
        y = (torch.arange(24) % 2).expand(30, -1)
        module = nn.Sequential(nn.Embedding(6, 3), nn.Flatten(), nn.Linear(12, 2))
        with pytest.raises(McdiError, match="give `describe`"):
            OwnTasks(module, x, y, shots=3)
        made = mcdi.fit(OwnTasks(module, x, y, shots=3, describe=counts), preparation=HOW, settings=QUICK)
        weights = made.generate((x[0, :6], y[0, :6]))
        assert weights["0.weight"].shape == (6, 3)
        made.save_pretrained(tmp_path)
        again = mcdi.load(tmp_path, module=module, describe=counts)
        assert torch.equal(again.generate((x[0, :6], y[0, :6]))["2.bias"], weights["2.bias"])
        with pytest.raises(McdiError, match="give it as `describe`"):
            mcdi.load(tmp_path, module=module)

    @pytest.mark.parametrize("token", [6, -1, 2**40])
    def test_tokens_that_the_module_has_no_embedding_for(self, token):
        """Of a batch of tasks, torch would read the embeddings of another task."""
        x, y = torch.arange(6).expand(30, 24, -1), (torch.arange(24) % 2).expand(30, -1)
        module = nn.Sequential(nn.Embedding(6, 3), nn.Flatten(), nn.Linear(18, 2))
        options = {"shots": 3, "describe": lambda x, y: y.float().mean(1, keepdim=True)}
        made = mcdi.fit(OwnTasks(module, x, y, **options), "adam", preparation=Preparation(epochs=3), settings=ADAM)
        other = x.clone()
        other[7, 20, 3] = token
        weights = made.generate((x[:8], y[:8]))
        for call in (
            lambda: OwnTasks(module, other, y, **options),
            lambda: made.generate((other[:8], y[:8])),
            lambda: made.predict(weights, other[:8]),
            lambda: made.predict({n: w[7] for n, w in weights.items()}, other[7, 20]),
        ):
            with pytest.raises(McdiError, match="does not take these integers"):
                call()

    def test_a_layer_may_be_a_token_of_a_transformer(self):
        tasks = OwnTasks(small(), *sides(), shots=4, unit="layer")
        layers = {"denoiser": "transformer", "options": {"width": 16, "depth": 1}, **ONCE}
        made = mcdi.fit(tasks, preparation=HOW, settings=layers)
        x, y = sides(seed=1)
        assert tasks.sample("val", [0]).mask.shape == (1, 2)
        assert made.generate((x[0, :10], y[0, :10]))["2.weight"].shape == (2, 8)

    def test_a_description_must_be_of_one_size(self):
        tasks = OwnTasks(small(), *sides(), shots=4, describe=lambda x, y: x.flatten(1))
        with pytest.raises(McdiError, match="support sets of every size"):
            tasks.downstream.condition(tasks.sample("train", [0]).support, 1)


class Softmax(nn.Sequential):
    def forward(self, x):
        return super().forward(x).log_softmax(-1)


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(x=torch.zeros(5, 3)), "do not match"),
        (dict(x=torch.full((60, 40, 2), torch.nan)), "NaN"),
        (dict(module=small(1)), "labels must be 0..0"),
        (dict(module=nn.Conv1d(2, 2, 1)), "does not take a task's inputs, torch.float32 .40, 2. .RuntimeError: Given groups"),
        (dict(y=torch.rand(60, 40)), r"answers \(40, 2\)"),
        (dict(shots=0), "at least 1"),
        (dict(shots=30), "more than shots = 30"),
        (dict(y=torch.rand(60, 40), module=small(1), shots=40), "40 examples: choose shots below"),
        (dict(unit="row"), "choose whole, layer"),
        (dict(select="head"), "matches no parameter"),
        (dict(select="["), "is no regular expression"),
        (dict(describe=lambda x, y: x.mean()), "describe fails on the support set"),
        (dict(unit="filter", head="prototype"), "choose generated, prototypes, ridge"),
        (dict(module=Softmax(*small()), unit="filter", head="ridge"), "a classifier that ends in a generated Linear layer"),
    ],
)
def test_what_does_not_go_together_is_refused(change, said):
    x, y = sides()
    with pytest.raises(McdiError, match=said):
        OwnTasks(**{"module": small(), "x": x, "y": y, "shots": 4} | change)


def test_a_split_of_ones_own_data_that_there_is_not():
    with pytest.raises(McdiError, match="no split 'test'"):
        OwnTasks(small(), *sides(), shots=4).sample("test", [0])


def test_examples_of_another_shape_and_code_for_a_network_that_needs_none(generator):
    with pytest.raises(McdiError, match=r"do not end in \(2,\)"):
        generator.generate((torch.zeros(4, 3), torch.tensor([0, 0, 1, 1])))
    with pytest.raises(McdiError, match="needs no code of yours: leave out module"):
        registry.build({"kind": "curve"}, {}, module=small())
    assert isinstance(generator.network, OwnNetwork)


def test_held_out_tasks_choose_the_sampler_unless_one_is_given(monkeypatch):
    asked = []

    def choose(method, family, **how):
        asked.append(how)
        return "ddim", method

    monkeypatch.setattr(fit, "choose_sampler", choose)
    tasks = OwnTasks(small(), *sides(tasks=20), shots=4)
    mcdi.fit(tasks, preparation=Preparation(epochs=4), settings=ONCE, seed=3)
    assert asked == [{"tasks": fit.VALIDATION, "seed": 3}]
    mcdi.fit(tasks, preparation=Preparation(epochs=4), settings={**ONCE, "sampling": {"steps": 2}})
    assert len(asked) == 1
