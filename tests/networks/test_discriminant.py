"""Features under the metric of Gaussian classes."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcdi.errors import McdiError
from mcdi.methods import make_method
from mcdi.methods.baselines.discriminant import packed, unpacked
from mcdi.networks.backbones.embedder import Embedder, cl2n, compute_features
from mcdi.networks.backbones.vision import Conv4
from mcdi.networks.discriminant import Covariances, Space, covariances, discriminant_space, metric_of, shrunk
from mcdi.networks.linear_head import LinearHead
from mcdi.tasks.episodes import FewShot
from mcdi.tasks.images.class_metric import choose_metric


def classes(count: int, size: int, between: torch.Tensor, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return between.sqrt() * torch.randn(count, 1, size, generator=g) + torch.randn(count, 30, size, generator=g)


def spaced(found: Covariances, within: float, between: float) -> Space:
    space = discriminant_space(found, within)
    return space._replace(between=shrunk(space.between, between))


class TestMetric:
    @settings(max_examples=20, deadline=None)
    @given(seed=st.integers(0, 1000), size=st.integers(2, 8))
    def test_inner_products_are_those_of_the_head_of_one_example(self, seed, size):
        """Up to a factor: of every example and every query, as matrices."""
        g = torch.Generator().manual_seed(seed)
        mapping = torch.randn(size, size, generator=g) + 2 * torch.eye(size)
        space = Space(mapping, torch.rand(size, generator=g) + 0.01, torch.randn(size, generator=g))
        metric = metric_of(space, size)
        root = (torch.eye(size) + metric.axes * metric.gains @ metric.axes.T).double()
        b = space.between.double()
        inner = mapping.double() * (b / (b + 1) / (1 + b / (1 + b))) @ mapping.double().T
        factor = inner.trace() / (root @ root).trace()
        torch.testing.assert_close(factor * root @ root, inner, rtol=1e-3, atol=1e-4 * float(inner.abs().max()))

    def test_few_axes_are_enough(self):
        """Where classes differ along three directions, three axes are all that there is; examples are seen from the mean."""
        turn, _ = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))
        space = Space(turn, torch.tensor([30.0, 20, 10] + [0.1] * 29), torch.linspace(-1, 1, 32))
        x = torch.randn(50, 32, generator=torch.Generator().manual_seed(1))
        some, every = metric_of(space, 3), metric_of(space, 32)
        torch.testing.assert_close(some(x), every(x), rtol=1e-3, atol=1e-3)
        assert not torch.allclose(metric_of(space, 2)(x), every(x), atol=0.1)
        root = torch.eye(32) + every.axes * every.gains @ every.axes.T
        along = (x - space.mean) @ root
        torch.testing.assert_close(every(x), along / along.norm(dim=-1, keepdim=True) * 32**0.5, rtol=1e-3, atol=1e-3)
        assert metric_of(space, 100).axes.shape == (32, 32)

    def test_nearest_means_are_better_under_it(self):
        """Where features vary within a class mostly along directions that tell nothing."""
        widths = torch.logspace(0, 1.5, 24)
        made = (classes(n, 24, torch.full((24,), 0.7), seed) for seed, n in enumerate((200, 60, 60)))
        train, val, test = (x * widths for x in made)
        metric = choose_metric(train, val, 24, way=5, shots=(1,), queries=10)
        scores = []
        for x in (test, metric(test)):
            family = FewShot("x", LinearHead(24, 5), {"test": x}, way=5, shots=(1,), queries=10)
            batch = family.sample("test", range(300))
            weights = make_method("prototypes", {}).generate(family.downstream, batch.support, batch.mask, seed=0)
            scores.append(float(family.downstream.score(weights, batch.query, batch.mask).mean()))
        assert scores[1] > scores[0] + 0.05

    def test_an_embedder_keeps_it(self):
        torch.manual_seed(0)
        one = Embedder(Conv4(), 16, metric_axes=5)
        images = torch.randint(0, 256, (12, 20, 1, 16, 16), dtype=torch.uint8)
        plain = one.fit(compute_features(one.backbone, images))
        one.set_metric(metric_of(spaced(covariances(plain), 0.7, 0.9), 5))
        assert one.metric is not None
        torch.testing.assert_close(one(images), one.metric(cl2n(compute_features(one.backbone, images), one.mean)))
        other = Embedder.from_config(json.loads(json.dumps(one.config())))
        other.restore(one.saved())
        assert torch.equal(other(images), one(images)) and not torch.allclose(one(images), plain)


def test_covariances_that_are_none() -> None:
    for x, said in ((classes(1, 4, torch.ones(4)), "fewer than two training classes"), (torch.ones(3, 5, 4), "all equal")):
        with pytest.raises(McdiError, match=said):
            covariances(x)


@pytest.mark.parametrize("size", [1e-20, 1e-6, 1.0, 3e5, 1e30])
def test_two_bytes_a_number_are_enough_at_any_scale(size: float) -> None:
    x = torch.randn(20, 20, generator=torch.Generator().manual_seed(0)) * size
    once = unpacked(*packed(x))
    torch.testing.assert_close(once, x, rtol=2**-11, atol=2**-24 * 4 * size)
    assert torch.equal(unpacked(*packed(once)), once)
