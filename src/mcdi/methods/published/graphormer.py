"""The network of GHN-3, and the graph that it reads: operations of a network, and tensors that are generated."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from mcdi.errors import McdiError
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


DEGREES = 100  # larger degrees count as this one, as published
# The lengths that have an embedding (PPUDA's); others take the nearest.
CHANNELS = torch.tensor([1, 3, *range(8, 64, 8), *range(64, 4096, 16), *range(4096, 8193, 32)])
SIDES = torch.tensor([*range(1, 12, 2), 14, 16])


def kernel_shape(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """(outputs, inputs, height, width) of a tensor of any shape; ones where it has no such side."""
    outputs, inputs, height, *rest = [*shape, 1, 1, 1][: max(3, len(shape))]
    return outputs, inputs, height, math.prod(rest)


def normalised(raw: Tensor, shape: Sequence[int], name: str) -> Tensor:
    """Decoded numbers as parameters (..., *shape): matrices times sqrt(2 / inputs), scales within [0, 2], other vectors within
    [-1, 1], as published (its sqrt(1 / inputs) for layers without a ReLU is of depth-wise ones)."""
    if len(shape) > 1:
        return raw * (2 / max(1, math.prod(shape[1:]))) ** 0.5
    is_scale = name.rpartition(".")[2] in ("weight", "running_var")
    return 2 * torch.sigmoid(0.5 * raw) if is_scale else torch.tanh(0.2 * raw)


def tiled(tile: Tensor, shape: Sequence[int]) -> Tensor:
    """The tile (..., *smaller) repeated along each of the last sides, and cut to them: -> (..., *shape)."""
    for side, size in enumerate(shape, -len(shape)):
        tile = torch.cat([tile] * -(-size // tile.shape[side]), side).narrow(side, 0, size)
    return tile


def units_of(graph: Graph, space: WeightSpace) -> list[int | None]:
    """The (first) unit that holds each node's tensor; None for operations."""
    numbered = {n: float(node) for node, names in enumerate(graph.tensors, 1) for n in names}
    packed = space.pack({n: torch.full((1, *shape), numbered[n]) for n, (shape, _) in space.spec.items()})[0]
    first = [(packed == node).any(-1).nonzero()[:1].flatten().tolist() for node in range(1, len(graph.kinds) + 1)]
    return [units[0] if units else None for units in first]


