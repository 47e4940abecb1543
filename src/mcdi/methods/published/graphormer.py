"""Which network turns a computation graph into the parameters of its nodes? GHN-3's (2303.04143): a Transformer, a decoder."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from mcdi.methods.published.graph import CUTOFF, Graph
from mcdi.weights import WeightSpace

DEGREES = 100  # more edges at a node than these count as these, as published
# What lengths are told apart (PPUDA's); others count as the nearest.
CHANNELS = torch.tensor([1, 3, *range(8, 64, 8), *range(64, 4096, 16), *range(4096, 8193, 32)])
SIDES = torch.tensor([*range(1, 12, 2), 14, 16])


def four(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """(outputs, inputs, height, width) of a tensor of any shape; ones where it has no such side."""
    outputs, inputs, height, *rest = [*shape, 1, 1, 1][: max(3, len(shape))]
    return outputs, inputs, height, math.prod(rest)


def fan_in(raw: Tensor, shape: Sequence[int], name: str) -> Tensor:
    """What the decoder says, as parameters (..., *shape): matrices times sqrt(2 / inputs), scales within [0, 2], other vectors
    within [-1, 1], as published (its sqrt(1 / inputs) for layers without a ReLU is of depth-wise ones)."""
    if len(shape) > 1:
        return raw * (2 / max(1, math.prod(shape[1:]))) ** 0.5
    around_one = name.rpartition(".")[2] in ("weight", "running_var")
    return 2 * torch.sigmoid(0.5 * raw) if around_one else torch.tanh(0.2 * raw)


def repeated(tile: Tensor, shape: Sequence[int]) -> Tensor:
    """The tile (..., *smaller) again and again along each of the last sides, and cut to them: -> (..., *shape)."""
    for side, size in enumerate(shape, -len(shape)):
        times = -(-size // tile.shape[side])
        tile = torch.cat([tile] * times, side).narrow(side, 0, size)
    return tile


def units_of(graph: Graph, space: WeightSpace) -> list[int | None]:
    """The (first) unit that holds each node's tensor; None for operations."""
    numbered = {n: float(node) for node, names in enumerate(graph.tensors, 1) for n in names}
    held = space.pack({n: torch.full((1, *shape), numbered[n]) for n, (shape, _) in space.spec.items()})[0]
    first = [(held == node).any(-1).nonzero()[:1].flatten().tolist() for node in range(1, len(graph.kinds) + 1)]
    return [units[0] if units else None for units in first]


