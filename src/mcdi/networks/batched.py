"""One module with the weights of N tasks: parameters and buffers of all tasks in one tensor each, {name: (N, *shape)}.

Training differs from that of one network: frozen parts behave as in evaluation, running statistics belong to a task, and
dropout masks do not depend on the other tasks of the batch.

torch runs a module with other tensors by swapping them in the module itself, and its mode is an attribute. Whatever does
either holds the module's lock, so that threads can share the module.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mcdi.errors import McdiError
from mcdi.networks.grouped import State as State
from mcdi.networks.grouped import channels_last, run, runs
from mcdi.networks.per_task import PerTask

_VECTORISES = WeakKeyDictionary[nn.Module, dict[bool, bool]]()
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
    names, places = list(state), _places(module)

    def one(key: Tensor | None, inputs: Tensor, *values: Tensor) -> Tensor:
        with PerTask(key):
            state = dict(zip(names, values, strict=True))
            own = {n: state[first] for n, first in places.items() if first in state}
            return torch.func.functional_call(module, own, (inputs,), tie_weights=False)

    refused = f"{type(module).__name__} draws random numbers that are no function of the task: only nn.Dropout may draw"
    # On a CPU the grouped convolution that vmap makes is slower than N plain ones; and vmap does not know every function.
    plain = x.device.type == "cpu" and (len(x) == 1 or any(p.ndim >= 4 for p in state.values()))
    if plain or not _vectorises(module, one, keys, x, state):
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


def _places(module: nn.Module) -> dict[str, str]:
    """{name: the first name of its tensor} of every place that holds one. torch swaps tied tensors too, but leaves those of a
    module that stands under two names swapped."""
    places, first = dict[str, str](), dict[int, str]()
    for prefix, part in module.named_modules():  # each once
        for n, t in (*part._parameters.items(), *part._buffers.items()):
            if t is not None:
                name = f"{prefix}.{n}" if prefix else n
                places[name] = first.setdefault(id(t), name)
    return places


def _vectorises(module: nn.Module, one: Callable[..., Tensor], keys: Tensor | None, x: Tensor, state: State) -> bool:
    """Whether vmap runs a module, tried once for each of its modes on a copy of one task: recurrent layers, for instance, and
    control flow that depends on data are run task by task."""
    known = _VECTORISES.setdefault(module, {})
    if module.training not in known:
        few = [t[:1].detach().clone() for t in (x, *state.values())]
        try:
            with torch.no_grad():
                torch.func.vmap(one, in_dims=(None if keys is None else 0, *[0] * len(few)))(
                    None if keys is None else keys[:1], *few
                )
            known[module.training] = True
        except RuntimeError as error:
            known[module.training] = "randomness" in str(error)  # which is refused where it is run
    return known[module.training]


def tasks_at_once(state: State, x: Tensor) -> int:
    """How many tasks' graphs should be in memory at once: on a CPU few, where images are convolved; they stay in cache."""
    convolves = x.device.type == "cpu" and any(p.ndim >= 4 for p in state.values())
    return max(1, 800 // x.shape[1]) if convolves else len(x)


class RandomOps(TorchDispatchMode):
    """Detects random operations of this thread: `any`. Torch marks some also where they draw nothing, such as attention without
    dropout."""

    any = False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            defaults = {a.name: a.default_value for a in func._schema.arguments}
            given = defaults | dict(zip(defaults, args, strict=False)) | (kwargs or {})
            self.any = self.any or (given.get("dropout_p") != 0 and given.get("training") is not False)
        return func(*args, **(kwargs or {}))


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
    """Whether `module` drops anything in its present mode; code that is not torch's own may call dropout as a function."""
    return any(m.training and _may_drop(m) for m in module.modules())


def _may_drop(module: nn.Module) -> bool:
    dropout = getattr(module, "p", 0) if isinstance(module, nn.modules.dropout._DropoutNd) else 0
    dropout = module.dropout if isinstance(module, nn.MultiheadAttention) else dropout
    return bool(dropout) or not type(module).__module__.startswith("torch.")


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
