"""How does ONNX solve linear equations? It has no operator for it: a loop over the columns takes its place."""

# Types here are those of ONNX, read by `script`; mypy takes them for Python's.
# mypy: disable-error-code="misc,type-arg,valid-type,untyped-decorator"

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import FLOAT, opset18, script

op: Any = opset18  # its types do not follow what a variable holds
DOUBLE = 11  # onnx.TensorProto.DOUBLE


@script()
def SolveDefinite(a: FLOAT[...], b: FLOAT[...]) -> FLOAT[...]:  # noqa: N802
    """a^-1 b for positive definite a (B, S, S), b (B, S, n): Gauss and Jordan's elimination in float64, which for such needs
    no pivoting."""
    size = op.Shape(a, start=-1)
    steps = op.Squeeze(size)
    both = op.Cast(op.Concat(a, b, axis=-1), to=DOUBLE)
    rows = op.Range(op.Constant(value_int=0), steps, op.Constant(value_int=1))
    for i in range(steps):
        here = op.Unsqueeze(i, op.Constant(value_ints=[0]))
        row = op.Gather(both, here, axis=1)
        row = op.Div(row, op.Gather(row, here, axis=2))
        others = op.Sub(both, op.Mul(op.Gather(both, here, axis=2), row))
        both = op.Where(op.Unsqueeze(op.Equal(rows, i), op.Constant(value_ints=[0, 2])), row, others)
    found = op.Slice(both, size, op.Shape(both, start=-1), op.Constant(value_ints=[2]))
    out = op.CastLike(found, b)
    return out


def _solve(a: Any, b: Any, left: bool = True, check_errors: bool = False) -> tuple[Any, ...]:
    """Of the four results the first is the solution; nobody reads the factors, the pivots and whether it was singular."""
    none = op.Constant(value_ints=[0])
    return SolveDefinite(a, b), op.Identity(a), none, op.Identity(none)


SOLVE: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.aten._linalg_solve_ex.default: _solve}