class GraphLayer(nn.Module):
    """Self-attention whose logits are biased by the graph, and a perceptron, each with a layer norm before it and a skip."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        """x (B, n, width), bias (heads, n, n), mask (B, n): nodes that exist."""
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        logits = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5 + bias
        attended = logits.masked_fill(~mask[:, None, None], float("-inf")).softmax(-1) @ v
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.perceptron(self.norm2(x))


class Decoder(nn.Module):
    """A node's feature (..., width) -> a parameter tensor: a tile of at most tile[0] x tile[1] x side x side, repeated and cut.
    Vectors have another decoder, whose outputs are weights in the first half and biases in the second."""

    def __init__(self, width: int, tile: tuple[int, int], side: int) -> None:
        super().__init__()
        self.tile, self.side = tile, side
        self.spatial = nn.Linear(width, 4 * width * side**2)
        self.hidden, self.last = nn.Linear(4 * width, 8 * width), nn.Linear(8 * width, tile[0] * tile[1])
        self.vector = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, 2 * max(tile)))
        for small in (self.last, self.vector[-1]):
            assert isinstance(small, nn.Linear)
            small.weight.data.div_(5)
            small.bias.data.zero_()

    def forward(self, h: Tensor, shape: Sequence[int], name: str) -> Tensor:
        """-> (..., *shape), as `normalised` has them."""
        sizes: Sequence[int] = kernel_shape(shape) if len(shape) > 1 else (math.prod(shape),)
        if len(shape) > 1:
            tile = self._tile(h, min(sizes[0], self.tile[0]), min(sizes[1], self.tile[1]), *sizes[2:])
        else:
            tile = self.vector(h).unflatten(-1, (2, -1))[..., 1 if name.endswith("bias") else 0, :]
        return normalised(tiled(tile, sizes).reshape((*h.shape[:-1], *shape)), shape, name)

    def _tile(self, h: Tensor, outputs: int, inputs: int, height: int, width: int) -> Tensor:
        """(..., outputs, inputs, height, width): the first outputs and inputs, the middle of the sides."""
        down, right = (self.side // 2 - size // 2 for size in (height, width))
        window = self.spatial(h).relu().unflatten(-1, (-1, self.side, self.side))
        window = window.narrow(-2, down, height).narrow(-1, right, width).movedim(-3, -1)
        weight, bias = (p.unflatten(0, self.tile)[:outputs, :inputs].flatten(0, 1) for p in (self.last.weight, self.last.bias))
        out = F.linear(self.hidden(window).relu(), weight, bias)  # (..., height, width, outputs * inputs)
        return out.movedim(-1, -3).unflatten(-3, (outputs, inputs))


class GraphHyperNetwork(nn.Module):
    """Node features of kind, shape and position in the graph, and of the task where `condition_size` is not 0 -> parameters."""

    def __init__(
        self, graph: Graph, space: WeightSpace, condition_size: int, width: int, layers: int, heads: int, tile: tuple[int, int]
    ) -> None:
        super().__init__()
        self.graph, self.space = graph, space
        self.row = graph.kinds.index("row") if space.unit == "row" else None
        self.unit = units_of(graph, space)
        names, distances = sorted(set(graph.kinds)), graph.distances()
        adjacent = (distances == 1).long()
        degrees = torch.stack([adjacent.sum(0), adjacent.sum(1)]).clamp(max=DEGREES)
        shapes = torch.stack([self._lengths(tensors) for tensors in graph.tensors])
        self.kind = nn.Buffer(torch.tensor([names.index(k) for k in graph.kinds]), persistent=False)  # (n,)
        self.shape = nn.Buffer(shapes, persistent=False)  # (n, 4), indices in the embeddings of lengths
        self.degrees = nn.Buffer(degrees, persistent=False)  # (2, n), edges in and out
        self.distance = nn.Buffer(torch.stack([distances, distances.T], -1), persistent=False)  # (n, n, 2), in both directions
        self.kinds = nn.Embedding(len(names), width)
        self.channels, self.sides = nn.Embedding(len(CHANNELS) + 1, width // 4), nn.Embedding(len(SIDES) + 1, width // 4)
        self.entering, self.leaving = nn.Embedding(DEGREES + 1, width), nn.Embedding(DEGREES + 1, width)
        self.depth, self.paths = nn.Embedding(CUTOFF + 1, width), nn.Embedding(CUTOFF + 1, width)
        self.bias = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, heads))
        self.condition = nn.Linear(condition_size, width) if condition_size else None
        self.layers = nn.ModuleList(GraphLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        sizes = [kernel_shape(self._shape(n)) for n in space.spec]
        outputs, inputs, *sides = (max(lengths) for lengths in zip(*sizes, strict=True))
        self.decoder = Decoder(width, (min(tile[0], outputs), min(tile[1], inputs)), max(sides))
        for part in self.modules():
            if isinstance(part, nn.Embedding):
                nn.init.trunc_normal_(part.weight, std=part.embedding_dim**-0.5)

    def _shape(self, name: str) -> tuple[int, ...]:
        """Of the part of a tensor that one node holds: of rows, one."""
        shape = self.space.spec[name][0]
        in_rows = self.row is not None and name in self.graph.tensors[self.row]
        return (1, *shape[1:]) if in_rows else shape

    def _lengths(self, names: Sequence[str]) -> Tensor:
        """Four indices in the embeddings of lengths, of a node's (first) tensor; the last ones for an operation."""
        if not names:
            return torch.tensor([len(CHANNELS)] * 2 + [len(SIDES)] * 2)
        sizes = torch.tensor(kernel_shape(self._shape(names[0])))
        tables = (CHANNELS, CHANNELS, SIDES, SIDES)
        return torch.stack([(lengths - size).abs().argmin() for lengths, size in zip(tables, sizes, strict=True)])

    def features(self) -> Tensor:
        """Node features that all tasks have in common, (n, width): kind + shape + degrees + distance from the input."""
        lengths = [*self.channels(self.shape[:, :2]).unbind(1), *self.sides(self.shape[:, 2:]).unbind(1)]
        position = self.entering(self.degrees[0]) + self.leaving(self.degrees[1]) + self.depth(self.distance[0, :, 0])
        return self.kinds(self.kind) + torch.cat(lengths, -1) + position

    def _task_nodes(self, units: int) -> tuple[Tensor, Tensor]:
        """A task's nodes (N,), the row node once a class, and the unit (N,) that each holds, -1 for an operation."""
        pairs: list[tuple[int, int]] = []
        for node, unit in enumerate(self.unit):
            held = -1 if unit is None else unit + units - self.space.U
            pairs += [(node, row) for row in (range(units - self.space.extra) if node == self.row else [held])]
        index, unit_of = torch.tensor(pairs, device=self.kind.device).unbind(1)
        return index, unit_of

    def forward(self, cond: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """cond (B, U, C), mask (B, U) -> {name: (B, *shape)}, of rows as many as classes."""
        if self.row is None and mask.shape[1] != self.space.U:
            raise McdiError("ghn-3 makes whole networks for as many classes as it was trained with: give a task of as many")
        index, unit = self._task_nodes(mask.shape[1])
        has_unit = unit >= 0
        x = self.features()[index].expand(len(mask), -1, -1)
        if self.condition is not None:
            x = x + self.condition(cond)[:, unit] * has_unit[:, None]
        bias = self.bias(self.paths(self.distance).flatten(-2))[index][:, index].permute(2, 0, 1)
        for layer in self.layers:
            x = layer(x, bias, mask[:, unit] | ~has_unit)
        x, out = self.norm(x), {}
        for node, names in enumerate(self.graph.tensors):
            h = x[:, index == node]
            for name in names:
                value, shape = self.decoder(h, self._shape(name), name), self.space.spec[name][0]
                out[name] = value.reshape(len(mask), h.shape[1], *shape[1:]) if node == self.row else value.reshape(-1, *shape)
        return out
