"""How is a network of your own adapted to tasks of your own? Give the module, and the examples of many tasks as two tensors."""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.stacked import State
from mcdi.tasks.base import Examples, TaskBatch, uniform
from mcdi.tasks.downstream import Network
from mcdi.weights import Unit

Loss = Callable[[Tensor, Tensor], Tensor]  # outputs (S, ...) and y (S, ...) of one task -> ()
Describe = Callable[[Tensor, Tensor], Tensor]  # support sets of B tasks, x (B, S, ...) and y (B, S, ...) -> (B, C)
HELD_OUT = 10  # of so many tasks one is not trained on: the sampler is chosen on these
PROBES = 32  # inputs at which a support set is described
NOISE = 0.1  # of y in its standard deviations, that the description allows for


class OwnNetwork(Network):
    """A module of the user's, copied: theta_0 is what it holds, the condition is what a support set says at fixed `probes`.

    These are inputs of training tasks. The kernel ridge estimate of y there (of the share of every class), and how many
    examples lie near, need no gradient and know nothing of the module. They suit inputs of few numbers, on one scale; for
    images or tokens `describe` takes their place. example, target: shapes of one x and one y. way: classes, or 1. squeeze: the
    module answers (S, 1) where y is (S,). described: how many numbers `describe` gives.
    """

    kind = "own"

    def __init__(
        self,
        module: nn.Module,
        *,
        example: Sequence[int],
        target: Sequence[int],
        way: int,
        real: bool,
        squeeze: bool,
        described: int | None = None,
        loss: Loss | None = None,
        describe: Describe | None = None,
        select: str = ".*",
        unit: Unit = "whole",
    ) -> None:
        if unit == "row":
            raise McdiError("unit = 'row' is for heads of any number of classes: choose whole, layer or a chunk width")
        if (describe is None) != (described is None):
            raise McdiError(
                "this generator is told of support sets by its own `probes`: leave describe out"
                if described is None
                else "this generator is told of support sets by a function of yours: give it as `describe`"
            )
        super().__init__(copy.deepcopy(module), unit=unit, select=select, start="module")
        self.example_shape, self.target_shape = tuple(example), tuple(target)
        self.input_size = torch.Size(self.example_shape).numel()
        self.way, self.real, self.squeeze, self.described = way, real, squeeze, described
        self.select, self.own_loss, self.describe = select, loss, describe
        values = torch.Size(self.target_shape).numel() if real else way
        self.condition_size = PROBES * (1 + values) if described is None else described
        self.probes = torch.zeros(PROBES, self.input_size)
        self.scale = torch.tensor([0.0, 1.0, 1.0])  # mean and std of y, width of the kernel

    def look_at(self, data: Examples, seed: int = 0) -> None:
        """Choose the probes among training examples (N, S, ...), and the scales of x and y."""
        x, y, g = data.x.flatten(0, 1).flatten(1), data.y.float(), torch.Generator().manual_seed(seed)
        self.probes = x[torch.randint(len(x), (PROBES,), generator=g)]
        width = torch.pdist(self.probes).median() / 2
        self.scale = torch.stack([y.mean(), y.std().clamp(min=1e-6), width.clamp(min=1e-6)])

    def condition(self, support: Examples, units: int) -> Tensor:
        found = self._estimate(support) if self.describe is None else self.describe(*support)
        if found.shape != (len(support.y), self.condition_size):
            raise McdiError(
                f"describe gave {tuple(found.shape)} for {len(support.y)} support sets, not "
                f"{(len(support.y), self.condition_size)}: it must give as many numbers for support sets of every size"
            )
        return found[:, None].expand(-1, units, -1)

    def _estimate(self, support: Examples) -> Tensor:
        x, (mean, std, width) = support.x.flatten(2), self.scale.to(support.x.device)
        y = ((support.y - mean) / std).reshape(*x.shape[:2], -1) if self.real else F.one_hot(support.y, self.way) - 1 / self.way
        probes = self.probes.to(x.device).expand(len(x), -1, -1)
        near, own = (torch.exp(-0.5 * (torch.cdist(points, x) / width) ** 2) for points in (probes, x))
        value = near @ torch.linalg.solve(own + NOISE**2 * torch.eye(x.shape[1], device=x.device), y)
        return torch.cat([value.flatten(1), near.sum(-1).log1p()], -1)

    def forward(self, state: State, x: Tensor, keys: Tensor | None = None) -> Tensor:
        out = super().forward(state, x, keys)
        return out[..., 0] if self.squeeze else out

    def criterion(self, out: Tensor, y: Tensor) -> Tensor:
        return super().criterion(out, y) if self.own_loss is None else torch.func.vmap(self.own_loss)(out, y)

    def config(self) -> dict[str, Any]:
        shapes = {"example": list(self.example_shape or ()), "target": list(self.target_shape)}
        sizes = {"way": self.way, "real": self.real, "squeeze": self.squeeze, "described": self.described}
        return {"kind": self.kind, **shapes, **sizes, "select": self.select, "unit": self.space.unit}

    def state(self) -> dict[str, Tensor]:
        own = {f"module.{n}": t.contiguous() for n, t in self.module.state_dict().items()}
        return {"probes": self.probes, "scale": self.scale, **own}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.probes, self.scale = state["probes"], state["scale"]
        try:
            self.module.load_state_dict({n.removeprefix("module."): t for n, t in state.items() if n.startswith("module.")})
        except RuntimeError as error:
            raise McdiError("the module has other parameters than the one the generator was made for: give the same") from error

    def to(self, device: str) -> None:
        self.module.to(device)


