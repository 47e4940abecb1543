"""One Sequential with the weights of N tasks as a single network: the tasks lie side by side in the channels.

Convolutions become grouped ones, norms get N times the groups. On a CPU that is faster than N networks where images are small;
where they are large, every task is convolved alone.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mcdi.networks.per_task import with_statistics

State = dict[str, Tensor]

# Pixels times channels of a task, before and after it, up to which one grouped convolution was faster than N plain ones when we
# timed both, forward and backward, for 1 to 64 channels and 3 to 28 pixels.
GROUPED_UP_TO = 1600
# Numbers between two layers of the networks that run at once where no gradient needs them later: 256 MiB.
AT_ONCE = 2**26

_ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Identity)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


def layers_of(module: nn.Sequential) -> Iterator[tuple[str, nn.Module]]:
    """The layers in the order in which they run, those of Sequentials inside it too; one that stands twice comes twice."""
    for name, layer in module.named_modules(remove_duplicate=False):
        if type(layer) is not nn.Sequential:
            yield name, layer


def runs(module: nn.Module) -> bool:
    """Whether `run` knows every layer of `module`, and one of them is a convolution: without one, vmap is as fast."""
    if type(module) is not nn.Sequential or not all(map(plain, module.modules())):
        return False
    layers = [layer for _, layer in layers_of(module)]
    tied = len(list(module.parameters())) < len(list(module.named_parameters(remove_duplicate=False)))  # under two names
    return not tied and all(map(knows, layers)) and any(type(layer) is nn.Conv2d for layer in layers)


def plain(part: nn.Module) -> bool:
    """Whether a module runs the code of its class alone: no hook, no `forward` of its own."""
    return not (part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part))


def knows(layer: nn.Module) -> bool:
    """Whether a plain layer is what its class says: no subclass, no setting that other code than its own ignores."""
    if getattr(layer, "return_indices", False):
        return False
    if type(layer) is nn.Conv2d:
        return layer.padding_mode == "zeros"
    if type(layer) is nn.BatchNorm2d:
        return layer.track_running_stats and layer.momentum is not None
    if type(layer) is nn.Flatten:
        return (layer.start_dim, layer.end_dim) == (1, -1)
    if type(layer) is nn.Unflatten:
        return layer.dim in (1, -1) and len(layer.unflattened_size) == 3
    if type(layer) is nn.Dropout:
        return not layer.training
    return type(layer) in (nn.Linear, nn.GroupNorm, *_ELEMENTWISE, *_POOLS)  # a subclass may compute anything


def run(module: nn.Sequential, state: State, x: Tensor) -> Tensor:
    """What `batched.apply` computes, up to rounding.

    Args:
        module: one that `runs` knows.
        state: {name: (N, *shape)}; what it does not name is the module's own, shared by all tasks. Running statistics are
            updated in place in training mode.
        x: (N, S, ...), images (N, S, C, H, W) or vectors (N, S, F).

    Returns:
        (N, S, ...).
    """
    few = max(1, AT_ONCE // max(1, x.shape[1:].numel() * _widening(module)))
    if len(x) > few and not torch.is_grad_enabled():
        some = [slice(i, i + few) for i in range(0, len(x), few)]
        return torch.cat([run(module, {n: t[i] for n, t in state.items()}, x[i]) for i in some])
    parts = [x] if x.device.type != "cpu" else list(x.split(1))  # of one task each, until their images are small
    parts = [_beside(part) for part in parts] if x.ndim == 5 else parts
    for name, layer in layers_of(module):
        if isinstance(layer, nn.Conv2d) and len(parts) > 1:
            pixels = parts[0][0, 0].numel()
            if pixels * max(layer.in_channels, layer.out_channels) <= GROUPED_UP_TO:
                parts = [torch.cat(parts, 1)]
        own = _tensors(layer, name, state, len(x))
        tasks = len(x) // len(parts)
        owns = [{n: t[i * tasks : (i + 1) * tasks] for n, t in own.items()} for i in range(len(parts))]
        parts = [_layer(layer, some, part, tasks) for some, part in zip(owns, parts, strict=True)]
    tasks = len(x) // len(parts)
    return torch.cat([part if part.ndim == 3 else part.unflatten(1, (tasks, -1)).transpose(0, 1) for part in parts])


def _widening(module: nn.Module) -> int:
    """How many numbers a convolution makes of one, at most."""
    return max(math.ceil(c.out_channels / c.in_channels) for c in module.modules() if isinstance(c, nn.Conv2d))


def _layer(layer: nn.Module, own: State, h: Tensor, tasks: int) -> Tensor:
    """One layer of some tasks: images (S, tasks * C, H, W) or vectors (tasks, S, F)."""
    if isinstance(layer, nn.Unflatten):
        return _beside(h.unflatten(-1, layer.unflattened_size))
    if isinstance(layer, nn.Flatten):
        return h.unflatten(1, (tasks, -1)).flatten(2).transpose(0, 1) if h.ndim == 4 else h
    if isinstance(layer, nn.Linear):
        h = torch.matmul(h, own["weight"].transpose(1, 2))
        return h + own["bias"][:, None] if "bias" in own else h
    flat = {n: t.flatten(0, 1) for n, t in own.items() if t.ndim > 1}
    weight, bias = flat.get("weight"), flat.get("bias")
    if isinstance(layer, nn.Conv2d):
        assert weight is not None
        if h.device.type == "cpu":
            h, weight = channels_last(h), channels_last(weight)
        return F.conv2d(h, weight, bias, layer.stride, layer.padding, layer.dilation, tasks * layer.groups)
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(h, tasks * layer.num_groups, weight, bias, layer.eps)
    if isinstance(layer, nn.BatchNorm2d):
        statistics = flat["running_mean"], flat["running_var"]
        if not layer.training:
            return with_statistics(h, *statistics, weight, bias, layer.eps)
        return F.batch_norm(h, *statistics, weight, bias, layer.training, layer.momentum or 0.0, layer.eps)
    out: Tensor = layer(h)
    return out


def _tensors(layer: nn.Module, name: str, state: State, tasks: int) -> State:
    """The tensors of a layer, (N, *shape) each."""
    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    return {n: state[f"{name}.{n}"] if f"{name}.{n}" in state else t.expand(tasks, *t.shape) for n, t in tensors.items()}


def _beside(x: Tensor) -> Tensor:
    """(N, S, C, H, W) -> (S, N * C, H, W)."""
    return x.transpose(0, 1).flatten(1, 2)


def channels_last(x: Tensor) -> Tensor:
    """Images and the weights of 2-D convolutions in the layout that pooling and norms are fast in.

    A copy: `contiguous` leaves tensors with one channel as they are, and the layout of what follows with them.
    """
    if x.ndim != 4 or (x.shape[1] > 1 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    try:
        return x.clone(memory_format=torch.channels_last)
    except RuntimeError:  # inside vmap (meta-training of a start), which has this layout neither here nor in norms
        return x
