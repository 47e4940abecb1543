"""Functions of torch as a module calls them that has the weights of one of many tasks."""

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mcdi.errors import McdiError

OTHER_DROPOUTS = ("dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
# Torch hands this function to a mode as a whole: the same code without that, so that the mode sees what is inside it.
_ATTENTION = F.multi_head_attention_forward
_attention = FunctionType(
    _ATTENTION.__code__, {**F.__dict__, "has_torch_function": lambda _: False}, argdefs=_ATTENTION.__defaults__
)


def with_statistics(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """A norm (N, C, ...) by given statistics (C,), differentiable in these: torch's own is not."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    scale = (variance + eps).rsqrt() if weight is None else weight * (variance + eps).rsqrt()
    shift = -mean * scale if bias is None else bias - mean * scale
    return x * scale.reshape(shape) + shift.reshape(shape)


def _norm(
    func: Callable[..., Tensor],
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *more: Any,
    **options: Any,
) -> Tensor:
    """F.batch_norm and F.instance_norm, whose next argument says whether the statistics are those of the input."""
    default, name = (False, "training") if func is F.batch_norm else (True, "use_input_stats")
    own = more[0] if more else options.get(name, default)
    if own or running_mean is None or running_var is None:
        return func(input, running_mean, running_var, weight, bias, *more, **options)
    eps = more[2] if len(more) > 2 else options.get("eps", 1e-5)
    return with_statistics(input, running_mean, running_var, weight, bias, eps)


class PerTask(TorchFunctionMode):
    """How the functions of torch run for one task of many.

    Dropout, of attention weights too, draws masks that are a function of the task's key, the number of the call, and the
    position in the tensor. Norms in evaluation mode are differentiable in their running statistics, which may be generated.
    While any such mode is active, attention does not take torch's fused path, which has no gradient.
    """

    def __init__(self, key: Tensor | None) -> None:
        super().__init__()
        self.key, self.calls = key, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func is F.multi_head_attention_forward:
            with self:  # dropout inside it is a task's own
                return _attention(*args, **kwargs)
        if func in (F.batch_norm, F.instance_norm):
            return _norm(func, *args, **kwargs)
        if self.key is None:
            return func(*args, **kwargs)
        if func is F.dropout:
            return self._drop(*args, **kwargs)
        if name == "scaled_dot_product_attention" and (kwargs.get("dropout_p", args[4] if len(args) > 4 else 0)):
            return self._attend(*args, **kwargs)
        if name in OTHER_DROPOUTS and kwargs.get("training", args[2] if len(args) > 2 else True):
            raise McdiError(f"{name} is not repeatable task by task yet: use nn.Dropout")
        return func(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        logits = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=query.device).tril()
        if attn_mask is not None:
            logits = logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
        return self._drop(logits.softmax(-1), dropout_p) @ value

    def _drop(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or not p:
            return input
        assert self.key is not None
        self.calls += 1
        position = torch.arange(input.numel(), device=input.device).reshape(input.shape)
        keep = _uniform(self.key + self.calls, position) >= p
        return torch.where(keep, input / (1 - p), torch.zeros_like(input)) if p < 1 else input * 0


def _uniform(key: Tensor, position: Tensor) -> Tensor:
    """Numbers in [0, 1) decided by (key, position): SplitMix64 in int64, whose products wrap."""
    z = _mix(_mix(key * -7046029254386353131) + (position + 1) * -7046029254386353131)
    return (z >> 40 & 0xFFFFFF).float() / 2**24


def _mix(z: Tensor) -> Tensor:
    # int64 >> keeps the sign: the copies of it are masked away
    z = (z ^ (z >> 30 & 0x3FFFFFFFF)) * -4658895280553007687
    z = (z ^ (z >> 27 & 0x1FFFFFFFFF)) * -7723592293110705685
    return z ^ (z >> 31 & 0x1FFFFFFFF)
