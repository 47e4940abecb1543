"""Tasks of the user's own over a module of the user's own, given as two tensors."""

import copy
import hashlib
import re
from collections.abc import Sequence
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mcdi.errors import McdiError, explained
from mcdi.networks import batched
from mcdi.networks.base import LastLayer
from mcdi.networks.own import Describe, Loss, OwnNetwork, check_integers
from mcdi.types import Examples, TaskBatch
from mcdi.utils.names import exactly
from mcdi.utils.random import uniform
from mcdi.utils.settings import check_number
from mcdi.utils.tensors import finite, numbers_of
from mcdi.utils.torch_state import plain_torch
from mcdi.weights import Unit

HELD_OUT = 10  # of so many tasks one is not trained on: the sampler is chosen on these


class OwnTasks:
    """N tasks over one `module`.

    Args:
        module: of the user; it is copied.
        x: (N, S, ...), its inputs.
        y: (N, S) labels, or (N, S, ...) real numbers.
        shots: examples (a class) of the support sets that are drawn; the rest of a task's examples are its queries, and weight
            preparation trains on all. One task in ten is held out.
        loss: of one task, outputs (S, ...) and y -> (); the default is cross-entropy for labels, the mean square otherwise.
        describe: what the generator is told of support sets, x (B, S, ...) and y -> (B, C), in place of OwnNetwork's estimate.
        select, unit: which parameters are generated, see WeightSpace; "filter" for networks of convolutions. Parameters with
            requires_grad = False are frozen: they are not generated.
        head: "prototypes" or "ridge": the last layer of a classifier is solved in closed form, see networks.last_layer.

    Raises:
        McdiError: data that do not fit the module or are too few; a module that torch cannot run with the weights of many
            tasks at once, such as a scripted one. A step of training is tried at once.
    """

    @plain_torch()
    def __init__(
        self,
        module: nn.Module,
        x: Any,
        y: Any,
        *,
        shots: int = 10,
        loss: Loss | None = None,
        describe: Describe | None = None,
        select: str = ".*",
        unit: Unit = "whole",
        head: LastLayer = "generated",
    ) -> None:
        x, y = (numbers_of(values, name).cpu() for values, name in ((x, "the examples x"), (y, "the examples' y")))
        x, y = (t if t.is_floating_point() else t.long() for t in (x, y))
        self.shots: tuple[int, ...] = (shots,)
        _check_module(module)
        kind = _fitting(module, x, y, shots, describe)
        select = _trained(module, select)
        self.downstream = OwnNetwork(module, **kind, loss=loss, describe=describe, select=select, unit=unit, head=head)
        last = -(-len(y) // HELD_OUT)
        self.parts = {"train": Examples(x[:-last], y[:-last]), "val": Examples(x[-last:], y[-last:])}
        if describe is None:
            self.downstream.fit_probe_inputs(self.parts["train"])
        _check_runs(self.downstream, self.parts["train"])
        tensors = (t.detach().cpu().contiguous().flatten().view(torch.uint8) for t in (x, y, *module.state_dict().values()))
        digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()
        self.name = f"own-{digest[:12]}"  # so that no store of other data is resumed

    def __len__(self) -> int:
        """How many tasks there are to train on."""
        return len(self.parts["train"].y)

    def _tasks(self, split: str, seeds: Sequence[int]) -> Examples:
        if split not in self.parts:
            raise McdiError(f"your own tasks have no split {split!r}: give unseen tasks to the generator")
        rows = torch.as_tensor(seeds) % len(self.parts[split].y)  # later seeds: the same tasks, other examples
        return Examples(*(t[rows] for t in self.parts[split]))

    @plain_torch()
    def sample(self, split: str, seeds: Sequence[int], *, draw: int = 0, shots: int | None = None) -> TaskBatch:
        data, shots, net = self._tasks(split, seeds), shots or self.shots[0], self.downstream
        order = torch.from_numpy(uniform(split, seeds, draw, count=data.y.shape[1])).argsort(1)
        if net.regression:
            first = torch.arange(order.shape[1]).expand_as(order) < shots
        else:  # the first `shots` of every class
            seen = F.one_hot(data.y.gather(1, order), net.way)
            first = (seen.cumsum(1) * seen).sum(-1) <= shots
        order = order.gather(1, (~first).int().argsort(dim=1, stable=True))
        rows, cut = torch.arange(len(order))[:, None], shots * net.way
        support, query = (Examples(data.x[rows, p], data.y[rows, p]) for p in (order[:, :cut], order[:, cut:]))
        mask = torch.ones(len(order), net.space.U, dtype=torch.bool)
        return TaskBatch(support, query, mask, torch.as_tensor(seeds))

    def training_data(self, split: str, seeds: Sequence[int]) -> Examples:
        return self._tasks(split, seeds)

    def columns(self, split: str, seeds: Sequence[int]) -> dict[str, Tensor]:
        return {}


def _fitting(module: nn.Module, x: Tensor, y: Tensor, shots: int, describe: Describe | None) -> dict[str, Any]:
    """Arguments of OwnNetwork that the data decide: shapes, classes, how many numbers describe a support set."""
    if x.ndim < 2 or y.ndim < 2 or x.shape[:2] != y.shape[:2] or len(y) < 2:
        raise McdiError(f"x {tuple(x.shape)} and y {tuple(y.shape)} do not match: give (N, S, ...) and (N, S), N >= 2 tasks")
    if describe is None and not x.is_floating_point():
        raise McdiError(f"x of {x.dtype} cannot be compared by distance: give `describe`, or real numbers")
    regression, target = y.is_floating_point(), tuple(y.shape[2:])
    out = _output_shape(module, x)
    squeeze = regression and target == () and out[1:] == (1,)
    wanted = out[:1] if squeeze else out
    if regression and wanted != tuple(y.shape[1:]):
        raise McdiError(f"the module answers {out} for a task's inputs {tuple(x.shape[1:])}, but its y is {tuple(y.shape[1:])}")
    if not regression and (target or len(out) != 2):
        raise McdiError(f"labels y (N, S) go with outputs (S, classes), not y {tuple(y.shape)} and outputs {out}")
    way = 1 if regression else out[-1]
    check_number(int, shots=shots)
    if shots < 1:
        raise McdiError(f"shots = {shots} examples: choose at least 1")
    if not regression:
        _check_labels(y, shots, way)
    elif y.shape[1] <= shots:
        raise McdiError(f"a task has {y.shape[1]} examples: choose shots below that, not {shots}")
    with explained("describe fails on the support set of a task", "give a function of x (B, S, ...) and y to a tensor (B, C)"):
        size = None if describe is None else describe(x[:1], y[:1]).shape[-1]
    kind: dict[str, Any] = {"regression": regression, "squeeze": squeeze, "integer": not x.is_floating_point()}
    return {"example": x.shape[2:], "target": target, "way": way, "described": size, **kind}


def _output_shape(module: nn.Module, x: Tensor) -> tuple[int, ...]:
    """Shape of the module's output for one task's inputs; the user's module keeps its modes and statistics."""
    own = _copied(module).eval()
    given = f"the module does not take a task's inputs, {x.dtype} {tuple(x.shape[1:])}"
    with explained(given, "give x (N, S, ...) whose parts (S, ...) it takes"), torch.no_grad():
        out = own(x[0].clone())
    if not isinstance(out, Tensor):
        raise McdiError(f"the module answers a {type(out).__name__}: wrap it in one that answers one tensor (S, ...)")
    given = f"the module takes {x.shape[1]} examples at once, and not fewer"
    with explained(given, "let it take any number, as by x.flatten(1) in place of x.view"), torch.no_grad():
        own(x[0, :-1].clone())
    if not x.is_floating_point():  # batches of tasks would read others' rows of an embedding
        check_integers(own, x[1:])
    return tuple(out.shape)


def _copied(module: nn.Module) -> nn.Module:
    with explained("the module cannot be copied", "give one that copy.deepcopy takes, made of torch's present layers"):
        return copy.deepcopy(module).cpu().float()


def _check_module(module: Any) -> None:
    """Raises McdiError for modules that can be seen not to run with other weights than their own."""
    if not isinstance(module, nn.Module):
        raise McdiError(f"the module must be an nn.Module, not {type(module).__name__}: wrap it in one")
    parts = list(module.modules())
    if any(isinstance(part, torch.jit.ScriptModule) for part in parts):
        raise McdiError("a scripted module runs with no other weights than its own: give the one that it was made of")
    if any(isinstance(part, nn.DataParallel | nn.parallel.DistributedDataParallel) for part in parts):
        raise McdiError("a module in DataParallel runs with no other weights than its own: give its .module")
    tensors = [*module.parameters(), *module.buffers()]
    if any(nn.parameter.is_lazy(t) for t in tensors):
        raise McdiError("the module has lazy layers, which have no weights yet: call it once on an example first")
    if any(t.is_meta for t in tensors):
        raise McdiError("the module lies on the meta device, where nothing has values: load its weights first")
    if any(isinstance(vars(part).get("forward"), FunctionType) for part in parts):
        raise McdiError("the module has a forward that is a function of its own, which a copy would share: write it in a class")
    if not all(finite(p) for p in module.parameters()):
        raise McdiError("the module holds NaN or infinite weights: give one that is not damaged")
    if not all(isinstance(t, Tensor) for t in module.state_dict().values()):
        raise McdiError("the module's state_dict holds extra state that is no tensor, which no file of a generator can hold")


def _trained(module: nn.Module, select: str) -> str:
    """`select` without the frozen parameters; a tied one counts once."""
    with explained(f"select = {select!r} is no regular expression", "escape its special characters", re.error, TypeError):
        chosen = [n for n, p in module.named_parameters() if re.search(select, n)]
    trained = [n for n, p in module.named_parameters() if n in chosen and p.requires_grad]
    if chosen and not trained:
        raise McdiError(f"all parameters that select = {select!r} matches are frozen (requires_grad = False): unfreeze some")
    return select if trained == chosen else exactly(trained)


def _check_runs(net: OwnNetwork, data: Examples) -> None:
    """Try a step of training and of the functional term, on two tasks with weights of their own.

    Raises McdiError where torch fails, and where the outputs are not those of the module with these weights.
    """
    some = Examples(data.x[:2].clone(), data.y[:2])
    mask = torch.ones(len(some.y), net.space.U, dtype=torch.bool)
    factor = torch.arange(1, 1 + len(some.y)).reshape(-1, 1, 1)
    weights = net.theta0(0, net.space.U) * (1 + 0.1 * factor) + 0.01 * factor
    cannot = "torch cannot run this module with the weights of many tasks at once, or not differentiate it"
    with explained(cannot, "leave out what is no function of inputs and weights, or freeze it"):
        state = net.space.unpack(weights)
        with torch.no_grad():
            out = net.forward(state, some.x)
            alone = [net.with_state({n: t[i] for n, t in state.items()})(data.x[i].clone()) for i in range(len(mask))]
        leaf = weights.clone().requires_grad_()
        torch.autograd.grad(net.loss(leaf, some, mask).sum(), leaf)
        with batched.training(net.module, list(net.space.spec)):
            keys = torch.arange(len(mask)) if batched.draws(net.module) else None
            net.gradients({n: t.clone() for n, t in state.items()}, some, mask, keys)
    if not torch.equal(some.x, data.x[:2]):
        raise McdiError("the module changes its inputs in place: let it work on a copy, as by x.clone()")
    if not torch.allclose(out, torch.stack(alone).reshape(out.shape), rtol=1e-3, atol=1e-4, equal_nan=True):
        raise McdiError("the module answers otherwise with the weights of several tasks: its layers keep references to weights")


def _check_labels(y: Tensor, shots: int, way: int) -> None:
    """Every task needs more examples of every class than a support set takes."""
    if int(y.min()) < 0 or int(y.max()) >= way:
        raise McdiError(f"labels must be 0..{way - 1} for a module with {way} outputs, not {int(y.min())}..{int(y.max())}")
    fewest, where = F.one_hot(y, way).sum(1).min(1).values.min(0)
    if int(fewest) <= shots:
        given = f"task {int(where)} has {int(fewest)} examples of one of its classes"
        raise McdiError(f"{given}: every class needs more than shots = {shots}")
