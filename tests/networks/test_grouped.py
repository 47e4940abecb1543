"""Networks of many tasks as one: the same outputs, gradients and running statistics as each alone."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mcdi.networks import batched, grouped

TASKS, EXAMPLES = 3, 4


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Sequential, tuple[int, ...]]:
    """A Sequential of convolutions, norms, pools and activations, and the shape of an example."""
    channels, side = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([6, 9, 16]))
    shape = (channels, side, side)
    layers: list[nn.Module] = []
    if draw(st.booleans()):
        layers.append(nn.Unflatten(-1, shape))
        given_shape: tuple[int, ...] = (channels * side * side,)
    else:
        given_shape = shape
    for _ in range(draw(st.integers(1, 3))):
        outputs, groups = draw(st.sampled_from([(4, 1), (6, 1), (2 * channels, channels)]))
        options = {"stride": draw(st.sampled_from([1, 2])), "padding": draw(st.sampled_from([1, "valid" if side > 9 else 1]))}
        layers.append(nn.Conv2d(channels, outputs, 3, groups=groups, bias=draw(st.booleans()), **options))
        norms = [nn.Identity(), nn.GroupNorm(2, outputs), nn.BatchNorm2d(outputs), nn.GroupNorm(1, outputs, affine=False)]
        layers += [draw(st.sampled_from(norms)), draw(st.sampled_from([nn.ReLU(), nn.Tanh(), nn.SiLU()]))]
        channels = outputs
    if draw(st.booleans()):
        layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 5, bias=draw(st.booleans()))]
    module = nn.Sequential(*layers)
    return (nn.Sequential(module, nn.Identity()) if draw(st.booleans()) else module), given_shape


def alone(module: nn.Module, state: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.stack(
        [torch.func.functional_call(module, {n: t[i] for n, t in state.items()}, (x[i],)) for i in range(len(x))]
    )


@settings(max_examples=60, deadline=None)
@given(networks(), st.booleans(), st.sampled_from([0, 10**9]), st.booleans(), st.integers(0, 8))
def test_many_networks_are_computed_as_each_alone(made, training, limit, some_shared, few) -> None:  # type: ignore[no-untyped-def]
    module, shape = made
    module.double().train(training).requires_grad_(False)
    assert grouped.runs(module)
    g = torch.Generator().manual_seed(0)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    tensors = {n: t for n, t in tensors.items() if t.is_floating_point()}
    kept = list(tensors)[: max(1, len(tensors) // 2)] if some_shared and not training else list(tensors)
    state = {n: torch.rand(TASKS, *tensors[n].shape, generator=g, dtype=torch.float64) + 0.1 for n in kept}
    x = torch.randn(TASKS, EXAMPLES, *shape, generator=g, dtype=torch.float64)
    results = []
    for run in (alone, grouped.run):
        own = {n: t.clone() for n, t in state.items()}
        leaves = {n: t.requires_grad_() for n, t in own.items() if "running" not in n}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(grouped, "GROUPED_UP_TO", limit)
            out = run(module, own, x)
        gradients = torch.autograd.grad(out.square().sum(), list(leaves.values()))
        statistics = [own[n] for n in own if "running" in n]
        results.append([out, *gradients, *statistics])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(grouped, "GROUPED_UP_TO", limit)
        patch.setattr(grouped, "AT_ONCE", few * x[0].numel())  # one task at once where layers widen, or some
        own = {n: t.clone() for n, t in state.items()}
        torch.testing.assert_close(grouped.run(module, own, x), results[0][0], rtol=1e-6, atol=1e-6)
    for got, expected in zip((own[n] for n in own if "running" in n), statistics, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("gradient", "most"), [(False, 2), (True, 5)])
def test_few_networks_run_at_once_where_no_gradient_is_needed(gradient: bool, most: int) -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()).requires_grad_(False)
    state = {n: torch.randn(5, *p.shape) for n, p in module.named_parameters()}
    x, layer, together = torch.randn(5, EXAMPLES, 2, 6, 6), grouped._layer, []

    def counted(*parts: Any) -> Tensor:
        together.append(parts[-1])
        return layer(*parts)

    with pytest.MonkeyPatch.context() as patch, torch.set_grad_enabled(gradient):
        patch.setattr(grouped, "GROUPED_UP_TO", 10**9)
        patch.setattr(grouped, "AT_ONCE", 2 * 2 * x[0].numel())  # a convolution doubles the numbers
        patch.setattr(grouped, "_layer", counted)
        grouped.run(module, state, x)
    assert max(together) == most


def hooked() -> nn.Conv2d:
    layer = nn.Conv2d(1, 2, 3)
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    return layer


def test_an_activation_that_stands_twice_runs_twice() -> None:
    relu = nn.ReLU()
    module = nn.Sequential(nn.Conv2d(1, 2, 3), relu, nn.Conv2d(2, 2, 3), relu).requires_grad_(False)
    state = {n: torch.randn(TASKS, *p.shape) for n, p in module.named_parameters()}
    x = torch.randn(TASKS, EXAMPLES, 1, 6, 6)
    assert grouped.runs(module)
    torch.testing.assert_close(grouped.run(module, state, x), alone(module, state, x))


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(3, 2)),
        nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect")),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout()),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(2)),
        nn.Conv2d(1, 2, 3),
        nn.Sequential(*[nn.Conv2d(1, 1, 3)] * 2),  # one layer twice: its weights have one name
        nn.Sequential(nn.Conv2d(1, 2, 3), type("Doubled", (nn.ReLU,), {"forward": lambda self, x: 2 * x})()),
        nn.Sequential(hooked()),
    ],
)
def test_other_networks_go_the_general_way(module: nn.Module) -> None:
    assert not grouped.runs(module)
    if isinstance(module, nn.Sequential) and isinstance(module[0], nn.Conv2d):
        state = {n: p.detach().expand(2, *p.shape) for n, p in module.eval().named_parameters()}
        x = torch.randn(2, 3, 1, 5, 5)
        torch.testing.assert_close(batched.apply(module, state, x), alone(module, state, x))
