"""The denoiser of whole networks: a token a filter, or several of a large one. They attend to single examples."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mcdi.methods.mcdi.layers import Block, perceptron_of, time_features

SAME_CLASS, OWN_CLASS = 0, 1  # relations of two tokens: examples of one class; an example, and the row of its class


class Layer(NamedTuple):
    """A layer of the generated network: filters of so many numbers, each in so many tokens of at most `size` numbers."""

    filters: int
    numbers: int
    tokens: int
    size: int


def example_embedding(shape: Sequence[int], width: int) -> nn.Module:
    """Examples (N, X) of `shape` -> (N, width): strided convolutions of an image (C, H, W), a perceptron of anything else."""
    size = math.prod(shape)
    if len(shape) != 3:
        return nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
    layers: list[nn.Module] = [nn.Unflatten(-1, tuple(shape))]
    (inputs, *sides), outputs = shape, 16
    while max(sides) > 4:
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.SiLU()]
        inputs, outputs, sides = outputs, 32, [-(-side // 2) for side in sides]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs * math.prod(sides), width))


class FilterTransformer(nn.Module):
    """Tokens of filters and of single support examples attend to each other; every filter is a difference to a learnt one.

    A token holds its place in the network (an embedding), t, and x_t of its filter, or of one piece of a large filter. Rows of
    a classifier's last layer have no place of their own: they hold the mean of their class's examples, so that classes may be
    renumbered and examples reordered. That two examples are of one class, or a row is theirs, is a learnt bias of the
    attention. Every layer has its own projections from and to filters. They write weights in units of their own, not of the
    spread of weights over tasks: trained weights of all tasks are near their mean, and a network that is trained by its tasks'
    loss has a longer way to go.

    Args:
        size, cond_size, units: D, numbers of an example with its label, and U.
        blocks: (filters, numbers a filter) of every layer, see WeightSpace.
        spread: (kinds of units, 1), standard deviations by which x and the output are divided; None is 1.
        generated: (kinds of units, D), ones where a number is every task's own, zeros where it is the learnt base's; None is 1.
        shape: of an example.
        way: classes, or 0 where the labels are real numbers.
        piece: most numbers of a filter in one token.
        response: numbers that the tokens of examples also hold: what the network of x_t does on them.
        width, depth, heads: of the transformer.

    Source: a transformer that generates convolutions from a support set is the HyperTransformer (2201.04182); the learnt base
        network and the symmetries are our choices.
    """

    def __init__(
        self,
        size: int,
        cond_size: int,
        units: int,
        *,
        blocks: Sequence[Sequence[int]],
        spread: Tensor | None = None,
        generated: Tensor | None = None,
        shape: Sequence[int],
        way: int,
        response: int = 0,
        piece: int = 512,
        width: int = 96,
        depth: int = 3,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width = {width} is no multiple of heads = {heads}")
        if piece < 1:
            raise ValueError(f"piece = {piece} must be at least 1")
        self.size, self.width, self.way, self.example_size = size, width, way, math.prod(shape)
        self.any_units = way > 0
        self.parts = tuple(Layer(int(n), int(k), -(-int(k) // piece), min(int(k), piece)) for n, k in blocks)
        self.placed = units - way  # filters of their own: all but rows of the classifier
        of_a_class = self.parts[-1].tokens if way else 0
        self.placed_tokens = sum(part.filters * part.tokens for part in self.parts) - way * of_a_class
        self.place = nn.Parameter(torch.randn(self.placed_tokens + of_a_class, width) * 0.5)
        self.base = nn.Parameter(torch.zeros(self.placed + (way > 0), size))
        self.spread: Tensor
        self.generated: Tensor
        # The settings and the statistics of the weights give both: no file holds them.
        ones = torch.ones(len(self.base), 1)
        self.register_buffer("spread", ones if spread is None else spread, persistent=False)
        self.register_buffer("generated", ones if generated is None else generated, persistent=False)
        self.embed = example_embedding(shape, width)
        self.label = nn.Linear(width if way else cond_size - self.example_size, width)
        self.response = nn.Linear(response, width) if response else None
        self.reads = nn.ModuleList(nn.Linear(part.size, width) for part in self.parts)
        self.time = perceptron_of(width, width)
        self.relations = nn.Parameter(torch.zeros(depth, 2, heads))
        self.layers = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.writes = nn.ModuleList(nn.Linear(width, part.size) for part in self.parts)
        for parameter in itertools.chain.from_iterable(layer.parameters() for layer in self.writes):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor, mask: Tensor, response: Tensor | None = None) -> Tensor:
        examples, labels = cond.split([self.example_size, cond.shape[-1] - self.example_size], -1)
        embedded = self.embed(examples.flatten(0, 1)).unflatten(0, examples.shape[:2])
        units = mask.shape[1]
        filters = self._places(units) + self._read(x)
        relations: tuple[Tensor, ...] = ()
        if self.way:
            member = labels.transpose(1, 2)  # (B, way, S)
            rows = self.label(member @ embedded / member.sum(-1, keepdim=True).clamp(min=1))
            embedded = embedded + labels @ rows
            member, rows = (each.repeat_interleave(self.parts[-1].tokens, 1) for each in (member, rows))
            filters = torch.cat([filters[:, : self.placed_tokens], filters[:, self.placed_tokens :] + rows], 1)
            relations = self._relations(labels, member)
        else:
            embedded = embedded + self.label(labels)
        if self.response is not None and response is not None:
            embedded = embedded + self.response(response)
        h = torch.cat([filters, embedded], 1)
        exists = F.pad(self._of_tokens(mask), (0, embedded.shape[1]), value=True)
        time = self.time(time_features(t, self.width))
        for layer, strength in zip(self.layers, self.relations, strict=True):
            bias: Tensor | float = 0.0
            for relation, each in zip(relations, strength, strict=False):  # there may be none
                bias = bias + relation[:, None] * each[:, None, None]
            h = layer(h, time, exists, bias)
        difference = self._write(self.norm(h[:, : filters.shape[1]]))
        weights = self._per_filter(self.base, units) + difference * self._per_filter(self.generated, units)
        return weights / self._per_filter(self.spread, units)

    def _per_filter(self, values: Tensor, units: int) -> Tensor:
        """One row a filter, the last one for every row of the classifier: (placed + 1, n) -> (U, n)."""
        if not self.way:
            return values
        return torch.cat([values[: self.placed], values[self.placed :].expand(units - self.placed, -1)])

    def _places(self, units: int) -> Tensor:
        """The place of every token: (tokens, width)."""
        own, of_a_class = self.place[: self.placed_tokens], self.place[self.placed_tokens :]
        return torch.cat([own, of_a_class.repeat(units - self.placed, 1)]) if self.way else own

    def _layers(self, h: Tensor, counts: Sequence[int]) -> Iterator[tuple[Tensor, Layer]]:
        """Filters or tokens (B, n, ...) of every layer; the last layer has what is left."""
        parts = h.split([*counts[:-1], h.shape[1] - sum(counts[:-1])], 1)
        return zip(parts, self.parts, strict=True)

    def _filters(self, h: Tensor) -> Iterator[tuple[Tensor, Layer]]:
        return self._layers(h, [part.filters for part in self.parts])

    def _of_tokens(self, mask: Tensor) -> Tensor:
        """Which tokens exist: (B, U) -> (B, tokens)."""
        return torch.cat([exists.repeat_interleave(layer.tokens, 1) for exists, layer in self._filters(mask)], 1)

    def _read(self, x: Tensor) -> Tensor:
        """Every layer's own map of its filters, or their pieces: (B, U, D) -> (B, tokens, width)."""
        out = []
        for reads, (part, layer) in zip(self.reads, self._filters(x), strict=True):
            whole = F.pad(part[..., : layer.numbers], (0, layer.tokens * layer.size - layer.numbers))
            out.append(reads(whole.unflatten(-1, (layer.tokens, layer.size)).flatten(1, 2)))
        return torch.cat(out, 1)

    def _write(self, h: Tensor) -> Tensor:
        """Inverse of `_read`, padded with zeros: (B, tokens, width) -> (B, U, D)."""
        out, counts = [], [layer.filters * layer.tokens for layer in self.parts]
        for writes, (part, layer) in zip(self.writes, self._layers(h, counts), strict=True):
            whole = writes(part).unflatten(1, (-1, layer.tokens)).flatten(2)[..., : layer.numbers]
            out.append(F.pad(whole, (0, self.size - layer.numbers)))
        return torch.cat(out, 1)

    def _relations(self, labels: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
        """Which tokens are of one class: classes of examples (B, S, way), examples of tokens (B, tokens of classes, S) ->
        two of (B, tokens + S, tokens + S)."""
        count, before = labels.shape[1], self.placed_tokens + member.shape[1]
        same = F.pad(labels @ labels.transpose(1, 2), (before, 0, before, 0))
        own = F.pad(member, (before, 0, self.placed_tokens, count))
        return same, own + own.transpose(1, 2)
