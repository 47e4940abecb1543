"""The denoiser of whole networks: a token a filter, which attends to the examples of the support set one by one."""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mcdi.methods.mcdi.layers import Block, perceptron_of, time_features

SAME_CLASS, OWN_CLASS = 0, 1  # relations of two tokens: examples of one class; an example, and the row of its class


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

    A token holds its filter's place in the network (an embedding), x_t, and t. Rows of a classifier's last layer have no place
    of their own: they hold the mean of their class's examples, so that classes may be renumbered and examples reordered. That
    two examples are of one class, or a row is theirs, is a learnt bias of the attention. Every layer has its own projections
    from and to filters. They write weights in units of their own, not of the spread of weights over tasks: trained weights of
    all tasks are near their mean, and a network that is trained by its tasks' loss has a longer way to go.

    Args:
        size, cond_size, units: D, numbers of an example with its label, and U.
        blocks: (filters, numbers a filter) of every layer, see WeightSpace.
        spread: (kinds of units, 1), standard deviations by which x and the output are divided; None is 1.
        generated: (kinds of units, D), ones where a number is every task's own, zeros where it is the learnt base's; None is 1.
        shape: of an example.
        way: classes, or 0 where the labels are real numbers.
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
        width: int = 96,
        depth: int = 3,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width = {width} is no multiple of heads = {heads}")
        self.size, self.width, self.way, self.example_size = size, width, way, math.prod(shape)
        self.any_units = way > 0
        self.blocks_of_filters = tuple((int(rows), int(numbers)) for rows, numbers in blocks)
        self.placed = units - way  # filters with a place of their own: all but rows of the classifier
        self.place = nn.Parameter(torch.randn(self.placed + (way > 0), width) * 0.5)
        self.base = nn.Parameter(torch.zeros(self.placed + (way > 0), size))
        self.spread: Tensor
        self.generated: Tensor
        # The settings and the statistics of the weights give both: no file holds them.
        scales = {"spread": spread, "generated": generated}
        for name, values in scales.items():
            self.register_buffer(name, torch.ones(len(self.base), 1) if values is None else values, persistent=False)
        self.embed = example_embedding(shape, width)
        self.label = nn.Linear(width if way else cond_size - self.example_size, width)
        self.response = nn.Linear(response, width) if response else None
        self.reads = nn.ModuleList(nn.Linear(numbers, width) for _, numbers in self.blocks_of_filters)
        self.time = perceptron_of(width, width)
        self.relations = nn.Parameter(torch.zeros(depth, 2, heads))
        self.layers = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.writes = nn.ModuleList(nn.Linear(width, numbers) for _, numbers in self.blocks_of_filters)
        for parameter in itertools.chain.from_iterable(layer.parameters() for layer in self.writes):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor, mask: Tensor, response: Tensor | None = None) -> Tensor:
        examples, labels = cond.split([self.example_size, cond.shape[-1] - self.example_size], -1)
        embedded = self.embed(examples.flatten(0, 1)).unflatten(0, examples.shape[:2])
        units = mask.shape[1]
        filters = self._per_filter(self.place, units) + self._each_layer(self.reads, x)
        relations = None
        if self.way:
            member = labels.transpose(1, 2)  # (B, way, S)
            rows = self.label(member @ embedded / member.sum(-1, keepdim=True).clamp(min=1))
            filters = torch.cat([filters[:, : self.placed], filters[:, self.placed :] + rows], 1)
            embedded = embedded + labels @ rows
            relations = self._relations(member)
        else:
            embedded = embedded + self.label(labels)
        if self.response is not None and response is not None:
            embedded = embedded + self.response(response)
        h = torch.cat([filters, embedded], 1)
        exists = F.pad(mask, (0, embedded.shape[1]), value=True)
        time = self.time(time_features(t, self.width))
        for layer, strength in zip(self.layers, self.relations, strict=True):
            bias = 0.0 if relations is None else torch.einsum("brij,rh->bhij", relations, strength)
            h = layer(h, time, exists, bias)
        difference = self._each_layer(self.writes, self.norm(h[:, :units]), self.size)
        weights = self._per_filter(self.base, units) + difference * self._per_filter(self.generated, units)
        return weights / self._per_filter(self.spread, units)

    def _per_filter(self, values: Tensor, units: int) -> Tensor:
        """One row a filter, the last one for every row of the classifier: (placed + 1, n) -> (U, n)."""
        if not self.way:
            return values
        return torch.cat([values[: self.placed], values[self.placed :].expand(units - self.placed, -1)])

    def _each_layer(self, maps: nn.ModuleList, h: Tensor, pad_to: int | None = None) -> Tensor:
        """Every layer's own map of its filters: (B, U, n) -> (B, U, width), or padded with zeros to `pad_to` numbers."""
        rows = [rows for rows, _ in self.blocks_of_filters]
        parts = h.split([*rows[:-1], h.shape[1] - sum(rows[:-1])], 1)
        out = [m(part[..., : m.in_features]) for m, part in zip(maps, parts, strict=True)]
        return torch.cat(out if pad_to is None else [F.pad(part, (0, pad_to - part.shape[-1])) for part in out], 1)

    def _relations(self, member: Tensor) -> Tensor:
        """Which tokens are of one class: (B, way, S) -> (B, 2, U + S, U + S)."""
        way, count = member.shape[1:]
        same = F.pad(member.transpose(1, 2) @ member, (self.placed + way, 0, self.placed + way, 0))
        own = F.pad(member, (self.placed + way, 0, self.placed, count))
        return torch.stack([same, own + own.transpose(1, 2)], 1)