class OwnTasks:
    """N tasks over one `module`: x (N, S, ...) are its inputs, y (N, S) labels or (N, S, ...) real numbers.

    shots: examples (a class) of the support sets that are drawn; the rest of a task's examples are its queries, and weight
    preparation trains on all. One task in ten is held out. loss: of one task, outputs (S, ...) and y -> (); by default
    cross-entropy for labels, mean square for real numbers. select, unit: which parameters are generated, see WeightSpace.
    describe: what the generator is told of support sets, x (B, S, ...) and y -> (B, C), in place of `OwnNetwork`'s way.
    Raises McdiError for data that do not go with the module or are too few.
    """

    def __init__(
        self,
        module: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        shots: int = 10,
        loss: Loss | None = None,
        describe: Describe | None = None,
        select: str = ".*",
        unit: Unit = "whole",
    ) -> None:
        x, y = (t.float() if t.is_floating_point() else t.long() for t in (torch.as_tensor(x), torch.as_tensor(y)))
        self.shots: tuple[int, ...] = (shots,)
        kind = _fitting(module, x, y, shots, describe)
        self.downstream = OwnNetwork(module, **kind, loss=loss, describe=describe, select=select, unit=unit)
        last = -(-len(y) // HELD_OUT)
        self.parts = {"train": Examples(x[:-last], y[:-last]), "val": Examples(x[-last:], y[-last:])}
        if describe is None:
            self.downstream.look_at(self.parts["train"])
        known = (t.detach().cpu().contiguous().flatten().view(torch.uint8) for t in (x, y, *module.state_dict().values()))
        mark = hashlib.sha256(b"".join(t.numpy().tobytes() for t in known)).hexdigest()
        self.name = f"own-{mark[:12]}"  # so that no store of other data is resumed

    def __len__(self) -> int:
        """How many tasks there are to train on."""
        return len(self.parts["train"].y)

    def _tasks(self, split: str, seeds: Sequence[int]) -> Examples:
        if split not in self.parts:
            raise McdiError(f"your own tasks have no split {split!r}: keep unseen tasks apart, and give them to the generator")
        rows = torch.as_tensor(seeds) % len(self.parts[split].y)  # later seeds: the same tasks, other examples
        return Examples(*(t[rows] for t in self.parts[split]))

    def sample(self, split: str, seeds: Sequence[int], *, draw: int = 0, shots: int | None = None) -> TaskBatch:
        data, shots, net = self._tasks(split, seeds), shots or self.shots[0], self.downstream
        order = torch.from_numpy(uniform(split, seeds, draw, count=data.y.shape[1])).argsort(1)
        if net.real:
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
    """What the network has to know of the data: shapes, classes, how many numbers describe a support set."""
    if x.ndim < 2 or y.ndim < 2 or x.shape[:2] != y.shape[:2] or len(y) < 2:
        raise McdiError(f"x {tuple(x.shape)} and y {tuple(y.shape)} do not match: give (N, S, ...) and (N, S), N >= 2 tasks")
    if not all(bool(torch.isfinite(t).all()) for t in (x, y)):
        raise McdiError("the examples hold NaN or infinite values: clean them first")
    if describe is None and not x.is_floating_point():
        raise McdiError(f"x of {x.dtype} cannot be compared by distance: give `describe`, or real numbers")
    real, target = y.is_floating_point(), tuple(y.shape[2:])
    out = _answer(module, x[0])
    squeeze = real and target == () and out[1:] == (1,)
    wanted = out[:1] if squeeze else out
    if real and wanted != tuple(y.shape[1:]):
        raise McdiError(f"the module answers {out} for a task's inputs {tuple(x.shape[1:])}, but its y is {tuple(y.shape[1:])}")
    if not real and (target or len(out) != 2):
        raise McdiError(f"labels y (N, S) go with outputs (S, classes), not y {tuple(y.shape)} and outputs {out}")
    way = 1 if real else out[-1]
    _check_counts(y, shots, None if real else way)
    size = None if describe is None else describe(x[:1], y[:1]).shape[-1]
    return dict(example=x.shape[2:], target=target, way=way, real=real, squeeze=squeeze, described=size)


def _answer(module: nn.Module, x: Tensor) -> tuple[int, ...]:
    """Shape of what the module answers for one task's inputs; the user's module keeps its modes and statistics."""
    try:
        with torch.no_grad():
            return tuple(copy.deepcopy(module).eval()(x).shape)
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise McdiError(f"the module does not take a task's inputs, {x.dtype} {tuple(x.shape)}: {reason}") from error


def _check_counts(y: Tensor, shots: int, way: int | None) -> None:
    """Every task needs more examples (of every class) than a support set takes."""
    if shots < 1:
        raise McdiError(f"shots = {shots} examples: choose at least 1")
    if way is None:
        if y.shape[1] <= shots:
            raise McdiError(f"a task has {y.shape[1]} examples: choose shots below that, not {shots}")
        return
    if int(y.min()) < 0 or int(y.max()) >= way:
        raise McdiError(f"labels must be 0..{way - 1} for a module with {way} outputs, not {int(y.min())}..{int(y.max())}")
    fewest, where = F.one_hot(y, way).sum(1).min(1).values.min(0)
    if int(fewest) <= shots:
        raise McdiError(
            f"task {int(where)} has {int(fewest)} examples of one of its classes: every class needs more than shots = {shots}"
        )
