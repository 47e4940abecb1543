"""What ONNX has no operator for: linear systems, by Gauss-Jordan elimination as a loop over the columns, and distances."""

# Annotations index are ONNX types, which `script` reads; mypy would read them as Python's.
# mypy: disable-error-code="misc,type-arg,valid-type,untyped-decorator"

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import FLOAT, opset18, script

op: Any = opset18  # its annotations are too narrow
DOUBLE = 11  # onnx.TensorProto.DOUBLE


@script()
def SolveDefinite(a: FLOAT[...], b: FLOAT[...]) -> FLOAT[...]:  # noqa: N802
    """a^-1 b for positive definite a (B, S, S) and b (B, S, n), in float64; such matrices need no pivoting."""
    size = op.Shape(a, start=-1)
    steps = op.Squeeze(size)
    augmented = op.Cast(op.Concat(a, b, axis=-1), to=DOUBLE)
    rows = op.Range(op.Constant(value_int=0), steps, op.Constant(value_int=1))
    for i in range(steps):
        index = op.Unsqueeze(i, op.Constant(value_ints=[0]))
        row = op.Gather(augmented, index, axis=1)
        row = op.Div(row, op.Gather(row, index, axis=2))
        others = op.Sub(augmented, op.Mul(op.Gather(augmented, index, axis=2), row))
        augmented = op.Where(op.Unsqueeze(op.Equal(rows, i), op.Constant(value_ints=[0, 2])), row, others)
    solution = op.Slice(augmented, size, op.Shape(augmented, start=-1), op.Constant(value_ints=[2]))
    out = op.CastLike(solution, b)
    return out


def _solve(a: Any, b: Any, left: bool = True, check_errors: bool = False) -> tuple[Any, ...]:
    """The solution, and placeholders for the factors, pivots and error code, which no export reads."""
    none = op.Constant(value_ints=[0])
    return SolveDefinite(a, b), op.Identity(a), none, op.Identity(none)


def _distances(a: Any, b: Any, p: float, compute_mode: Any = None) -> Any:
    """Euclidean, as torch.cdist gives them: (B, S, F), (B, R, F) -> (B, S, R)."""
    left, right = op.Unsqueeze(a, op.Constant(value_ints=[-2])), op.Unsqueeze(b, op.Constant(value_ints=[-3]))
    return op.Sqrt(op.ReduceSumSquare(op.Sub(left, right), op.Constant(value_ints=[-1]), keepdims=0))


SOLVE: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten._linalg_solve_ex.default: _solve,
    torch.ops.aten._cdist_forward.default: _distances,
}
