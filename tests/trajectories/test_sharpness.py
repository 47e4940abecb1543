"""Hessian spectra against known Hessians, and the bound of Theorem 2 on losses of known constants."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.trajectories.sharpness import convergence_bound, hessian_spectrum


def quadratic(hessian: Tensor):
    """1/2 w . H w of every task: hessian (N, P, P), w in two parameters of different shape."""

    def loss(params):
        w = torch.cat([params["a"].flatten(1), params["b"][:, None]], 1)
        return 0.5 * torch.einsum("np,npq,nq->n", w, hessian, w)

    n, size, _ = hessian.shape
    return loss, {"a": torch.ones(n, size - 1, 1, dtype=hessian.dtype), "b": torch.zeros(n, dtype=hessian.dtype)}


def with_eigenvalues(values: Tensor, seed: int = 0) -> Tensor:
    """(N, P) -> symmetric (N, P, P) in random orientations."""
    g = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(*values.shape, values.shape[1], generator=g, dtype=values.dtype)).Q
    return q @ torch.diag_embed(values) @ q.mT


def mlp(n: int = 3, dtype=torch.float32):
    """n tasks of a 2-5-3 perceptron with cross-entropy, away from any minimum: the Hessians are indefinite."""
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3))
    g = torch.Generator().manual_seed(0)
    params = {k: torch.randn(n, *p.shape, generator=g, dtype=dtype) for k, p in net.named_parameters()}
    x, y = torch.randn(n, 7, 2, generator=g, dtype=dtype), torch.randint(0, 3, (n, 7), generator=g)

    def one(p, x, y):
        return F.cross_entropy(torch.func.functional_call(net, p, (x,)), y)

    return params, x, y, one, lambda p, x=x, y=y: torch.func.vmap(one)(p, x, y)


class TestSpectrum:
    @settings(max_examples=40, deadline=None)
    @given(st.integers(1, 5), st.integers(2, 9), st.integers(0, 2**31), st.booleans())
    def test_any_symmetric_matrices(self, n, size, seed, double):
        g = torch.Generator().manual_seed(seed)
        h = torch.randn(n, size, size, generator=g, dtype=torch.float64)
        h = (h + h.mT).to(torch.float64 if double else torch.float32)
        largest = hessian_spectrum(*quadratic(h), probes=0).largest
        true = torch.linalg.eigvalsh(h.double())
        assert largest.dtype == h.dtype
        torch.testing.assert_close(largest.double(), true[:, -1], rtol=1e-4, atol=float(true.abs().max()) * 1e-5)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_two_hundred_numbers_in_twenty_products(self, dtype):
        values = torch.rand(4, 200, generator=torch.Generator().manual_seed(0), dtype=dtype)
        values[:, 0] = torch.tensor([1.5, 3, 10, 100])
        largest = hessian_spectrum(*quadratic(with_eigenvalues(values)), iterations=20, probes=0).largest
        torch.testing.assert_close(largest, values[:, 0], rtol=1e-4, atol=0)

    def test_lanczos_approaches_from_below(self):
        h = with_eigenvalues(torch.linspace(0, 1, 100, dtype=torch.float64)[None])
        values = [float(hessian_spectrum(*quadratic(h), iterations=i, probes=0).largest) for i in (1, 2, 5, 10, 20)]
        assert values == sorted(values) and 0.9 < values[-1] <= 1 and values[0] < 0.6

    def test_largest_is_algebraic_also_where_negative_curvature_dominates(self):
        values = torch.tensor([[-100.0, -3, 0.5, 0.1], [-1, -2, -3, -4], [5, -5, 0, 1]])
        largest = hessian_spectrum(*quadratic(with_eigenvalues(values)), probes=0).largest
        torch.testing.assert_close(largest, torch.tensor([0.5, -1.0, 5.0]), rtol=1e-4, atol=2e-5)

    def test_orthogonality_survives_float32(self):
        """A direction 1000 times as negative: a single pass of orthogonalisation gives 18 instead of 1.0."""
        values = torch.rand(1, 60, generator=torch.Generator().manual_seed(0)) * 0.99
        values[0, :2] = torch.tensor([-1000, 1.0])
        largest = hessian_spectrum(*quadratic(with_eigenvalues(values)), iterations=60, probes=0).largest
        assert float(largest[0]) == pytest.approx(1, rel=1e-3)

    def test_breakdown_in_one_task_does_not_disturb_the_others(self):
        """Rank 1, a multiple of the identity, zero, and a full one, in a batch of 30 numbers and 20 iterations."""
        values = torch.zeros(4, 30)
        values[0, 3], values[1] = 7.0, -2.0
        values[3] = torch.linspace(-1, 1, 30)
        values[3, 0] = 4.0
        for iterations in (2, 20):
            largest = hessian_spectrum(*quadratic(with_eigenvalues(values)), iterations=iterations, probes=0).largest
            torch.testing.assert_close(largest[:3], torch.tensor([7.0, -2, 0]), rtol=1e-4, atol=1e-5)
        assert float(largest[3]) == pytest.approx(4, rel=1e-4)

    def test_fewer_parameters_than_iterations(self):
        spectrum = hessian_spectrum(lambda p: 1.5 * p["w"] ** 2, {"w": torch.tensor([1.0, -2.0])}, iterations=50, probes=1)
        torch.testing.assert_close(spectrum.largest, torch.tensor([3.0, 3.0]))
        torch.testing.assert_close(spectrum.trace, torch.tensor([3.0, 3.0]))

    def test_a_linear_loss_has_no_curvature(self):
        spectrum = hessian_spectrum(lambda p: p["w"].sum(1), {"w": torch.ones(2, 3), "unused": torch.ones(2)})
        assert spectrum.largest.tolist() == spectrum.trace.tolist() == [0, 0]

    def test_the_trace_is_exact_for_diagonals_and_unbiased_otherwise(self):
        g = torch.Generator().manual_seed(0)
        values = torch.randn(3, 6, generator=g, dtype=torch.float64)
        one = hessian_spectrum(*quadratic(torch.diag_embed(values)), iterations=1, probes=1, generator=g).trace
        torch.testing.assert_close(one, values.sum(1))
        h = with_eigenvalues(values)
        many = hessian_spectrum(*quadratic(h), iterations=1, probes=2000, generator=g).trace
        off = h.square().sum((1, 2)) - h.diagonal(dim1=1, dim2=2).square().sum(1)
        assert bool(((many - values.sum(1)).abs() < 4 * (2 * off / 2000).sqrt()).all())  # the variance of the docstring
        assert bool(hessian_spectrum(*quadratic(h), probes=0).trace.isnan().all())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_network_against_its_full_hessians(self, dtype):
        params, x, y, one, loss = mlp(dtype=dtype)
        spectrum = hessian_spectrum(loss, params, iterations=40, probes=400)
        shapes = {k: p.shape[1:] for k, p in params.items()}
        for n in range(3):
            flat = torch.cat([p[n].flatten() for p in params.values()])

            def on_flat(w, n=n):
                parts = w.split([s.numel() for s in shapes.values()])
                return one({k: part.reshape(s) for (k, s), part in zip(shapes.items(), parts, strict=True)}, x[n], y[n])

            h = torch.func.hessian(on_flat)(flat).double()
            values = torch.linalg.eigvalsh(h)
            assert float(values[0]) < -1e-3  # no minimum: both signs occur
            assert float(spectrum.largest[n]) == pytest.approx(float(values[-1]), rel=1e-4)
            spread = float((2 * (h.square().sum() - h.diagonal().square().sum()) / 400).sqrt())
            assert abs(float(spectrum.trace[n]) - float(values.sum())) < 4 * spread

    def test_a_single_task_is_the_same_as_in_a_batch(self):
        params, x, y, _, loss = mlp()
        g = torch.Generator().manual_seed(3)
        together = hessian_spectrum(loss, params, iterations=6, generator=g)
        for n in range(3):
            rows = slice(n, n + 1)
            single = hessian_spectrum(
                lambda p, rows=rows: loss(p, x[rows], y[rows]),
                {k: p[rows] for k, p in params.items()},
                iterations=6,
                generator=g.manual_seed(3),
            )
            torch.testing.assert_close(single.largest, together.largest[rows], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(single.trace, together.trace[rows], rtol=1e-5, atol=1e-5)

    def test_it_leaves_the_parameters_and_works_without_gradients(self):
        params, *_, loss = mlp()
        with torch.no_grad():
            without = hessian_spectrum(loss, params)
        assert all(not p.requires_grad and p.grad is None for p in params.values())
        torch.testing.assert_close(without.largest, hessian_spectrum(loss, params).largest, rtol=0, atol=0)  # default seed

    def test_errors(self):
        params = {"w": torch.ones(2, 3)}
        good = lambda p: p["w"].square().sum(1)
        for bad in ({"iterations": 0}, {"probes": -1}):
            with pytest.raises(McdiError, match="must be at least"):
                hessian_spectrum(good, params, **bad)
        for loss in (lambda p: good(p).sum(), lambda p: good(p)[:, None], lambda p: good(p)[:1]):
            with pytest.raises(McdiError, match=r"a loss \(N,\)"):
                hessian_spectrum(loss, params)
        with pytest.raises(McdiError, match=r"a loss \(N,\)"):
            hessian_spectrum(good, {**params, "b": torch.ones(3)})
        with pytest.raises(McdiError, match="losses of 1 of 2 tasks are not finite, the first is task 1"):
            hessian_spectrum(good, {"w": torch.tensor([[1.0], [float("nan")]])})
        with pytest.raises(McdiError, match="second derivatives of 2 of 2"):
            hessian_spectrum(lambda p: (p["w"] - 1).abs().pow(1.5).sum(1), params)
        with pytest.raises(McdiError, match="does not depend"):
            hessian_spectrum(lambda p: torch.ones(2), params)


def descend(gradient, theta: Tensor, rate: float, steps: int) -> Tensor:
    for _ in range(steps):
        theta = theta - rate * gradient(theta)
    return theta


MU, SMOOTH = 0.1, 2.0
CURVATURE = torch.tensor([MU, 0.5, SMOOTH], dtype=torch.float64)  # a diagonal quadratic: L* = 0 at theta* = 0
SLOWEST = (1 - (1 - MU / SMOOTH) ** 0.5) / MU  # the smallest rate at which the squared distance falls by 1 - mu / l


def value(theta: Tensor) -> Tensor:
    return 0.5 * (CURVATURE * theta.square()).sum(-1)


class TestBound:
    def bound(
        self, theta0: Tensor, epochs: int, error: Tensor, *, largest: float = SMOOTH, smoothness: float = SMOOTH
    ) -> float:
        return float(convergence_bound(torch.tensor(largest), value(theta0), MU, smoothness, epochs, error.norm()))

    @settings(max_examples=60, deadline=None)
    @given(
        st.integers(0, 80), st.floats(0, 2), st.sampled_from([SLOWEST, 1 / SMOOTH, 2 / (SMOOTH + MU)]), st.integers(0, 2**31)
    )
    def test_it_holds_on_quadratics(self, epochs, size, rate, seed):
        theta0, error = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        error = size * error
        reached = value(descend(lambda t: CURVATURE * t, theta0, rate, epochs) + error)
        assert float(reached) <= self.bound(theta0, epochs, error) * (1 + 1e-9)
        if rate == 1 / SMOOTH:  # the exponent is twice as good there
            assert float(reached) <= self.bound(theta0, 2 * epochs, error) * (1 + 1e-9)

    def test_it_breaks_with_a_smaller_lambda(self):
        """After many epochs the generator's error is all that is left; along the sharpest direction the bound is then tight."""
        theta0, error = torch.tensor([[1.0, 1, 1], [0, 0, 0.3]], dtype=torch.float64)
        reached = float(value(descend(lambda t: CURVATURE * t, theta0, 1 / SMOOTH, 800) + error))
        assert reached == pytest.approx(self.bound(theta0, 800, error), rel=1e-6)
        assert reached > self.bound(theta0, 800, error, largest=0.99 * SMOOTH)

    def test_it_breaks_with_a_faster_rate(self):
        """Along the flattest direction the squared distance falls by just 1 - mu / l: 1.1 mu / l would be too good."""
        theta0, none = torch.tensor([[1.0, 0, 0], [0, 0, 0]], dtype=torch.float64)
        reached = float(value(descend(lambda t: CURVATURE * t, theta0, SLOWEST, 700)))
        assert reached <= self.bound(theta0, 700, none)
        assert reached > self.bound(theta0, 700, none, smoothness=SMOOTH / 1.1)
        at_l = float(value(descend(lambda t: CURVATURE * t, theta0, 1 / SMOOTH, 350)))  # exponent 2 M, and no more
        assert self.bound(theta0, round(2.2 * 350), none) < at_l <= self.bound(theta0, 700, none)

    def test_it_needs_the_cross_term(self):
        """An error along what the optimiser has not reached: a sum of squares does not bound the square of the sum."""
        theta0, error = torch.tensor([[0, 0, 1.0], [0, 0, 0.5]], dtype=torch.float64)
        reached = float(value(theta0 + error))  # M = 0, and a loss as curved everywhere as here
        psi = float(value(theta0))
        assert reached > SMOOTH / 2 * (0.5**2 + 2 * psi / SMOOTH)
        full = convergence_bound(torch.tensor(SMOOTH), value(theta0), SMOOTH, SMOOTH, 0, 0.5)
        assert reached == pytest.approx(float(full))

    @pytest.mark.parametrize("size", [0.0, 0.3])
    @pytest.mark.parametrize("epochs", [0, 5, 50, 300])
    def test_it_holds_on_ridge_logistic_regression(self, size, epochs):
        g = torch.Generator().manual_seed(0)
        x = torch.randn(40, 4, generator=g, dtype=torch.float64)
        y = (x[:, 0] + 0.5 * torch.randn(40, generator=g, dtype=torch.float64) > 0).double()
        ridge = 0.05
        smooth = ridge + float(torch.linalg.eigvalsh(x.T @ x / 40)[-1]) / 4

        def loss(params):
            w = params["w"]
            logits = w @ x.T
            each = F.binary_cross_entropy_with_logits(logits, y.expand_as(logits), reduction="none").mean(-1)
            return each + ridge / 2 * w.square().sum(-1)

        def gradient(w):
            return x.T @ (torch.sigmoid(x @ w) - y) / 40 + ridge * w

        theta0 = 3 * torch.randn(4, generator=g, dtype=torch.float64)
        best = descend(gradient, theta0, 1 / smooth, 2000)
        assert float(gradient(best).norm()) < 1e-12
        error = torch.randn(4, generator=g, dtype=torch.float64)
        error = size * error / error.norm()
        generated = descend(gradient, theta0, 1 / smooth, epochs) + error
        start, end, optimum = (loss({"w": w[None]}) for w in (theta0, generated, best))
        # lambda on the segment from theta* to theta_hat: its points are the stacked tasks of one call.
        points = best + torch.linspace(0, 1, 33, dtype=torch.float64)[:, None] * (generated - best)
        largest = hessian_spectrum(loss, {"w": points}, probes=0).largest.max()
        assert ridge < float(largest) <= smooth
        bound = convergence_bound(largest, start - optimum, ridge, smooth, epochs, size)
        sharper = convergence_bound(largest, start - optimum, ridge, smooth, 2 * epochs, size)
        assert 0 <= float(end - optimum) <= float(sharper) <= float(bound)

    def test_errors(self):
        one = torch.ones(2)
        for mu, smooth in ((0.0, 1.0), (-1.0, 1.0), (2.0, 1.0)):
            with pytest.raises(McdiError, match="0 < mu <= smoothness"):
                convergence_bound(one, one, mu, smooth, 3)
        for gap, epochs, error in ((-one, 3, 0.0), (one, -1, 0.0), (one, 3, -0.1), (one, 3, -one)):
            with pytest.raises(McdiError, match="not be negative"):
                convergence_bound(one, gap, 0.5, 1.0, epochs, error)
