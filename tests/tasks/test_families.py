"""Families are pure, splits share nothing, and networks compute what they say."""

import inspect
import math

import pytest
import torch

from mcdi.errors import McdiError
from mcdi.networks import batched
from mcdi.networks.backbones.embedder import Embedder
from mcdi.networks.backbones.vision import Conv4, NoBackbone, ResNet8
from mcdi.networks.conv_net import ConvNet
from mcdi.networks.curve import Curve
from mcdi.networks.linear_head import LinearHead
from mcdi.networks.pixels import PixelNet
from mcdi.networks.registry import build
from mcdi.networks.support import class_means, least_squares
from mcdi.tasks.episodes import FewShot
from mcdi.types import SPLITS, Examples
from mcdi.utils.random import uniform


def few(way=3, shots=(1, 4), queries=5, network=None):
    """Every example is its own number: split * 10000 + class * 100 + example, so that tasks can be read off."""
    number = torch.arange(10)[:, None] * 100 + torch.arange(12)
    splits = {s: (number + 10000 * n)[..., None].expand(-1, -1, 4).float() for n, s in enumerate(SPLITS)}
    return FewShot("numbers", network or LinearHead(4, way), splits, way=way, shots=shots, queries=queries)


@pytest.fixture(params=["sines", "few"])
def family(request, sines):
    return sines if request.param == "sines" else few()


class TestFamilies:
    def test_a_task_is_the_same_in_every_batch_and_order(self, family):
        seeds = [7, 3, 3, 123456789012, 0]
        whole = family.sample("train", seeds, draw=2)
        assert whole.seeds.tolist() == seeds
        for b, seed in enumerate(seeds):
            one = family.sample("train", [seed], draw=2)
            for part, of in zip((*one.support, *one.query, one.mask), (*whole.support, *whole.query, whole.mask), strict=True):
                assert torch.equal(part[0], of[b])
            assert torch.equal(family.training_data("train", [seed]).x[0], family.training_data("train", seeds).x[b])

    def test_splits_seeds_and_draws_differ(self, family):
        batches = [family.sample(split, [seed], draw=draw).support.x for split in SPLITS for seed in (0, 1) for draw in (0, 1)]
        assert len({tuple(x.flatten().tolist()) for x in batches}) == len(batches)

    def test_training_data_fits_the_network(self, family):
        data, tasks = family.training_data("val", range(4)), family.sample("val", range(4))
        net = family.downstream
        assert data.x.shape[:2] == data.y.shape and len(data.y) == 4
        weights = net.theta0(0, tasks.mask.shape[1]).expand(4, -1, -1)
        assert net.loss(weights, data, tasks.mask).shape == net.score(weights, tasks.query, tasks.mask).shape == (4,)


