"""The mathematics, against identities and oracles."""

import copy
import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcdi import core
from mcdi.errors import McdiError
from mcdi.methods.meta_training import OuterStep

CASES = [("cosine", 20, 3), ("cosine", 20, 1), ("linear", 20, 3), ("constant", 24, 4), ("cosine", 17, 5), ("linear", 50, 7)]


def make(kind: str, T: int, k: int) -> core.Schedule:
    return core.make_schedule(kind, T, k, 2e-3, max_signal=1.0)


def ideal(theta: torch.Tensor, i: int, s: core.Schedule):
    """f* of chain i, and eps recovered from x: what a denoiser that knows theta_{i d} answers."""

    def f(x, t):
        local, bar = s.factor(x, t, i if isinstance(t, int) else torch.full_like(t, i)), s.factor(x, t)
        eps = (x - local**0.5 * theta) / (1 - local) ** 0.5
        return ((1 - bar) / (1 - local)) ** 0.5 * eps

    return f


@pytest.mark.parametrize(("kind", "T", "k"), CASES)
def test_schedules_are_monotone_and_bounded(kind, T, k):
    s = make(kind, T, k)
    bar = s.bar(torch.arange(T + 1))
    assert bool((bar[1:] > bar[:-1]).all()) and bar[-1] == 1 and bar[0] == pytest.approx(2e-3, rel=1e-3)
    assert s.ends.tolist() == [round(i * T / k) for i in range(k + 1)]
    for i in range(1, k + 1):
        t = torch.arange(int(s.ends[i]) + 1)
        local = s.bar(t, torch.full_like(t, i))
        assert local[-1] == pytest.approx(1.0) and bool((local > 0).all())
        torch.testing.assert_close(local * s.bar(s.ends[i]), bar[t])  # abar_t = abar_t^i abar_{e_i}
    reached = s.segment(torch.arange(1, T + 1))
    assert all(int(s.ends[j - 1]) < t <= int(s.ends[j]) for t, j in enumerate(reached.tolist(), 1))


@pytest.mark.parametrize(("kind", "T", "k"), CASES)
def test_one_time_for_all_tasks_gives_the_numbers_of_its_tensor(kind, T, k):
    s, x = make(kind, T, k), torch.randn(2, 3, 4)
    for t in range(T):
        times, i = torch.full((2,), t), s.segment(t + 1)
        assert i == int(s.segment(torch.tensor(t + 1)))
        for segment in (None, i):
            of_tensor = s.factor(x, times, None if segment is None else torch.full((2,), segment))
            torch.testing.assert_close(of_tensor, torch.full((2, 1, 1), s.factor(x, t, segment)), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(core.to_x0(x, x, t, s), core.to_x0(x, x, times, s), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "T", "k"), CASES)
