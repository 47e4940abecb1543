"""What is particular to the baselines: closed forms, fine-tuning, REPTILE, MAML."""

import math

import pytest
import torch
from torch import nn
from worlds import TUNING

from mcdi.errors import McdiError
from mcdi.methods import make_method
from mcdi.methods.baselines import finetune
from mcdi.methods.baselines.finetune import adapt
from mcdi.methods.baselines.maml import inner_steps
from mcdi.networks.pixels import PixelNet
from mcdi.tasks.episodes import FewShot
from mcdi.types import Examples


class TestClosedForms:
    def test_prototypes_equal_the_nearest_class_mean(self, worlds):
        world = worlds["gauss"]
        support, query = world.batch[:2]
        means = torch.stack([support.x[support.y == c].reshape(40, 2, 6).mean(1) for c in range(3)], 1)
        nearest = ((query.x[:, :, None] - means[:, None]) ** 2).sum(-1).argmin(-1)
        weights = world.weights(world.method("prototypes"))
        assert torch.equal(world.family.downstream.predict(weights, query.x).argmax(-1), nearest)

    @pytest.mark.parametrize(
        "name", ["prototypes", "linear-probe", "meta-baseline", "lda", "plda", "adaptive-plda", "logistic-regression"]
    )
    def test_refuse_whole_networks(self, worlds, name):
        with pytest.raises(McdiError, match="linear heads only"):
            worlds["sines"].fit(name)

    def test_a_probe_is_ridge_regression(self, worlds):
        """By the normal equations, with a bias that is not shrunk."""
        world = worlds["gauss"]
        method, (support, query) = world.method("linear-probe"), world.batch[:2]
        ridge = method.tuned["2"]
        assert ridge in method.grid
        logits = world.family.downstream.predict(world.weights(method), query.x)
        for b in range(5):
            x, y = support.x[b], torch.nn.functional.one_hot(support.y[b], 3).float()
            cx, cy = x - x.mean(0), y - y.mean(0)
            w = torch.linalg.solve(cx.T @ cx + 6 * ridge * torch.eye(6), cx.T @ cy)
            torch.testing.assert_close(logits[b], (query.x[b] - x.mean(0)) @ w + y.mean(0), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("way", [2, 3])
    def test_logistic_regression_is_at_the_minimum_of_its_loss(self, worlds, way):
        """For two classes scikit-learn has one row: both of ours have half of its penalty each."""
        world = worlds["gauss"]
        method, net, (support, *_) = world.method("logistic-regression"), world.family.downstream, world.batch
        keep = support.y[0] < way
        some = Examples(support.x[:4, keep], support.y[:4, keep])
        rows = method.rows(net, some, way, 0.3).double().requires_grad_()
        logits = some.x.double() @ rows[..., :-1].mT + rows[..., None, :, -1].mT.squeeze(-1)[:, None]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), some.y.flatten(), reduction="sum")
        penalty = rows[..., :-1].square().sum() / (2 * 0.3) * (2 if way == 2 else 1)
        (slope,) = torch.autograd.grad(loss + penalty, rows)
        assert float(slope.abs().max()) < 1e-2

    def test_meta_baseline_is_the_cosine_to_class_means(self, worlds):
        world = worlds["gauss"]
        method, (support, query) = world.method("meta-baseline"), world.batch[:2]
        means = torch.stack([support.x[support.y == c].reshape(40, 2, 6).mean(1) for c in range(3)], 1)
        cosines = torch.nn.functional.cosine_similarity(query.x[:, :, None], means[:, None], dim=-1)
        logits = world.family.downstream.predict(world.weights(method), query.x)
        torch.testing.assert_close(logits, method.tuned["2"] * cosines, rtol=1e-4, atol=1e-4)

    def test_tau_is_the_most_likely_one(self, worlds):
        world = worlds["gauss"]
        method, net = world.method("meta-baseline"), world.family.downstream
        tasks = world.family.sample("val", range(300), shots=2)
        at = {
            n: float(net.loss(method._weights(net, tasks.support, tasks.mask, n), tasks.query, tasks.mask).mean())
            for n in (1.0, 100.0)
        }
        assert method.tuned["2"] not in at and len(at) == 2
        best = method._weights(net, tasks.support, tasks.mask, method.tuned["2"])
        assert float(net.loss(best, tasks.query, tasks.mask).mean()) < min(at.values())

    def test_cosines_need_features_of_one_length(self, worlds):
        world = worlds["gauss"]
        net, (support, _, mask, _) = world.family.downstream, world.batch
        longer = Examples(support.x * torch.linspace(1, 2, support.x.shape[1])[:, None], support.y)
        with pytest.raises(McdiError, match="no cosines of features of several lengths"):
            world.method("meta-baseline").generate(net, longer, mask, seed=0)


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
        start = net.theta0(0, net.space.U)[None]
        assert torch.equal(method.generate(net, support, mask, seed=0), adapt(net, start, support, mask, 1, 0.1))

    def test_reptile_has_a_start_of_its_own(self, worlds):
        net, world = worlds["sines"].family.downstream, worlds["sines"]
        assert not torch.equal(world.method("reptile").initial(net, 1), world.method("adam").initial(net, 1))


