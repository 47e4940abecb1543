"""What does a network's computation look like as a graph? Its operations, and the tensors that are generated, are the nodes."""

from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from mcdi.weights import WeightSpace

CUTOFF = 50  # the longest path that counts, as published


class Step(NamedTuple):
    """One operation: its kind, the names of its parameters and buffers, and the operations that it reads."""

    name: str
    kind: str
    owns: Sequence[str]
    reads: Sequence[str]


class Graph(NamedTuple):
    """kinds: what each of n nodes is; tensors: the names that it generates, none for an operation; edges: along the forward
    pass. An operation with generated tensors is the chain of them. All tensors that have a row a class are one node, "row", of
    which a task has as many copies as classes."""

    kinds: tuple[str, ...]
    tensors: tuple[tuple[str, ...], ...]
    edges: tuple[tuple[int, int], ...]

    def distances(self) -> Tensor:
        """Steps of the shortest directed path from node to node, (n, n); 0 where there is none within CUTOFF, and to itself."""
        found = torch.zeros(len(self.kinds), len(self.kinds), dtype=torch.long)
        step = torch.zeros(found.shape)
        for i, j in self.edges:
            step[i, j] = 1
        reached = torch.eye(len(found))
        for length in range(1, CUTOFF + 1):
            reached = ((reached @ step) > 0).float()
            found[(found == 0) & (reached > 0)] = length
        return found.fill_diagonal_(0)

    def config(self) -> dict[str, Any]:
        return {"kinds": list(self.kinds), "tensors": [list(t) for t in self.tensors], "edges": [list(e) for e in self.edges]}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Graph":
        edges = tuple((int(i), int(j)) for i, j in config["edges"])
        return cls(tuple(config["kinds"]), tuple(tuple(t) for t in config["tensors"]), edges)


def graph_of(module: nn.Module, space: WeightSpace) -> Graph:
    """As torch.fx traces `module`; one that it cannot trace is taken for its layers one after another."""
    try:
        steps = _traced(module)
    except Exception:  # whatever a module does to a stand-in for its input
        steps = _in_order(module)
    return _assembled(steps, space)


def _own(name: str, module: nn.Module, recurse: bool) -> list[str]:
    tensors = chain(module.named_parameters(recurse=recurse), module.named_buffers(recurse=recurse))
    return [f"{name}.{n}" if name else n for n, _ in tensors]


def _traced(module: nn.Module) -> list[Step]:
    steps = []
    for node in fx.Tracer().trace(module).nodes:
        if node.op == "get_attr":
            continue
        kind, owns = node.op, [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
        if node.op == "call_module":
            called = module.get_submodule(str(node.target))
            kind, owns = type(called).__name__, owns + _own(str(node.target), called, recurse=True)
        elif node.op in ("call_function", "call_method"):
            kind = getattr(node.target, "__name__", str(node.target))
        steps.append(Step(node.name, kind, owns, [n.name for n in node.all_input_nodes if n.op != "get_attr"]))
    return steps


def _in_order(module: nn.Module) -> list[Step]:
    steps = [Step("placeholder", "placeholder", [], [])]
    for name, part in module.named_modules():
        owns = _own(name, part, recurse=False)
        computes = type(part).forward is not nn.Module.forward  # an empty list of modules does not
        if owns or (computes and not any(True for _ in part.children())):
            steps.append(Step(f"module {name}", type(part).__name__, owns, [steps[-1].name]))
    return [*steps, Step("output", "output", [], [steps[-1].name])]


def _assembled(steps: Sequence[Step], space: WeightSpace) -> Graph:
    kinds: list[str] = []
    tensors: list[tuple[str, ...]] = []
    edges: dict[tuple[int, int], None] = {}  # a set that keeps its order
    rows = tuple(n for n in space.spec if space.unit == "row" and n not in space.shared)
    place: dict[str, int] = {}

    def node(kind: str, names: tuple[str, ...] = ()) -> int:
        kinds.append(kind)
        tensors.append(names)
        place.update(dict.fromkeys(names, len(kinds) - 1))
        return len(kinds) - 1

    def of(tensor: str, kind: str) -> int:
        if tensor in place:
            return place[tensor]
        return node("row", rows) if tensor in rows else node(f"{kind}.{tensor.rpartition('.')[2]}", (tensor,))

    last: dict[str, int] = {}
    for step in steps:
        own = [of(n, step.kind) for n in step.owns if n in space.spec] or [node(step.kind)]
        last[step.name] = own[-1]
        pairs = [*((last[n], own[0]) for n in step.reads), *pairwise(own)]
        edges.update(dict.fromkeys((i, j) for i, j in pairs if i != j))
    for name in space.spec:  # what no operation reads
        of(name, "unread")
    return Graph(tuple(kinds), tuple(tensors), tuple(edges))