def test_k_1_is_the_vanilla_loss_weighted_by_one_minus_abar(kind, T, k):
    s = make(kind, T, 1)
    g = torch.Generator().manual_seed(0)
    theta, eps, f = torch.randn(3, 64, 2, 5, generator=g)
    t, i = core.draw(64, s, g)
    assert bool((i == 1).all())
    bar = s.bar(t)[:, None, None]
    torch.testing.assert_close(core.noised(theta, eps, t, i, s), bar.sqrt() * theta + (1 - bar).sqrt() * eps)
    torch.testing.assert_close(core.local_consistency_loss(f, eps, t, i, s), (1 - bar) * (f - eps) ** 2)
    x = core.noised(theta, eps, t, i, s)
    torch.testing.assert_close(  # weight "x0" is the plain mean square of x0
        core.local_consistency_loss(f, eps, t, i, s, "x0"), (core.to_x0(f, x, t, s) - theta) ** 2, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(("kind", "T", "k"), CASES)
def test_the_ideal_f_minimises_the_loss_and_gives_the_local_ancestral_mean(kind, T, k):
    s = core.Schedule(make(kind, T, k).alpha.double(), k, 1.0)
    g = torch.Generator().manual_seed(1)
    theta, eps = torch.randn(2, 8, 2, 3, generator=g, dtype=torch.float64)
    for i in range(1, k + 1):
        for t in range(int(s.ends[i]) - 1):
            tt, ii = torch.full((8,), t), torch.full((8,), i)
            x = core.noised(theta, eps, tt, ii, s)
            f = ideal(theta, i, s)(x, tt)
            assert float(core.local_consistency_loss(f, eps, tt, ii, s).max()) < 1e-12
            a, bar, local, after = s.alpha[t], s.bar(tt[:1]), s.bar(tt[:1], ii[:1]), s.bar(tt[:1] + 1, ii[:1])
            mean = (x - (1 - a) / (1 - bar).sqrt() * f) / a.sqrt()  # the GLOBAL ancestral step
            own = (after.sqrt() * (1 - a) * theta + a.sqrt() * (1 - after) * x) / (1 - local)  # chain i's posterior mean
            torch.testing.assert_close(mean, own, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kind", "T", "k"), CASES)
@pytest.mark.parametrize("options", [{}, {"eta": 0.0}, {"noise": 0.0}, {"chain": "global", "noise": 0.0}])
def test_ideal_f_of_chain_i_ends_exactly_at_its_local_target(kind, T, k, options):
    s = make(kind, T, k)
    g = torch.Generator().manual_seed(2)
    theta, x = torch.randn(2, 4, 2, 5, generator=g)
    for i in range(1, k + 1):
        t, reached = list(core.sample(ideal(theta, i, s), x, s, stop=i, generator=g, **options))[-1]
        assert t == int(s.ends[i])
        torch.testing.assert_close(reached, theta, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "T", "k"), CASES)
@pytest.mark.parametrize("options", [{}, {"noise": 0.0}, {"eta": 0.0}])
def test_one_chain_passes_through_every_target(kind, T, k, options):
    """A denoiser that knows all the data: in segment i it answers with chain i; one run of T steps visits every theta_{i d}."""
    s = make(kind, T, k)
    g = torch.Generator().manual_seed(3)
    targets = torch.randn(k, 4, 2, 5, generator=g)

    def f(x, t):
        i = s.segment(t + 1)
        return ideal(targets[i - 1], i, s)(x, t)

    visited = dict(core.sample(f, torch.randn(4, 2, 5, generator=g), s, generator=g, **options))
    for i in range(1, k + 1):
        torch.testing.assert_close(visited[int(s.ends[i])], targets[i - 1], rtol=1e-3, atol=1e-3)


def test_global_noise_misses_inner_targets_and_global_ddim_is_not_exact():
    s = make("cosine", 20, 3)
    g = torch.Generator().manual_seed(4)
    theta, x = torch.randn(2, 64, 2, 5, generator=g)
    for options in ({"chain": "global"}, {"chain": "global", "eta": 0.0}):
        visited = dict(itertools.islice(core.sample(ideal(theta, 1, s), x, s, generator=g, **options), int(s.ends[1])))
        assert float((visited[7] - theta).square().mean().sqrt()) > 0.05


def test_with_more_noise_than_ddpm_nothing_is_left_of_eps():
    s, x = make("cosine", 20, 1), torch.randn(3, 2, 5)
    theta = torch.randn(3, 2, 5)
    t, reached = next(core.sample(ideal(theta, 1, s), x, s, steps=2, eta=50.0, noise=0.0))
    torch.testing.assert_close(reached, s.number(t) ** 0.5 * theta, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_a_denoiser_that_knows_theta_recovers_it_in_any_number_of_steps(steps):
    s = make("cosine", 20, 1)
    g = torch.Generator().manual_seed(5)
    theta, x = torch.randn(2, 4, 2, 5, generator=g)
    chain = list(core.sample(ideal(theta, 1, s), x, s, steps=steps, generator=g))
    assert len(chain) == steps
    torch.testing.assert_close(chain[-1][1], theta, rtol=1e-4, atol=1e-4)


def test_the_sampler_draws_the_right_distribution():
    """With the exact score of a Gaussian, T = 200 DDPM steps give its mean and variance (k = 1)."""
    s = make("cosine", 200, 1)
    g = torch.Generator().manual_seed(6)

    def f(x, t):  # data ~ N(3, 0.5^2)
        bar = s.factor(x, t)
        return (1 - bar) ** 0.5 * (x - bar**0.5 * 3) / (bar * 0.25 + 1 - bar)

    x = list(core.sample(f, torch.randn(20000, 1, 1, generator=g), s, generator=g))[-1][1]
    assert float(x.mean()) == pytest.approx(3.0, abs=0.05) and float(x.std()) == pytest.approx(0.5, abs=0.05)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 19), st.integers(0, 2**31))