class Layer(nn.Module):
    """Self-attention whose logits are biased by the graph, and a perceptron, each after its layer norm and beside a skip."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, bias: Tensor, there: Tensor) -> Tensor:
        """x (B, n, width), bias (heads, n, n), there (B, n): nodes that are looked at."""
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        logits = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5 + bias
        read = logits.masked_fill(~there[:, None, None], float("-inf")).softmax(-1) @ v
        x = x + self.out(read.transpose(1, 2).flatten(2))
        return x + self.perceptron(self.norm2(x))


class Decoder(nn.Module):
    """A node's feature (..., width) -> a parameter tensor: a tile of at most tile[0] x tile[1] x side x side, repeated and cut.
    Vectors have a decoder of their own, whose first half are weights, the second biases."""

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
        """-> (..., *shape), as `fan_in` has them."""
        if len(shape) < 2:
            which = 1 if name.endswith("bias") else 0
            tile = self.vector(h).unflatten(-1, (2, -1))[..., which, :]
            return fan_in(repeated(tile, [math.prod(shape)]).reshape((*h.shape[:-1], *shape)), shape, name)
        sizes = four(shape)
        tile = self._tile(h, min(sizes[0], self.tile[0]), min(sizes[1], self.tile[1]), *sizes[2:])
        return fan_in(repeated(tile, sizes).reshape((*h.shape[:-1], *shape)), shape, name)

    def _tile(self, h: Tensor, outputs: int, inputs: int, height: int, width: int) -> Tensor:
        """(..., outputs, inputs, height, width): the first outputs and inputs, the middle of the sides."""
        down, right = (self.side // 2 - size // 2 for size in (height, width))
        window = self.spatial(h).relu().unflatten(-1, (-1, self.side, self.side))
        window = window.narrow(-2, down, height).narrow(-1, right, width).movedim(-3, -1)
        weight, bias = (p.unflatten(0, self.tile)[:outputs, :inputs].flatten(0, 1) for p in (self.last.weight, self.last.bias))
        out = F.linear(self.hidden(window).relu(), weight, bias)  # (..., height, width, outputs * inputs)
        return out.movedim(-1, -3).unflatten(-3, (outputs, inputs))


class GraphHyperNetwork(nn.Module):
    """Node features of kind, shape and place in the graph, and of the task where `condition_size` is not 0 -> parameters."""

    kind: Tensor  # (n,)
    shape: Tensor  # (n, 4), places in the embeddings of lengths
    degrees: Tensor  # (2, n), edges in and out
    distance: Tensor  # (n, n, 2), there and back

    def __init__(
        self, graph: Graph, space: WeightSpace, condition_size: int, width: int, layers: int, heads: int, tile: tuple[int, int]
    ) -> None:
        super().__init__()
        self.graph, self.space = graph, space
        self.row = graph.kinds.index("row") if space.unit == "row" else None
        self.unit = units_of(graph, space)
        known = self._describe()
        self.kinds = nn.Embedding(known, width)
        self.channels, self.sides = nn.Embedding(len(CHANNELS) + 1, width // 4), nn.Embedding(len(SIDES) + 1, width // 4)
        self.entering, self.leaving = nn.Embedding(DEGREES + 1, width), nn.Embedding(DEGREES + 1, width)
        self.depth, self.paths = nn.Embedding(CUTOFF + 1, width), nn.Embedding(CUTOFF + 1, width)
        self.bias = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, heads))
        self.told = nn.Linear(condition_size, width) if condition_size else None
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        sizes = [four(self._shape(n)) for n in space.spec]
        outputs, inputs, *sides = (max(along) for along in zip(*sizes, strict=True))
        self.decoder = Decoder(width, (min(tile[0], outputs), min(tile[1], inputs)), max(sides))
        for part in self.modules():
            if isinstance(part, nn.Embedding):
                nn.init.trunc_normal_(part.weight, std=part.embedding_dim**-0.5)

    def _describe(self) -> int:
        """Keep what embeddings are looked up by; the number of kinds."""
        known = sorted(set(self.graph.kinds))
        distances = self.graph.distances()
        near = (distances == 1).long()
        for name, values in (
            ("kind", torch.tensor([known.index(k) for k in self.graph.kinds])),
            ("shape", torch.stack([self._lengths(names) for names in self.graph.tensors])),
            ("degrees", torch.stack([near.sum(0), near.sum(1)]).clamp(max=DEGREES)),
            ("distance", torch.stack([distances, distances.T], -1)),
        ):
            self.register_buffer(name, values, persistent=False)
        return len(known)

    def _shape(self, name: str) -> tuple[int, ...]:
        """Of what one node holds of a tensor: of rows, one."""
        shape = self.space.spec[name][0]
        return (1, *shape[1:]) if self._in_rows(name) else shape

    def _in_rows(self, name: str) -> bool:
        return self.row is not None and name in self.graph.tensors[self.row]

    def _lengths(self, names: Sequence[str]) -> Tensor:
        """Four places in the embeddings of lengths, of a node's (first) tensor; the last ones for an operation."""
        if not names:
            return torch.tensor([len(CHANNELS)] * 2 + [len(SIDES)] * 2)
        sizes = torch.tensor(four(self._shape(names[0])))
        return torch.stack(
            [(known - size).abs().argmin() for known, size in zip((CHANNELS,) * 2 + (SIDES,) * 2, sizes, strict=True)]
        )

    def features(self) -> Tensor:
        """What all tasks' nodes begin with, (n, width): kind + shape + degrees + distance from the input."""
        lengths = [*self.channels(self.shape[:, :2]).unbind(1), *self.sides(self.shape[:, 2:]).unbind(1)]
        place = self.entering(self.degrees[0]) + self.leaving(self.degrees[1]) + self.depth(self.distance[0, :, 0])
        return self.kinds(self.kind) + torch.cat(lengths, -1) + place

    def _copies(self, units: int) -> tuple[Tensor, Tensor]:
        """A task's nodes (N,), the row once a class, and the unit (N,) that each holds of the task's, -1 for an operation."""
        found = list[tuple[int, int]]()
        for node, unit in enumerate(self.unit):
            if node == self.row:
                found += [(node, row) for row in range(units - self.space.extra)]
            else:
                found.append((node, -1 if unit is None else unit + units - self.space.U))
        index, unit_of = torch.tensor(found, device=self.kind.device).unbind(1)
        return index, unit_of

    def forward(self, cond: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """cond (B, U, C), mask (B, U) -> {name: (B, *shape)}, of rows as many as there are classes."""
        index, unit = self._copies(mask.shape[1])
        holds = unit >= 0
        x = self.features()[index].expand(len(mask), -1, -1)
        if self.told is not None:
            x = x + self.told(cond)[:, unit] * holds[:, None]
        bias = self.bias(self.paths(self.distance).flatten(-2))[index][:, index].permute(2, 0, 1)
        for layer in self.layers:
            x = layer(x, bias, mask[:, unit] | ~holds)
        x, out = self.norm(x), {}
        for node, names in enumerate(self.graph.tensors):
            h = x[:, index == node]
            for name in names:
                made, shape = self.decoder(h, self._shape(name), name), self.space.spec[name][0]
                out[name] = made.reshape(len(mask), h.shape[1], *shape[1:]) if node == self.row else made.reshape(-1, *shape)
        return out
