"""The weight space: the generated parameters of a network as (B, U, D) tensors, B tasks, U units of D numbers."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mcdi.errors import McdiError

Unit = Literal["whole", "row", "layer", "filter"] | int
Spec = dict[str, tuple[tuple[int, ...], str]]
Names = tuple[str, ...]
STATISTICS = ("running_mean", "running_var")


def _filter_blocks(spec: Spec) -> tuple[Names, ...]:
    """The tensors of every layer: its matrix or filters, its bias, and a norm behind it that has as many channels."""
    blocks: list[list[str]] = []
    layer: dict[str, list[str]] = {}  # the block that a module's tensors belong to
    for n, (shape, _) in spec.items():
        owner, rows = n.rpartition(".")[0], shape[:1]
        block = layer.get(owner)
        if block is None or spec[block[0]][0][:1] != rows:
            follows = len(shape) == 1 and bool(blocks) and spec[blocks[-1][0]][0][:1] == rows
            block = blocks[-1] if follows else []
            blocks += [] if follows else [block]
            layer.setdefault(owner, block)
        block.append(n)
    return tuple(tuple(block) for block in blocks)


class WeightSpace:
    """The selected parameters of a module, packed as units.

    Running statistics (batch norm) of a layer with selected parameters are packed like parameters, under their own names;
    `buffers` lists them.

    Args:
        module: the network.
        select: a regular expression, matched anywhere in the names of parameters ("head", "norm|bn", ".*").
        unit: "row": one unit per output row of all selected tensors (one class of a classifier head; U may vary by task);
            "filter": one unit per filter, or row of a matrix, of every layer, with its bias and its scale and shift of the norm
            that follows; "layer": one unit per layer with selected parameters; "whole": one unit; n: chunks of n numbers.
        shared: with "row", a regular expression for selected tensors that belong to no row (norms, FiLM). Each is cut into
            chunks of D numbers; these `extra` units follow the rows of every task.
        classes: with "filter", whether the rows of the last layer are classes, of which a task may have any number.

    Raises:
        McdiError: when nothing matches; for parameters that are not real floating point; for "row" and tensors without a
            common first dimension; for `shared` with another unit, or when it matches no tensor or all of them.

    >>> space = WeightSpace(nn.Linear(3, 5), unit="row")
    >>> flat = space.pack({n: p[None] for n, p in nn.Linear(3, 5).named_parameters()})
    >>> tuple(flat.shape)
    (1, 5, 4)
    """

    def __init__(
        self, module: nn.Module, *, select: str = ".*", unit: Unit = "whole", shared: str = "", classes: bool = False
    ) -> None:
        chosen: dict[str, Tensor] = {n: p for n, p in module.named_parameters() if re.search(select, n)}
        if not chosen:
            raise McdiError(
                f"select = {select!r} matches no parameter; choose from: {', '.join(dict(module.named_parameters()))}"
            )
        owners = {n.rpartition(".")[0] for n in chosen}
        statistics = {
            n: b for n, b in module.named_buffers() if n.rpartition(".")[0] in owners and n.rpartition(".")[2] in STATISTICS
        }
        chosen |= statistics
        spec = {n: (tuple(p.shape), str(p.dtype).removeprefix("torch.")) for n, p in chosen.items()}
        in_no_row = tuple(n for n in spec if shared and re.search(shared, n))
        if shared and (unit != "row" or len(in_no_row) in (0, len(spec))):
            matched = f"it matches {', '.join(in_no_row) or 'nothing'} of {', '.join(spec)}"
            raise McdiError(
                f"shared = {shared!r} must leave rows of unit = 'row', not {unit!r} ({matched}): change it or leave it out"
            )
        self._set(spec, tuple(statistics), unit, in_no_row, classes)

    def _set(self, spec: Spec, buffers: Names, unit: Unit, shared: Names, classes: bool) -> None:
        self.spec, self.buffers, self.unit, self.shared = spec, buffers, unit, shared
        self.mean: Tensor | None = None
        self.std: Tensor | None = None
        self.any_rows = unit == "row" or (unit == "filter" and classes)  # whether tasks have any number of classes
        self.extra = self.fixed = 0  # units that are no class: behind the rows with "row", in front of them with "filter"
        self.blocks: tuple[tuple[int, int], ...] = ()  # with "filter": (filters, numbers a filter) of every layer
        dtypes = [getattr(torch, d) for _, d in spec.values()]
        if not all(d.is_floating_point for d in dtypes):
            raise McdiError("only real floating-point parameters can be generated: narrow `select`")
        self.dtype = torch.float32  # holds every narrower type exactly; one float64 parameter makes it float64
        for d in dtypes:
            self.dtype = torch.promote_types(self.dtype, d)
        sizes = {n: torch.Size(s).numel() for n, (s, _) in spec.items()}
        self.parameters = sum(sizes.values())
        if unit == "row":
            rows = {s[0] if s else None for n, (s, _) in spec.items() if n not in shared}
            if len(rows) != 1 or None in rows:
                raise McdiError(f"unit = 'row' needs a common first dimension, not {sorted(map(str, rows))}: narrow `select`")
            first = next(r for r in rows if r is not None)
            self.D = sum(size // first for n, size in sizes.items() if n not in shared) if first else 0
            self.extra = self.fixed = sum(self._chunks(n) for n in shared)
            self.U = first + self.extra
        elif unit == "filter":
            self._blocks = _filter_blocks(spec)
            self.blocks = tuple(((spec[names[0]][0] or (1,))[0], sum(self._row(n) for n in names)) for names in self._blocks)
            self.U, self.D = sum(rows for rows, _ in self.blocks), max(size for _, size in self.blocks)
            self.fixed = self.U - self.blocks[-1][0] if classes else 0
        elif unit == "layer":
            layers: dict[str, int] = {}
            for n, size in sizes.items():
                layers[n.rpartition(".")[0]] = layers.get(n.rpartition(".")[0], 0) + size
            self._layers = layers
            self.U, self.D = len(layers), max(layers.values())
        elif unit == "whole":
            self.U, self.D = 1, self.parameters
        elif isinstance(unit, int) and unit > 0:
            self.U, self.D = -(-self.parameters // unit), unit
        else:
            raise McdiError(f"unknown unit {unit!r}: choose row, filter, layer, whole or a chunk width > 0")

    def pack(self, params: Mapping[str, Tensor]) -> Tensor:
        """{name: (B, *shape)} -> (B, U, D), padded with zeros. Raises McdiError for a missing name or another shape."""
        missing = [n for n in self.spec if n not in params]
        if missing:
            raise McdiError(f"parameters missing: {', '.join(missing)}")
        for n, (shape, _) in self.spec.items():
            got = tuple(params[n].shape[1:])
            of_class = self.any_rows and n not in self.shared and (self.unit == "row" or n in self._blocks[-1])
            if got != shape and not (of_class and got[1:] == shape[1:]):
                raise McdiError(f"{n} has shape {got} in a task: this space needs {shape}")
        parts = {n: params[n].to(self.dtype) for n in self.spec}
        batch, *others = {len(p) for p in parts.values()}
        if others:
            raise McdiError("the parameters are of different numbers of tasks: give one first dimension to all")
        if self.unit == "row":
            rows = torch.cat([p.reshape(batch, p.shape[1], self._row(n)) for n, p in parts.items() if n not in self.shared], -1)
            return torch.cat([rows, *(self._cut(parts[n].reshape(batch, -1), self._chunks(n)) for n in self.shared)], 1)
        if self.unit == "filter":
            layers = [torch.cat([parts[n].reshape(batch, -1, self._row(n)) for n in names], -1) for names in self._blocks]
            return torch.cat([torch.nn.functional.pad(layer, (0, self.D - layer.shape[-1])) for layer in layers], 1)
        if self.unit == "layer":
            units = []
            for layer, size in self._layers.items():
                flat = torch.cat([p.reshape(batch, -1) for n, p in parts.items() if n.rpartition(".")[0] == layer], -1)
                units.append(torch.nn.functional.pad(flat, (0, self.D - size)))
            return torch.stack(units, 1)
        flat = torch.cat([p.reshape(batch, -1) for p in parts.values()], -1)
        return self._cut(flat, self.U)

    def _cut(self, flat: Tensor, units: int) -> Tensor:
        """(B, n) -> (B, units, D), padded with zeros."""
        return torch.nn.functional.pad(flat, (0, units * self.D - flat.shape[1])).reshape(len(flat), units, self.D)

    def _chunks(self, name: str) -> int:
        return -(-torch.Size(self.spec[name][0]).numel() // self.D)

    def rows(self, units: int) -> list[int]:
        """With "filter": how many filters each layer of a task of so many units has."""
        rows = [rows for rows, _ in self.blocks]
        return [*rows[:-1], units - self.fixed] if self.any_rows else rows

    def _row(self, name: str) -> int:
        return torch.Size(self.spec[name][0][1:]).numel()

    def unpack(self, flat: Tensor) -> dict[str, Tensor]:
        """Inverse of `pack`: (B, U, D) -> {name: (B, *shape)} in the parameters' own dtypes; with classes, for any U."""
        units = flat.shape[1] if flat.ndim == 3 and self.any_rows else self.U
        if flat.ndim != 3 or flat.shape[1:] != (units, self.D) or units < self.fixed:
            raise McdiError(f"weights of shape {tuple(flat.shape)} do not fit this space: pass (B, {self.U}, {self.D})")
        out, batch = {}, flat.shape[0]
        if self.unit == "row":
            names = [n for n in self.spec if n not in self.shared]
            rows, *others = flat.split([units - self.extra, *(self._chunks(n) for n in self.shared)], 1)
            for n, part in zip(names, rows.split([self._row(n) for n in names], -1), strict=True):
                out[n] = part.reshape(batch, units - self.extra, *self.spec[n][0][1:])
            for n, part in zip(self.shared, others, strict=True):
                shape = self.spec[n][0]
                out[n] = part.flatten(1)[:, : torch.Size(shape).numel()].reshape(batch, *shape)
        elif self.unit == "filter":
            for layer, part in zip(self._blocks, flat.split(self.rows(units), 1), strict=True):
                sizes = [self._row(n) for n in layer]
                for n, columns in zip(layer, part[..., : sum(sizes)].split(sizes, -1), strict=True):
                    out[n] = columns.reshape(batch, *((part.shape[1],) if self.spec[n][0] else ()), *self.spec[n][0][1:])
        else:
            order = list(self.spec)
            if self.unit == "layer":
                order = [n for layer in self._layers for n in self.spec if n.rpartition(".")[0] == layer]
                vector = torch.cat([flat[:, u, :size] for u, size in enumerate(self._layers.values())], -1)
            else:
                vector = flat.reshape(batch, -1)[:, : self.parameters]
            sizes = [torch.Size(self.spec[n][0]).numel() for n in order]
            for n, part in zip(order, vector.split(sizes, -1), strict=True):
                out[n] = part.reshape(batch, *self.spec[n][0])
        # A generated variance below zero would turn every output into NaN.
        for n in self.buffers:
            if n.endswith("running_var"):
                out[n] = out[n].clamp(min=0)
        return {n: out[n].to(getattr(torch, self.spec[n][1])) for n in self.spec}

    def units(self, rows: int) -> int:
        """Number of units of a task of so many classes: theirs and the others, or U where classes are no units."""
        return rows + self.fixed if self.any_rows else self.U

    def classes(self, units: int) -> int | None:
        """Inverse of `units`; None where classes are no units."""
        return units - self.fixed if self.any_rows else None

    def parted(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Units (..., U, D), or their kinds, as those in front of the classes, the classes, and those behind them."""
        return flat.split([self.fixed - self.extra, flat.shape[-2] - self.fixed, self.extra], -2)

    def for_units(self, start: Tensor, units: int) -> Tensor:
        """A start (U, D) for a task of so many units: of another number of classes every class begins at their mean."""
        front, rows, behind = self.parted(start)
        return start if len(start) == units else torch.cat([front, rows.mean(0).expand(units - self.fixed, -1), behind])

    @property
    def kinds(self) -> int:
        """Number of kinds of units: exchangeable rows are one kind, every other unit is a kind of its own."""
        return 1 + self.fixed if self.any_rows else self.U

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """The trainable parameters: the names of `spec` without running statistics."""
        return tuple(n for n in self.spec if n not in self.buffers)

    def fitted(self, parts: Iterable[tuple[Tensor, Tensor]]) -> "WeightSpace":
        """A copy of this space with the statistics of weights (N, U, D) and masks (N, U), passed in parts: one mean and std
        for all rows, which are exchangeable, and one for every other unit. The numbers of a layer's filters have means of
        their own and one std: a number that no task moves must remain within reach."""
        count = first = second = torch.zeros((), dtype=torch.float64)
        for flat, mask in parts:
            weight, flat = mask[..., None].double(), flat.double()
            count, first = count + self._pooled(weight), first + self._pooled(flat * weight)
            second = second + self._pooled(flat.square() * weight)
        mean = first / count.clamp(min=1)
        variance = (second / count.clamp(min=1) - mean.square()).clamp(min=0)
        if self.unit == "filter":
            layers = zip(variance.split(self.rows(self.kinds)), self.blocks, strict=True)
            variance = torch.cat([v[:, :size].mean().expand(len(v), self.D) for v, (_, size) in layers])
        std = variance.sqrt()
        return self.with_statistics(mean.float(), torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.ones_like(std)).float())

    def _pooled(self, values: Tensor) -> Tensor:
        """Sums over tasks, and over classes: (N, U, n) -> (n,) or (kinds, n)."""
        if not self.any_rows:
            return values.sum(0)
        front, rows, behind = self.parted(values.sum(0))
        pooled = torch.cat([front, rows.sum(0, keepdim=True), behind])
        return pooled[0] if self.unit == "row" and not self.extra else pooled

    def _spread(self, statistic: Tensor, flat: Tensor) -> Tensor:
        """A statistic for every unit of flat (..., U, D): all classes have the same."""
        if self.any_rows and statistic.ndim > 1:
            front, row, behind = self.parted(statistic)
            statistic = torch.cat([front, row.expand(flat.shape[-2] - self.fixed, -1), behind])
        return statistic.to(flat)

    def with_statistics(self, mean: Tensor, std: Tensor) -> "WeightSpace":
        """A copy of this space that standardises by mean and std, (D,) with rows only, else (kinds, D)."""
        space = object.__new__(WeightSpace)
        space._set(self.spec, self.buffers, self.unit, self.shared, self.any_rows)
        space.mean, space.std = mean, std
        return space

    def standardise(self, flat: Tensor) -> Tensor:
        """Weights (..., U, D) -> zero mean and unit variance, the scale of the diffusion."""
        mean, std = self.statistics()
        return (flat - self._spread(mean, flat)) / self._spread(std, flat)

    def restore(self, z: Tensor) -> Tensor:
        """Inverse of `standardise`."""
        mean, std = self.statistics()
        return z * self._spread(std, z) + self._spread(mean, z)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and std. Raises McdiError for a space without them."""
        if self.mean is None or self.std is None:
            raise McdiError("this space has no statistics: call fitted first")
        return self.mean, self.std

    def config(self) -> dict[str, Any]:
        """Names, shapes and dtypes for JSON; weights of two spaces with equal config are interchangeable."""
        parameters = {n: [list(s), d] for n, (s, d) in self.spec.items()}
        more: dict[str, Any] = {"shared": list(self.shared)} if self.shared else {}
        if self.unit == "filter":  # whose layers follow each other; JSON sorts the names above
            more |= {"order": list(self.spec), "classes": self.any_rows}
        return {"unit": self.unit, "parameters": parameters, "buffers": list(self.buffers), **more}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "WeightSpace":
        """Inverse of `config`, without statistics."""
        space = object.__new__(cls)
        parameters = config["parameters"]
        spec = {n: (tuple(parameters[n][0]), parameters[n][1]) for n in config.get("order", parameters)}
        names = tuple(config.get("buffers", ())), config["unit"], tuple(config.get("shared", ()))
        space._set(spec, *names, config.get("classes", False))
        return space
