"""Numbers that users pass."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcdi.utils.tensors import finite


@given(st.lists(st.floats(width=32) | st.just(3e38), max_size=8), st.sampled_from([torch.float32, torch.float64]))
def test_finite_looks_at_every_number(values, kind):
    assert finite(torch.tensor(values, dtype=kind)) == all(map(math.isfinite, values))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float8_e5m2])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_one_wrong_number_among_many_is_found(kind, wrong):
    values = torch.ones(3, 5)
    assert finite(values.to(kind).requires_grad_())
    values[1, 2] = wrong
    assert not finite(values.to(kind).requires_grad_())