class TestFewShot:
    def test_another_draw_keeps_the_classes_and_support_never_meets_query(self):
        family = few()
        for seed in range(20):
            (classes,) = family.classes("test", [seed]).tolist()
            assert len(set(classes)) == 3
            seen = set()
            for draw in range(4):
                for shots in (1, 4):
                    (sx, sy), (qx, qy), mask, _ = family.sample("test", [seed], draw=draw, shots=shots)
                    assert sx.shape == (1, 3 * shots, 4) and qx.shape == (1, 15, 4) and mask.all() and mask.shape == (1, 3)
                    support, query = sx[0, :, 0].tolist(), qx[0, :, 0].tolist()
                    assert len({*support, *query}) == 3 * (shots + 5)
                    for x, y in ((support, sy), (query, qy)):
                        assert [int(v) // 100 % 100 for v in x] == [classes[c] for c in y[0].tolist()]
                        assert {int(v) // 10000 for v in x} == {2}
                    seen.add(tuple(support))
            assert len(seen) == 8

    def test_training_data_are_all_examples_of_the_classes(self):
        data = few().training_data("train", [5])
        (classes,) = few().classes("train", [5]).tolist()
        assert sorted(data.x[0, :, 0].tolist()) == sorted(100.0 * c + m for c in classes for m in range(12))
        assert data.y[0].bincount().tolist() == [12, 12, 12]

    def test_every_class_is_met(self):
        assert sorted(set(few().classes("train", range(200)).flatten().tolist())) == list(range(10))

    def test_what_does_not_fit(self):
        with pytest.raises(McdiError, match="way = 11 is more than the 10 classes of the train split"):
            few(way=11)
        with pytest.raises(McdiError, match="8 shots and 5 queries need 13 examples a class; the train split has 12"):
            few(shots=(1, 8))
        with pytest.raises(McdiError, match="9 shots"):
            few().sample("train", [0], shots=9)
        with pytest.raises(McdiError, match="unknown split 'dev': numbers has train, val, test"):
            few().sample("dev", [0])


def test_uniform_is_uniform_and_decided_by_its_arguments():
    u = uniform("train", range(2000), 3, count=50)
    assert u.min() >= 0 and u.max() < 1 and len(set(u.flatten().tolist())) == u.size
    assert abs(u.mean() - 0.5) < 0.005 and abs(u.var() - 1 / 12) < 0.002
    tenths = torch.histc(torch.from_numpy(u), 10, 0, 1)
    assert bool(((tenths - 10000).abs() < 500).all())
    assert torch.corrcoef(torch.from_numpy(u).T).fill_diagonal_(0).abs().max() < 0.12
    assert (uniform("train", [5, 9], 3, count=50) == u[[5, 9]]).all()
    assert (uniform("train", [5], 3, count=7) == u[5, :7]).all()
    for other in (uniform("val", [5], 3, count=50), uniform("train", [5], 4, count=50), uniform("train", [5], 3, 0, count=50)):
        assert not (other == u[5]).any()


class TestNetworks:
    def test_loss_and_score_by_hand(self):
        net = LinearHead(1, 2)
        weights = torch.tensor([[[1.0, 0.0], [-1.0, 0.5], [9.0, 9.0]]])  # rows: weight, bias; the third class is not there
        data = Examples(torch.tensor([[[1.0], [-2.0]]]), torch.tensor([[0, 0]]))
        mask = torch.tensor([[True, True, False]])
        logits = [(1.0, -0.5), (-2.0, 2.5)]
        expected = sum(math.log(math.exp(a) + math.exp(b)) - a for a, b in logits) / 2
        assert float(net.loss(weights, data, mask)) == pytest.approx(expected)
        assert float(net.score(weights, data, mask)) == 0.5
        curve = Curve(hidden=1)  # w1, b1, w2, b2
        weights = curve.space.pack({n: torch.zeros(1, *p.shape) for n, p in curve.module.named_parameters()})
        data = Examples(torch.tensor([[[0.0], [1.0]]]), torch.tensor([[1.0, 3.0]]))
        assert float(curve.loss(weights, data, mask)) == pytest.approx(5.0) and float(curve.score(weights, data, mask)) == 0
        weights = curve.space.pack({**curve.space.unpack(weights), "2.bias": torch.tensor([[2.5]])})
        assert float(curve.loss(weights, data, mask)) == pytest.approx((1.5**2 + 0.5**2) / 2)

    def test_linear_head_computes_what_its_module_computes(self):
        net = LinearHead(6, 4)
        weights, x = torch.randn(3, 4, 7), torch.randn(3, 9, 6)
        torch.testing.assert_close(net.predict(weights, x), batched.apply(net.module, net.space.unpack(weights), x))
        assert len(set(map(tuple, net.theta0(0, 5).tolist()))) == 1 and not torch.equal(net.theta0(0, 1), net.theta0(1, 1))

    def test_condition_of_a_head(self):
        support = Examples(torch.tensor([[[1.0, 0.0], [3.0, 2.0], [0.0, 4.0]]]), torch.tensor([[0, 0, 1]]))
        got = LinearHead(2, 2).condition(support, 2)
        log2 = math.log(2)
        rows = least_squares(support.x, support.y, 2)
        expected = [[2.0, 1, 1, 0.5, *(rows[0, 0] / 2).tolist(), 2.5, log2], [0.0, 4, 0, 4, 0, 0, 0, 8, 0]]
        torch.testing.assert_close(got, torch.tensor([expected]))
        assert got.shape[-1] == LinearHead(2, 2).condition_size
        mean, count = class_means(support.x, support.y, 3)
        assert count.tolist() == [[2, 1, 0]] and mean[0, 2].tolist() == [0, 0]  # no example, no NaN

    def test_least_squares_rows_are_the_ridge_regression_of_the_labels(self):
        x, labels = torch.randn(3, 12, 7, generator=torch.Generator().manual_seed(0)), torch.arange(4).repeat(3, 3)
        rows = least_squares(x, labels, 4, ridge=0.5)
        weights, bias = (rows[..., :-1] / 7).requires_grad_(), rows[..., -1].clone().requires_grad_()
        wrong = torch.nn.functional.one_hot(labels, 4) - x @ weights.transpose(1, 2) - bias[:, None]
        # The normal equations: the gradient of the penalised squared error is zero.
        loss = wrong.square().sum() + 0.5 * 7 * weights.square().sum()
        for gradient in torch.autograd.grad(loss, (weights, bias)):
            torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-4, rtol=0)
        order = torch.tensor([2, 0, 3, 1])
        swapped = least_squares(x, order.argsort()[labels], 4, ridge=0.5)
        torch.testing.assert_close(swapped, rows[:, order])

    def test_pixel_net(self):
        embedder = Embedder(Conv4())
        net = PixelNet(64, 3, embedder)
        images = torch.randint(0, 256, (2, 6, 1, 28, 28), dtype=torch.uint8)
        x = net.embed(images)
        assert x.shape == (2, 6, 196 + 64)
        assert float(x[0, 0, 0]) == pytest.approx(float(images[0, 0, 0, :2, :2].float().mean()) / 255)
        support = Examples(x, torch.arange(3).repeat(2, 2))
        units = net.space.U
        assert (units, net.space.D) == (16 + 3, 196 + 1)  # hidden units and classes; weights and a bias
        cond = net.condition(support, units)
        assert cond.shape == (2, units, net.condition_size)
        weights = net.theta0(0, units).expand(2, -1, -1)
        assert net.predict(weights, x).shape == (2, 6, 3)
        assert net.loss(weights, support, torch.ones(2, units, dtype=torch.bool)).shape == (2,)
        with pytest.raises(McdiError, match="needs its image backbone"):
            PixelNet(64, 3).embed(images)

    def test_curve_condition_follows_the_points(self):
        net = Curve()
        support = Examples(torch.tensor([[[0.0]]]), torch.tensor([[2.0]]))
        cond = net.condition(support, 1)
        assert cond.shape == (1, 1, 48) and cond[0, 0, :24].argmax() in (11, 12)
        assert bool(torch.isfinite(net.condition(Examples(torch.zeros(1, 0, 1), torch.zeros(1, 0)), 1)).all())

    @pytest.mark.parametrize(
        "make",
        [
            Curve,
            lambda: LinearHead(6, 4),
            lambda: LinearHead(128, 4, Embedder(ResNet8(), 32)),
            lambda: LinearHead(64, 4, Embedder(Conv4(3), 20)),
            lambda: PixelNet(64, 3, Embedder(Conv4()), hidden=5, head="ridge"),
            lambda: ConvNet(0, 3, Embedder(NoBackbone(1), 28), filters=4, head="prototypes"),
        ],
    )
    def test_build_round_trip(self, make):
        net = make()
        # What a constructor takes and a file does not hold, a loaded network has lost; no embedding is not written.
        given = set(inspect.signature(type(net).__init__).parameters) - {"self", "embedder"}
        assert given - set(net.config()) <= {"embedding"}
        again = build(net.config(), net.state())
        assert again.config() == net.config() and again.space.config() == net.space.config()
        assert all(torch.equal(again.state()[n], t) for n, t in net.state().items())
        if net.embedder is not None:
            images = torch.randint(0, 256, (2, 5, *again.embedder.shape), dtype=torch.uint8)
            assert torch.equal(again.embed(images), net.embed(images))

    def test_build_refuses_the_unknown(self):
        with pytest.raises(
            McdiError, match="unknown network 'resnet': choose linear-head, film-head, pixel-net, conv-net, curve"
        ):
            build({"kind": "resnet"}, {})
        with pytest.raises(McdiError, match="unknown backbone 'vit': this version knows conv4, resnet8"):
            build({"kind": "linear-head", "embedder": {"backbone": "vit"}}, {})
