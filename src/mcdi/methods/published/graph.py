"""A network's computation as a graph: its operations, and the tensors that are generated, are the nodes."""

from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from mcdi.weights import WeightSpace

CUTOFF = 50  # the longest path that counts, as published


class Operation(NamedTuple):
    """Its kind, the names of its parameters and buffers, and the operations that it reads."""

    name: str
    kind: str
    tensors: Sequence[str]
    inputs: Sequence[str]


class Graph(NamedTuple):
    """kinds: what each of n nodes is; tensors: the names that it generates, none for an operation; edges: along the forward
    pass. An operation with generated tensors is the chain of them. All tensors that have a row a class are one node, "row", of
    which a task has as many copies as classes."""

    kinds: tuple[str, ...]
    tensors: tuple[tuple[str, ...], ...]
    edges: tuple[tuple[int, int], ...]

    def distances(self) -> Tensor:
        """Steps of the shortest directed path from node to node, (n, n); 0 where there is none within CUTOFF, and to itself."""
        lengths = torch.zeros(len(self.kinds), len(self.kinds), dtype=torch.long)
        adjacency = torch.zeros(lengths.shape)
        for i, j in self.edges:
            adjacency[i, j] = 1
        reached = torch.eye(len(lengths))
        for length in range(1, CUTOFF + 1):
            reached = ((reached @ adjacency) > 0).float()
            lengths[(lengths == 0) & (reached > 0)] = length
        return lengths.fill_diagonal_(0)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Graph":
        """Inverse of `_asdict`, from JSON."""
        edges = tuple((int(i), int(j)) for i, j in config["edges"])
        return cls(tuple(config["kinds"]), tuple(tuple(t) for t in config["tensors"]), edges)


def graph_of(module: nn.Module, space: WeightSpace) -> Graph:
    """The graph that torch.fx traces; a module that it cannot trace counts as a sequence of its layers."""
    try:
        operations = _traced(module)
    except Exception:  # a module may do anything to fx's proxy of its input
        operations = _in_order(module)
    return _assembled(operations, space)


def _tensor_names(name: str, module: nn.Module, recurse: bool) -> list[str]:
    tensors = chain(module.named_parameters(recurse=recurse), module.named_buffers(recurse=recurse))
    return [f"{name}.{n}" if name else n for n, _ in tensors]


def _traced(module: nn.Module) -> list[Operation]:
    operations = []
    for node in fx.Tracer().trace(module).nodes:
        if node.op == "get_attr":
            continue
        kind, tensors = node.op, [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
        if node.op == "call_module":
            called = module.get_submodule(str(node.target))
            kind, tensors = type(called).__name__, tensors + _tensor_names(str(node.target), called, recurse=True)
        elif node.op in ("call_function", "call_method"):
            kind = getattr(node.target, "__name__", str(node.target))
        inputs = [n.name for n in node.all_input_nodes if n.op != "get_attr"]
        operations.append(Operation(node.name, kind, tensors, inputs))
    return operations


def _in_order(module: nn.Module) -> list[Operation]:
    operations = [Operation("placeholder", "placeholder", [], [])]
    for name, part in module.named_modules():
        tensors = _tensor_names(name, part, recurse=False)
        computes = type(part).forward is not nn.Module.forward  # an empty list of modules does not
        if tensors or (computes and not any(True for _ in part.children())):
            operations.append(Operation(f"module {name}", type(part).__name__, tensors, [operations[-1].name]))
    return [*operations, Operation("output", "output", [], [operations[-1].name])]


def _assembled(operations: Sequence[Operation], space: WeightSpace) -> Graph:
    kinds: list[str] = []
    tensors: list[tuple[str, ...]] = []
    edges: dict[tuple[int, int], None] = {}  # a set that keeps its order
    rows = tuple(n for n in space.spec if space.unit == "row" and n not in space.shared)
    node_of: dict[str, int] = {}

    def add(kind: str, names: tuple[str, ...] = ()) -> int:
        kinds.append(kind)
        tensors.append(names)
        node_of.update(dict.fromkeys(names, len(kinds) - 1))
        return len(kinds) - 1

    def holder(tensor: str, kind: str) -> int:
        if tensor in node_of:
            return node_of[tensor]
        return add("row", rows) if tensor in rows else add(f"{kind}.{tensor.rpartition('.')[2]}", (tensor,))

    last: dict[str, int] = {}
    for operation in operations:
        generated = [n for n in operation.tensors if n in space.spec]
        nodes = [holder(n, operation.kind) for n in generated] or [add(operation.kind)]
        last[operation.name] = nodes[-1]
        pairs = [*((last[n], nodes[0]) for n in operation.inputs), *pairwise(nodes)]
        edges.update(dict.fromkeys((i, j) for i, j in pairs if i != j))
    for name in space.spec:  # what no operation reads
        holder(name, "unread")
    return Graph(tuple(kinds), tuple(tensors), tuple(edges))
