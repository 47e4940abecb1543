"""Round trips are exact for every dtype and shape; unsuitable parameters raise errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mcdi.errors import McdiError
from mcdi.networks import batched
from mcdi.weights import WeightSpace

DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])
SHAPES = st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=5)


@pytest.mark.parametrize("unit", ["row", "filter"])
def test_new_classes_begin_at_the_mean_of_the_known(unit):
    module = nn.Linear(2, 3) if unit == "row" else nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    space = WeightSpace(module, unit=unit, classes=unit == "filter")
    start = torch.randn(space.U, space.D)
    more = space.for_units(start, space.units(5))
    assert torch.equal(space.for_units(start, space.U), start)
    assert torch.equal(more[: space.fixed], start[: space.fixed])
    torch.testing.assert_close(more[space.fixed :], start[space.fixed :].mean(0).expand(5, -1))


class Bag(nn.Module):
    def __init__(self, parts):
        super().__init__()
        for n, (shape, dtype) in enumerate(parts):
            layer = nn.Module()
            layer.register_parameter("p", nn.Parameter(torch.zeros(shape, dtype=dtype)))
            self.add_module(f"layer{n % 3}_{n}", layer)


@settings(max_examples=80, deadline=None)
@given(SHAPES, st.data(), st.sampled_from(["whole", "layer", 1, 3, 7]), st.integers(1, 3))
def test_round_trip_is_exact(shapes, data, unit, batch):
    parts = [(shape, data.draw(DTYPES)) for shape in shapes]
    module = Bag(parts)
    space = WeightSpace(module, unit=unit)
    params = {n: torch.randn(batch, *p.shape).to(p.dtype) for n, p in module.named_parameters()}
    flat = space.pack(params)
    assert flat.shape == (batch, space.U, space.D) and flat.shape[1] * flat.shape[2] >= space.parameters
    back = space.unpack(flat)
    assert all(back[n].dtype == p.dtype and torch.equal(back[n], params[n]) for n, p in module.named_parameters())
    assert torch.equal(WeightSpace.from_config(space.config()).pack(back), flat)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), DTYPES)
def test_rows_round_trip_for_any_number_of_classes(features, way, batch, dtype):
    space = WeightSpace(nn.Linear(features, 5).to(dtype), unit="row")
    params = {"weight": torch.randn(batch, way, features).to(dtype), "bias": torch.randn(batch, way).to(dtype)}
    flat = space.pack(params)
    assert flat.shape == (batch, way, features + 1)
    assert all(torch.equal(space.unpack(flat)[n], p) for n, p in params.items())


class Rows(nn.Module):
    """A linear classifier and tensors that belong to no row."""

    def __init__(self, features, shapes, dtypes):
        super().__init__()
        self.norm = Bag(list(zip(shapes, dtypes, strict=True)))
        self.head = nn.Linear(features, 5).to(dtypes[0])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), SHAPES, st.data(), st.integers(1, 7), st.integers(1, 3))
def test_rows_and_shared_tensors_round_trip_for_any_number_of_rows(features, shapes, data, way, batch):
    module = Rows(features, shapes, [data.draw(DTYPES) for _ in shapes])
    space = WeightSpace(module, unit="row", shared="norm")
    params = {n: torch.randn(batch, *p.shape).to(p.dtype) for n, p in module.named_parameters()}
    params |= {n: torch.randn(batch, way, *params[n].shape[2:]).to(params[n].dtype) for n in ("head.weight", "head.bias")}
    flat = space.pack(params)
    chunks = [-(-torch.Size(shape).numel() // (features + 1)) for shape in shapes]
    assert flat.shape == (batch, way + sum(chunks), features + 1) and 5 + sum(chunks) == space.U
    assert (space.units(way), space.extra, space.kinds) == (flat.shape[1], sum(chunks), 1 + sum(chunks))
    # The rows come first and equal those of the head by itself.
    head = WeightSpace(module.head, unit="row")
    assert torch.equal(flat[:, :way].to(head.dtype), head.pack({n[5:]: params[n] for n in ("head.weight", "head.bias")}))
    back = space.unpack(flat)
    assert all(back[n].dtype == p.dtype and torch.equal(back[n], p) for n, p in params.items())
    again = WeightSpace.from_config(space.config())
    assert torch.equal(again.pack(back), flat) and again.config() == space.config()
    with pytest.raises(McdiError, match="do not fit"):
        space.unpack(torch.zeros(1, space.extra - 1, space.D))


def test_rows_have_common_statistics_and_every_other_unit_its_own():
    space = WeightSpace(Rows(2, [[3], [2, 2]], [torch.float32] * 2), unit="row", shared="norm")
    g = torch.Generator().manual_seed(0)
    scale = torch.tensor([2.0] * 5 + [5.0, 0.1, 3.0])[:, None]
    flat = torch.randn(400, 8, 3, generator=g) * scale + scale
    mask = torch.ones(400, 8, dtype=torch.bool)
    mask[::2, 3:5] = False  # half of the tasks have three rows
    flat[::2, 3:5] = 1e6
    fitted = space.fitted(zip(flat.split(150), mask.split(150), strict=True))
    z = fitted.standardise(flat)
    for part in (z[:, :5][mask[:, :5]], z[:, 5], z[:, 6], z[:, 7]):
        torch.testing.assert_close(part.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
        torch.testing.assert_close(part.std(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)
    few = torch.cat([flat[:, :2], flat[:, 5:]], 1)  # two rows and the rest
    torch.testing.assert_close(fitted.standardise(few), torch.cat([z[:, :2], z[:, 5:]], 1))
    torch.testing.assert_close(fitted.restore(fitted.standardise(few)), few, atol=1e-4, rtol=1e-4)
    assert WeightSpace.from_config(fitted.config()).with_statistics(*fitted.statistics()).standardise(flat).equal(z)


def test_the_config_of_a_space_without_shared_parameters():
    space = WeightSpace(nn.Linear(2, 3), unit="row")
    config = {"unit": "row", "parameters": {"weight": [[3, 2], "float32"], "bias": [[3], "float32"]}, "buffers": []}
    assert space.config() == config == WeightSpace.from_config(config).config()
    assert space.fitted([(torch.randn(4, 3, 3), torch.ones(4, 3, dtype=torch.bool))]).statistics()[0].shape == (3,)
    assert (space.units(7), space.kinds, WeightSpace(nn.Linear(2, 3), unit=4).units(7)) == (7, 1, 3)


def test_selection_by_pattern():
    net = nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.Linear(4, 2))
    assert list(WeightSpace(net, select="^2").spec) == ["2.weight", "2.bias"]
    assert WeightSpace(net, select=r"^1\.").parameters == 8
    assert WeightSpace(net, unit="layer").U == 3
    with pytest.raises(McdiError, match="matches no parameter"):
        WeightSpace(net, select="head")


def test_call_equals_the_module_with_these_weights():
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.Tanh(), nn.Linear(4, 2)) for _ in range(3)]
    space = WeightSpace(nets[0])
    flat = space.pack(
        {n: torch.stack([dict(m.named_parameters())[n].detach() for m in nets]) for n, _ in nets[0].named_parameters()}
    )
    x = torch.randn(3, 7, 3)
    expected = torch.stack([m(x[b]) for b, m in enumerate(nets)])
    torch.testing.assert_close(batched.apply(nets[0], space.unpack(flat), x), expected)
    nets[1].load_state_dict({n: p[2] for n, p in space.unpack(flat).items()})
    torch.testing.assert_close(nets[1](x[2]), expected[2])


@pytest.mark.parametrize("unit", ["whole", "row"])
def test_standardised_weights_have_zero_mean_and_unit_variance(unit):
    space = WeightSpace(nn.Linear(3, 5), unit=unit)
    flat = torch.randn(200, space.U, space.D) * 3 + 2
    mask = torch.ones(200, space.U, dtype=torch.bool)
    mask[:, -1] = unit == "whole"
    fitted = space.fitted(zip(flat.split(60), mask.split(60), strict=True))
    z = fitted.standardise(flat)
    inside = z[mask] if unit == "row" else z
    torch.testing.assert_close(inside.mean(0), torch.zeros_like(inside.mean(0)), atol=1e-4, rtol=0)
    torch.testing.assert_close(inside.std(0, correction=0), torch.ones_like(inside.mean(0)), atol=1e-4, rtol=0)
    torch.testing.assert_close(fitted.restore(z), flat, atol=1e-4, rtol=1e-4)
    constant = space.fitted([(torch.full((4, space.U, space.D), 500.1), mask[:4])])
    assert bool(torch.isfinite(constant.standardise(torch.ones(1, space.U, space.D))).all())
    assert float(constant.statistics()[1].min()) == 1


def test_running_statistics_belong_to_their_layer():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2), nn.BatchNorm1d(2))
    space = WeightSpace(net, select="^[01]")
    assert space.buffers == ("1.running_mean", "1.running_var") and space.parameters == 20 + 4 + 4
    assert space.parameter_names == ("0.weight", "0.bias", "1.weight", "1.bias")
    flat = torch.randn(3, 1, space.D)
    assert bool((space.unpack(flat)["1.running_var"] >= 0).all())
    torch.testing.assert_close(space.pack(space.unpack(flat.abs())), flat.abs(), rtol=0, atol=0)
    again = WeightSpace.from_config(space.config())
    assert again.buffers == space.buffers == again.fitted([(flat, torch.ones(3, 1, dtype=torch.bool))]).buffers
    assert WeightSpace(nn.BatchNorm1d(4, track_running_stats=False)).buffers == ()


def test_what_does_not_fit_raises_errors():
    space = WeightSpace(nn.Linear(3, 5))
    with pytest.raises(McdiError, match="do not fit"):
        space.unpack(torch.zeros(2, 1, 7))
    with pytest.raises(McdiError, match="parameters missing: bias"):
        space.pack({"weight": torch.zeros(1, 5, 3)})
    with pytest.raises(McdiError, match="shape"):
        space.pack({"weight": torch.zeros(1, 3, 5), "bias": torch.zeros(1, 5)})
    with pytest.raises(McdiError, match="no statistics"):
        space.standardise(torch.zeros(1, 1, 20))
    with pytest.raises(McdiError, match="common first dimension"):
        WeightSpace(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), unit="row")
    for unit, shared, names in (("whole", "bias", "bias of"), ("row", "norm", "nothing of"), ("row", ".", "weight, bias of")):
        with pytest.raises(McdiError, match=f"must leave rows of unit = 'row', not '{unit}' .it matches {names} weight, bias"):
            WeightSpace(nn.Linear(2, 3), unit=unit, shared=shared)
    with pytest.raises(McdiError, match="unknown unit"):
        WeightSpace(nn.Linear(2, 2), unit="column")
    with pytest.raises(McdiError, match="floating-point"):
        WeightSpace(Bag([([2], torch.complex64)]))