class TestMaml:
    def test_steps_are_sgd(self, worlds):
        world = worlds["gauss"]
        net, (support, _, mask, _) = world.family.downstream, world.batch
        start = torch.randn(40, 3, 7, generator=torch.Generator().manual_seed(0))
        moved = inner_steps(net, start, torch.tensor(0.1), support, mask, 3, nn.Identity())
        head = nn.Linear(6, 3)
        head.load_state_dict({n: p[0] for n, p in net.space.unpack(start[:1]).items()})
        optimiser = torch.optim.SGD(head.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            nn.functional.cross_entropy(head(support.x[0]), support.y[0]).backward()
            optimiser.step()
        torch.testing.assert_close(moved[0], torch.cat([head.weight, head.bias[:, None]], 1).detach(), rtol=1e-4, atol=1e-5)

    def test_the_outer_gradient_goes_through_the_inner_loop(self, worlds):
        """Against finite differences, along one direction of the start and for the rate."""
        world = worlds["gauss"]
        net, (support, query, mask, _) = world.family.downstream, world.batch
        draws = torch.randn(2, 40, 3, 7, generator=torch.Generator().manual_seed(0))

        def outer(shift, rate):
            w = inner_steps(net, draws[0] + shift * draws[1], rate, support, mask, 3, nn.Identity())
            return net.loss(w, query, mask).mean()

        at = [torch.tensor(v, requires_grad=True) for v in (0.0, 0.7)]
        for place, grad in enumerate(torch.autograd.grad(outer(*at), at)):
            up, down = (float(outer(*(v + step * (n == place) for n, v in enumerate(at))).detach()) for step in (0.01, -0.01))
            assert abs(float(grad) - (up - down) / 0.02) < 2e-4

    def test_start_and_rate_are_learnt_and_steps_tuned(self, worlds):
        for family, shots in (("sines", "6"), ("gauss", "2")):
            world = worlds[family]
            method = world.method("maml")
            assert method.tuned[shots] in method.settings.test_steps
            net, (support, _, mask, _) = world.family.downstream, world.batch
            start = net.theta0(0, mask.shape[1]).expand(40, -1, -1)
            plain = inner_steps(net, start, torch.tensor(0.1), support, mask, method.tuned[shots], nn.Identity())
            assert world.score(world.weights(method)) > world.score(plain)
            assert float(method.meta.log_rate.detach()) != pytest.approx(math.log(0.1))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [({"training": {"meta": "reptile"}}, "leave training.meta"), ({"alpha": 0.0}, "must be positive")],
    )
    def test_invalid_settings_are_refused(self, changes, message):
        with pytest.raises(McdiError, match=message):
            make_method("maml", changes)
