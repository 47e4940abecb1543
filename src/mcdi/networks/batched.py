"""One module with the weights of N tasks: parameters and buffers of all tasks in one tensor each, {name: (N, *shape)}.

Training differs from that of one network: frozen parts behave as in evaluation, running statistics belong to a task, and
dropout masks do not depend on the other tasks of the batch.

torch runs a module with other tensors by swapping them in the module itself, and its mode is an attribute. Whatever does
either holds the module's lock, so that threads can share the module.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mcdi.errors import McdiError
from mcdi.networks.grouped import State as State
from mcdi.networks.grouped import channels_last, run, runs

OTHER_DROPOUTS = ("dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")

_GUARD, _LOCKS = threading.Lock(), WeakKeyDictionary[nn.Module, Any]()


@contextmanager
def exclusive(module: nn.Module) -> Iterator[None]:
    """Lock the module and all that share a submodule with it; the thread that holds the lock may take it again."""
    new = threading.RLock()
    with _GUARD:
        locks = {id(lock): lock for lock in (_LOCKS.setdefault(part, new) for part in module.modules())}
    with ExitStack() as stack:
        for _, lock in sorted(locks.items()):  # always in the same order, which prevents deadlocks
            stack.enter_context(lock)
        yield


def apply(module: nn.Module, state: State, x: Tensor, keys: Tensor | None = None) -> Tensor:
    """Run `module` with each task's own weights; running statistics in `state` are updated in place in training mode.

    Args:
        state: {name: (N, *shape)}; what it does not name is the module's own, shared by all tasks.
        x: (N, S, ...).
        keys: (N,) int64, which decide each task's dropout masks; None where nothing is drawn.

    Returns:
        (N, S, ...). Raises McdiError for a module that draws random numbers otherwise than by dropout.
    """
    with exclusive(module):
        if keys is None and runs(module):
            assert isinstance(module, nn.Sequential)
            return run(module, state, x)
        return _functional_call(module, state, x, keys)


def _functional_call(module: nn.Module, state: State, x: Tensor, keys: Tensor | None) -> Tensor:
    """`apply` through torch.func.functional_call, for modules that `run` does not know."""
    names = list(state)

    def one(key: Tensor | None, inputs: Tensor, *values: Tensor) -> Tensor:
        with nullcontext() if key is None else SeededDropout(key):
            return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (inputs,))

    refused = f"{type(module).__name__} draws random numbers that are no function of the task: only nn.Dropout may draw"
    # On a CPU the grouped convolution that vmap makes is slower than N plain ones.
    if x.device.type == "cpu" and (len(x) == 1 or any(p.ndim >= 4 for p in state.values())):
        before = torch.get_rng_state()
        own = [None] * len(x) if keys is None else keys
        each = [one(own[n], *(channels_last(t[n]) for t in (x, *state.values()))) for n in range(len(x))]
        if not torch.equal(before, torch.get_rng_state()):  # by the module, or by another thread
            with RandomOps() as detected, torch.no_grad():
                one(own[0], *(channels_last(t[0].clone()) for t in (x, *state.values())))
            if detected.any:
                raise McdiError(refused)
        return torch.stack(each)
    try:
        return torch.func.vmap(one, in_dims=(None if keys is None else 0, *[0] * (1 + len(names))))(keys, x, *state.values())
    except RuntimeError as error:
        if "randomness" in str(error):
            raise McdiError(refused) from error
        raise


def tasks_at_once(state: State, x: Tensor) -> int:
    """How many tasks' graphs should be in memory at once: on a CPU few, where images are convolved; they stay in cache."""
    convolves = x.device.type == "cpu" and any(p.ndim >= 4 for p in state.values())
    return max(1, 800 // x.shape[1]) if convolves else len(x)


class RandomOps(TorchDispatchMode):
    """Detects random operations of this thread: `any`."""

    any = False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.any = self.any or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


class SeededDropout(TorchFunctionMode):
    """Dropout whose masks are a function of a task's key, the number of the call, and the position in the tensor."""

    def __init__(self, key: Tensor) -> None:
        super().__init__()
        self.key, self.calls = key, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.dropout:
            return self._drop(*args, **kwargs)
        if getattr(func, "__name__", "") in OTHER_DROPOUTS and kwargs.get("training", args[2] if len(args) > 2 else True):
            raise McdiError(f"{func.__name__} is not repeatable task by task yet: use nn.Dropout")
        return func(*args, **kwargs)

    def _drop(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or not p:
            return input
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


@contextmanager
def _same_modes_after(module: nn.Module) -> Iterator[None]:
    before = {m: m.training for m in module.modules()}
    try:
        yield
    finally:
        for m, mode in before.items():
            m.training = mode


@contextmanager
def training(module: nn.Module, chosen: Sequence[str]) -> Iterator[None]:
    """Training mode for a while, in which other threads wait for the module; parts with tensors, none of them in `chosen`, stay
    in evaluation mode.

    Frozen batch norms keep their statistics and frozen blocks drop nothing; a dropout layer by itself is active.
    """
    with exclusive(module), _same_modes_after(module):
        shared = {n: b.clone() for n, b in module.named_buffers() if n not in chosen}  # such as num_batches_tracked
        module.train()
        for name, part in module.named_modules():
            if getattr(part, "running_mean", None) is not None and getattr(part, "momentum", 0) is None:
                raise McdiError(f"{name} averages over all batches (momentum = None), which no task owns: give it a momentum")
            inside = f"{name}." if name else ""
            owns = any(True for _ in (*part.parameters(), *part.buffers()))
            if owns and not any(n.startswith(inside) for n in chosen):
                part.eval()
        try:
            yield
        finally:
            for n, b in module.named_buffers():
                if n in shared:
                    b.copy_(shared[n])


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while, inside `training`."""
    with exclusive(module), _same_modes_after(module):
        module.eval()
        yield


def draws(module: nn.Module) -> bool:
    """Whether `module` drops anything in its present mode."""
    return any(m.training and getattr(m, "p", 0) for m in module.modules() if isinstance(m, nn.modules.dropout._DropoutNd))


def split_frozen(module: nn.Module, chosen: Sequence[str]) -> tuple[nn.Module | None, nn.Module]:
    """The leading layers of a Sequential without `chosen` tensors and dropout, and the rest under its own names.

    The first can be computed once for every example; None where there are none. Other modules are not split.
    """
    if not isinstance(module, nn.Sequential):
        return None, module
    children = list(module.named_children())
    kept = [draws(child) or any(n.startswith(f"{name}.") for n in chosen) for name, child in children]
    count = [*kept, True].index(True)
    rest = nn.Sequential(OrderedDict(children[count:]))
    rest.training = module.training
    return (nn.Sequential(OrderedDict(children[:count])) if count else None), rest