def test_every_parameterisation_gives_the_same_x0(t, seed):
    s = make("cosine", 20, 3)
    g = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, 3, 2, 4, generator=g, dtype=torch.float64)
    tt = torch.full((3,), t)
    x = core.noised(x0, eps, tt, torch.full((3,), 3), s)
    bar = s.bar(tt)[:, None, None].double()
    outputs = {"eps": eps, "x0": x0, "v": bar.sqrt() * eps - (1 - bar).sqrt() * x0}
    for kind, output in outputs.items():
        f = core.to_f(output, x, tt, s, kind)
        torch.testing.assert_close(f, eps, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(core.to_x0(f, x, tt, s), x0, rtol=1e-3, atol=1e-3)


def test_draw_covers_every_time_before_the_end_of_the_segment():
    s = make("cosine", 20, 3)
    t, i = core.draw(20000, s, torch.Generator().manual_seed(0))
    for n in (1, 2, 3):
        assert sorted(set(t[i == n].tolist())) == list(range(int(s.ends[n])))


def test_invalid_schedules_and_options_raise_errors():
    with pytest.raises(McdiError, match="k = 30"):
        core.make_schedule("cosine", 20, 30)
    with pytest.raises(McdiError, match="not noise"):
        core.make_schedule("cosine", 20, 1, floor=0.5)
    with pytest.raises(McdiError, match="0 < alpha < 1"):
        core.Schedule(torch.tensor([0.5, 1.0]))
    with pytest.raises(McdiError, match="unknown schedule 'sqrt'"):
        core.make_schedule("sqrt")
    s, x = make("cosine", 20, 3), torch.zeros(1, 1, 1)
    for bad in ({"steps": 0}, {"steps": 21}, {"stop": 4}, {"chain": "x"}):
        with pytest.raises(McdiError):
            list(core.sample(lambda x, t: x, x, s, **bad))
    with pytest.raises(McdiError, match="unknown parameterisation"):
        core.to_f(x, x, torch.tensor([0]), s, "w")
    with pytest.raises(McdiError, match="unknown loss weight"):
        core.local_consistency_loss(x, x, torch.tensor([0]), torch.tensor([1]), s, "snr")
    with pytest.raises(McdiError, match="unknown outer step"):
        OuterStep([x], "sgd", 0.1)
    with pytest.raises(McdiError, match="unknown inner optimiser"):
        core.reptile_displacement({}, lambda p: x, (x,), 0.1, "rmsprop")


def test_reptile_by_hand():
    """One weight w = 1, L = (w - a)^2 / 2, eta = 0.5, K = 2, targets a = 3 and -1: the copies end at 2.5 and -0.5."""
    batch = torch.tensor([[3.0, -1.0], [3.0, -1.0]])
    params = {"w": torch.tensor(1.0)}
    moved, losses = core.reptile_displacement(params, lambda p, a: 0.5 * (p["w"] - a) ** 2, (batch,), 0.5)
    assert float(moved["w"]) == pytest.approx(((2.5 - 1) + (-0.5 - 1)) / 2)
    torch.testing.assert_close(losses, torch.tensor([[2.0, 2.0], [0.5, 0.5]]))
    literal = torch.tensor(1.0)
    OuterStep([literal], "literal", 0.1)([torch.tensor(2.0)], 0.5, 2)
    assert float(literal) == pytest.approx(1.2)
    adam = torch.tensor(1.0)
    OuterStep([adam], "adam", 0.1)([torch.tensor(2.0)], 0.5, 2)
    assert float(adam) == pytest.approx(1.1, abs=1e-5)  # Adam's first step is its rate, in the displacement's direction


@pytest.mark.parametrize(
    ("inner", "optimiser"),
    [("sgd", torch.optim.SGD), ("adam", functools.partial(torch.optim.Adam, betas=(0.0, 0.999)))],
)
def test_batched_reptile_equals_a_plain_loop_of_copies(inner, optimiser):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    x, y = torch.randn(3, 5, 6, 4), torch.randn(3, 5, 6, 2)
    params = {n: p.detach() for n, p in net.named_parameters()}

    def loss(p, x, y):
        return ((torch.func.functional_call(net, p, (x,)) - y) ** 2).mean()

    moved, _ = core.reptile_displacement(params, loss, (x, y), 0.1, inner)
    total = {n: torch.zeros_like(p) for n, p in params.items()}
    for b in range(5):
        one = copy.deepcopy(net)
        rule = optimiser(one.parameters(), lr=0.1)
        for j in range(3):
            rule.zero_grad()
            ((one(x[j, b]) - y[j, b]) ** 2).mean().backward()
            rule.step()
        for n, p in one.named_parameters():
            total[n] += (p.detach() - params[n]) / 5
    for n in params:
        torch.testing.assert_close(moved[n], total[n], rtol=1e-5, atol=1e-6)


def test_core_stays_short():
    import inspect

    assert len(inspect.getsource(core).splitlines()) <= 240
