"""Heads of Gaussian classes: densities by whole matrices, what training classes teach, and what a task says of its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcdi.errors import McdiError
from mcdi.methods import make_method
from mcdi.methods.baselines.discriminant import training_classes
from mcdi.networks.discriminant import Covariances, Space, adaptation, covariances, discriminant_space, predictive_rows
from mcdi.networks.linear_head import LinearHead
from mcdi.networks.support import class_means
from mcdi.tasks.episodes import FewShot
from mcdi.types import Examples


class TestDiscriminants:
    def test_lda_is_the_density_of_gaussians_of_one_covariance(self, worlds):
        """Logits less log N(x; c, S) are equal for all classes; S is measured here class by class."""
        world = worlds["gauss"]
        method, (support, query) = world.method("lda"), world.batch[:2]
        rest = world.family.examples["train"]
        rest = (rest - rest.mean(1, keepdim=True)).flatten(0, 1)
        measured = (method.axes * method.variances) @ method.axes.T
        assert (measured - rest.T @ rest / len(rest)).norm() < 0.1 * measured.norm()
        share = method.tuned["2"]
        mixed = (1 - share) * measured + share * measured.diagonal().mean() * torch.eye(6)
        means = torch.stack([support.x[support.y == c].reshape(40, 2, 6).mean(1) for c in range(3)], 1)
        density = torch.distributions.MultivariateNormal(means[:, None], mixed).log_prob(query.x[:, :, None])
        logits = world.family.downstream.predict(world.weights(method), query.x)
        torch.testing.assert_close(logits.log_softmax(-1), density.log_softmax(-1), rtol=1e-3, atol=1e-3)

    def test_lda_with_no_covariance_left_is_prototypes(self, worlds):
        world = worlds["gauss"]
        method, net, (support, query, mask, _) = world.method("lda"), world.family.downstream, world.batch
        by = [net.predict(m._weights(net, support, mask, 1.0), query.x) for m in (method, world.method("prototypes"))]
        assert torch.equal(*(logits.argmax(-1) for logits in by))

    def test_plda_is_the_density_of_an_example_given_those_of_its_class(self, worlds):
        """Logits less log N(x; m, S) are equal for all classes, with m and S by inverses of whole matrices."""
        world = worlds["gauss"]
        method, (support, query) = world.method("plda"), world.batch[:2]
        back = torch.linalg.inv(method.space.map)
        within, between = back.T @ back, back.T @ torch.diag(method.space.between) @ back
        means = torch.stack([support.x[support.y == c].reshape(40, 2, 6).mean(1) for c in range(3)], 1) - method.space.mean
        expected = means @ (between @ torch.linalg.inv(between + within / 2)).T + method.space.mean
        spread = within + torch.linalg.inv(torch.linalg.inv(between) + 2 * torch.linalg.inv(within))
        spread = (spread + spread.T) / 2
        density = torch.distributions.MultivariateNormal(expected[:, None], spread).log_prob(query.x[:, :, None])
        logits = method.tuned["2"] * world.family.downstream.predict(world.weights(method), query.x)
        torch.testing.assert_close(logits.log_softmax(-1), density.log_softmax(-1), rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("name", ["plda", "adaptive-plda"])
    def test_plda_is_sure_as_far_as_it_is_right(self, name):
        """Features whose noise is all the same within an example: the logits of Gaussians would be ten times too large."""
        g, copies = torch.Generator().manual_seed(0), 10
        draws = {
            split: (torch.randn(count, 1, 6, generator=g) + torch.randn(count, 30, 6, generator=g)).repeat(1, 1, copies)
            for split, count in (("train", 300), ("val", 60), ("test", 60))
        }
        family = FewShot("copies", LinearHead(6 * copies, 3), draws, way=3, shots=(1,), queries=10)
        method = make_method(name, {}).fit(family, None, seed=0)
        batch = family.sample("test", range(200), shots=1)
        probabilities = family.downstream.predict(
            method.generate(family.downstream, batch.support, batch.mask, seed=0), batch.query.x
        ).softmax(-1)
        right = (probabilities.argmax(-1) == batch.query.y).float().mean()
        assert abs(float(probabilities.amax(-1).mean() - right)) < 0.05 and method.tuned["1"] > 1

    def test_plda_knows_in_which_directions_classes_differ(self):
        """On Gaussian classes it is above prototypes and LDA with one example, and as good as with the true covariances."""
        g, size, way = torch.Generator().manual_seed(0), 12, 5
        between = torch.logspace(1, -2, size)
        draws = {
            split: between.sqrt() * torch.randn(count, 1, size, generator=g) + torch.randn(count, 30, size, generator=g)
            for split, count in (("train", 300), ("val", 60), ("test", 60))
        }
        family = FewShot("x", LinearHead(size, way), draws, way=way, shots=(1,), queries=10)
        batch = family.sample("test", range(400))
        scores = {}
        for name in ("prototypes", "lda", "plda"):
            method = make_method(name, {}).fit(family, None, seed=0)
            weights = method.generate(family.downstream, batch.support, batch.mask, seed=0)
            scores[name] = float(family.downstream.score(weights, batch.query, batch.mask).mean())
        method.space = Space(torch.eye(size), between, torch.zeros(size))
        weights = method.generate(family.downstream, batch.support, batch.mask, seed=0)
        best = float(family.downstream.score(weights, batch.query, batch.mask).mean())
        assert scores["plda"] > max(scores["prototypes"], scores["lda"]) + 0.02 and scores["plda"] > best - 0.01

    def test_adaptive_plda_adapts_the_space_of_plda(self, worlds):
        world = worlds["gauss"]
        plain, method = world.method("plda"), world.method("adaptive-plda")
        assert method.chosen == plain.chosen != {"within": 1.0, "between": 1.0}
        assert all(torch.equal(a, b) for a, b in zip(method.space, plain.space, strict=True))
        net, (support, _, mask, _) = world.family.downstream, world.batch
        rows = predictive_rows(method.space, support.x, support.y, 3, adapted=True)
        assert torch.equal(method.generate(net, support, mask, seed=0), rows / method.tuned["2"])
        assert not torch.allclose(rows, plain.generate(net, support, mask, seed=0))

    @pytest.mark.parametrize("name", ["plda", "adaptive-plda"])
    def test_covariances_are_those_of_all_training_examples(self, worlds, name):
        """Each class once, whatever tasks it is in; and any invertible map of the features changes no answer."""
        world = worlds["gauss"]
        x, net = world.family.examples["train"].double(), world.family.downstream
        found = covariances(training_classes(world.family, net))
        rest = (x - x.mean(1, keepdim=True)).flatten(0, 1)
        within = rest.T @ rest / (12 * 24)
        torch.testing.assert_close(found.within, within)
        torch.testing.assert_close(found.between, torch.cov(x.mean(1).T) - within / 25)
        torch.testing.assert_close(found.mean, x.mean((0, 1)))
        turn = torch.eye(6).double() + 0.5 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double()
        support, query, mask, _ = world.batch
        answers = []
        for by in (torch.eye(6).double(), turn):
            method = make_method(name, {})
            moved = Covariances(by.T @ found.within @ by, by.T @ found.between @ by, found.mean @ by)
            method.space = discriminant_space(moved, 0.0)
            seen, asked = (Examples(e.x @ by.float(), e.y) for e in (support, query))
            weights = method.generate(net, seen, mask, seed=0)
            answers.append(net.predict(weights, asked.x).log_softmax(-1))
        torch.testing.assert_close(*answers, rtol=1e-3, atol=1e-3)

    def test_classes_of_the_same_number_in_two_sets_are_two(self):
        """As families of text name them: a set, and numbers of classes in it."""
        x = torch.randn(2, 4, 20, 3, generator=torch.Generator().manual_seed(0)).double()  # (sets, classes, ...)

        class TwoSets:
            def columns(self, split, seeds):
                return {"set": torch.tensor(seeds).remainder(2), "classes": torch.tensor([[s % 4, (s + 1) % 4] for s in seeds])}

            def training_data(self, split, seeds):
                (seed,) = seeds
                chosen = x[seed % 2, [seed % 4, (seed + 1) % 4]]
                return Examples(chosen.flatten(0, 1)[None].float(), torch.arange(2).repeat_interleave(20)[None])

        found = covariances(training_classes(TwoSets(), LinearHead(3, 2)))
        rest = (x - x.mean(2, keepdim=True)).flatten(0, 2)
        torch.testing.assert_close(found.within, rest.T @ rest / (8 * 19), rtol=1e-5, atol=1e-6)

    def test_lda_needs_a_covariance(self):
        same = {split: torch.arange(9.0)[:, None, None].expand(9, 20, 4) for split in ("train", "val", "test")}
        family = FewShot("x", LinearHead(4, 3), same, way=3, shots=(2,), queries=5)
        for name in ("lda", "plda", "adaptive-plda"):
            with pytest.raises(McdiError, match="all equal"):
                make_method(name, {}).fit(family, None, seed=0)


SIZE = 24
SPACE = Space(torch.eye(SIZE), torch.logspace(0.5, -1, SIZE), torch.zeros(SIZE))


def drawn(tasks, way, shots, *, spread, off=0.0, seed=0):
    """Tasks of Gaussian classes, whose means are as SPACE says and whose examples have standard deviations `spread`."""
    g = torch.Generator().manual_seed(seed)
    means = SPACE.between.sqrt() * torch.randn(tasks, way, 1, SIZE, generator=g) + off
    x = means + spread * torch.randn(tasks, way, shots, SIZE, generator=g)
    return x.flatten(1, 2), torch.arange(way).repeat_interleave(shots).expand(tasks, -1)


def adapted(x, y, way, space=SPACE):
    z = (x - space.mean) @ space.map
    means, count = class_means(z, y, way)
    return adaptation(space, z, means, y, count)


def of_trace(spread):
    """Variances whose mean is 1."""
    return (spread / spread.square().mean().sqrt()).float()


class TestAdaptation:
    """Of the mean of all classes and the covariance within one to a task's own examples."""

    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 1000), size=st.integers(2, 6), way=st.integers(2, 4), shots=st.integers(1, 8))
    def test_rows_are_those_of_gaussians_of_the_adapted_covariance(self, seed, size, way, shots):
        """By inverses of whole matrices, with fewer examples than features and with more."""
        g = torch.Generator().manual_seed(seed)
        mapping = torch.randn(size, size, generator=g).double() + 2 * torch.eye(size)
        space = Space(mapping, torch.rand(size, generator=g).double() + 0.1, torch.randn(size, generator=g).double())
        y = torch.arange(way).repeat_interleave(shots)[None]
        x = torch.randn(1, way * shots, size, generator=g).double() * torch.logspace(1, -1, size) + 3
        query = torch.randn(7, size, generator=g).double() + 3
        rows = predictive_rows(space, x, y, way, adapted=True)[0]
        logits = query @ rows[:, :-1].T + rows[:, -1]
        centre, shrinkage, factors = (t[0] for t in adapted(x, y, way, space))
        z = (x - space.mean) @ mapping
        own = shrinkage * torch.eye(size) + factors.T @ factors
        b = torch.diag(space.between)
        means = class_means(z, y, way)[0][0] - centre
        expected = means @ (b @ torch.linalg.inv(b + shrinkage / shots * torch.eye(size))).T + centre
        spread = own + torch.linalg.inv(torch.linalg.inv(b) + shots / shrinkage * torch.eye(size))
        density = torch.distributions.MultivariateNormal(expected, (spread + spread.T) / 2)
        found = density.log_prob(((query - space.mean) @ mapping)[:, None])
        torch.testing.assert_close(logits.log_softmax(-1), found.log_softmax(-1), rtol=1e-6, atol=1e-6)

    def test_nothing_changes_where_tasks_are_as_in_training(self):
        x, y = drawn(400, 5, 5, spread=torch.ones(SIZE))
        centre, shrinkage, _ = adapted(x, y, 5)
        assert float(shrinkage.mean()) > 0.95
        off = x.reshape(400, 5, 5, SIZE).mean((1, 2))
        assert float(centre.square().sum() / off.square().sum()) < 0.2
        plain, own = (predictive_rows(SPACE, x, y, 5, adapted=on) for on in (False, True))
        assert float((plain - own).norm() / plain.norm()) < 0.2

    def test_what_training_leaves_is_no_reason(self):
        """Where shrinking has left the covariance within training classes uneven, as uneven tasks are nothing new."""
        spread = of_trace(torch.logspace(0.4, -0.4, SIZE))
        x, y = drawn(400, 5, 5, spread=spread)
        same = SPACE._replace(anisotropy=spread.pow(4).mean())
        plain, informed = (float(adapted(x, y, 5, space)[1].mean()) for space in (SPACE, same))
        assert informed > 0.95 > plain

    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    def test_what_training_leaves_is_that_of_its_examples(self, worlds, share):
        found = covariances(training_classes(worlds["gauss"].family, worlds["gauss"].family.downstream))
        space = discriminant_space(found, share)
        mapping = space.map.double()
        left = mapping.T @ found.within @ mapping
        measured = 6 * (left @ left).trace() / left.trace() ** 2
        torch.testing.assert_close(space.anisotropy.double(), measured, rtol=1e-4, atol=0)

    def test_one_example_a_class_says_nothing_of_its_covariance(self):
        x, y = drawn(10, 5, 1, spread=of_trace(torch.logspace(1, -1, SIZE)), off=5.0)
        centre, shrinkage, factors = adapted(x, y, 5)
        assert bool((shrinkage == 1).all()) and not factors.any() and float(centre.mean()) > 4

    def test_the_covariance_is_nearly_the_best_mixture(self):
        """In the Frobenius norm, of those of the identity and that of the examples."""
        spread = of_trace(torch.logspace(1, -1, SIZE))
        x, y = drawn(200, 5, 5, spread=spread)
        _, shrinkage, factors = adapted(x, y, 5)
        sample = factors.mT @ factors / (1 - shrinkage).clamp(min=1e-6)
        truth, identity = torch.diag(spread.square()), torch.eye(SIZE)

        def error(own):
            return float(((1 - own) * identity + own * sample - truth).square().sum((1, 2)).mean())

        grid = [error(own) for own in torch.linspace(0, 1, 21)]
        assert error(1 - shrinkage) < 1.1 * min(grid) < 0.9 * min(grid[0], grid[-1])

    @pytest.mark.parametrize(("way", "shots"), [(5, 5), (2, 12)])
    def test_the_anisotropy_is_estimated_without_bias(self, way, shots):
        """Over tasks, as Ledoit and Wolf's weight tells it."""
        spread = of_trace(torch.logspace(0.6, -0.6, SIZE))
        x, y = drawn(4000, way, shots, spread=spread)
        shrinkage, free = adapted(x, y, way).shrinkage.flatten(), way * (shots - 1)
        own = 1 - shrinkage
        anisotropy = (own * SIZE + free * shrinkage) / (free * shrinkage - own)
        assert float(anisotropy.mean()) == pytest.approx(float(spread.pow(4).mean()), rel=0.05)

    def test_other_kinds_of_features_are_told_apart_better(self):
        spread = 2 * of_trace(torch.logspace(1, -1, SIZE))[torch.randperm(SIZE, generator=torch.Generator().manual_seed(1))]
        x, y = drawn(300, 5, 25, spread=spread, off=3.0)
        shots = torch.arange(125).reshape(5, 25)
        support, query = shots[:, :5].flatten(), shots[:, 5:].flatten()
        scores = []
        for on in (False, True):
            rows = predictive_rows(SPACE, x[:, support], y[:, support], 5, adapted=on)
            logits = x[:, query] @ rows[..., :-1].mT + rows[:, None, :, -1]
            scores.append(float((logits.argmax(-1) == y[:, query]).float().mean()))
        assert scores[1] > scores[0] + 0.05

    def test_order_and_numbers_of_classes_do_not_matter(self):
        """Classes without examples included."""
        x, y = drawn(4, 3, 4, spread=of_trace(torch.logspace(1, -1, SIZE)), off=1.0)
        order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
        names = torch.tensor([4, 0, 2])
        found, other = adapted(x, y, 3), adapted(x[:, order], names[y[:, order]], 5)
        for a, b in zip(found, (other.centre, other.shrinkage, other.factors[:, order.argsort()]), strict=True):
            torch.testing.assert_close(a, b)
        rows, others = predictive_rows(SPACE, x, y, 3, adapted=True), predictive_rows(SPACE, x, 2 - y, 3, adapted=True)
        torch.testing.assert_close(rows, others.flip(1), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("x", [torch.zeros(1, 6, SIZE), torch.ones(1, 6, SIZE) * 1e-20])
    def test_examples_that_are_all_equal(self, x):
        rows = predictive_rows(SPACE, x, torch.arange(3).repeat_interleave(2)[None], 3, adapted=True)
        assert rows.isfinite().all()
