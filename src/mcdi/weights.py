"""Which parameters of a network are generated, and how do they become (B, U, D): tasks, units, numbers per unit?

The only place that knows parameter names and shapes.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mcdi.errors import McdiError

Unit = Literal["whole", "row", "layer"] | int
Spec = dict[str, tuple[tuple[int, ...], str]]
STATISTICS = ("running_mean", "running_var")


class WeightSpace:
    """The chosen parameters of `module`, packed as units.

    select: a regular expression over parameter names ("head", "norm|bn", ".*"), matched anywhere in the name.
    unit: "row": one unit per output row of all chosen tensors (a classifier head: one a class; U may then vary by task);
        "layer": one unit per layer that owns chosen parameters; "whole": one unit; n: chunks of n numbers of the flat vector.
    shared: with "row", a regular expression over the chosen names: these tensors belong to no row (norms, FiLM). Each is cut
        into chunks of D numbers, a unit a chunk; these `extra` units stand after the rows, however many rows a task has.

    Running statistics of a layer with chosen parameters (batch norm) belong to it: a network without them computes
    something else. They are packed like parameters, under their own names, and `buffers` says which they are.

    Raises McdiError when nothing matches, when parameters are not real floating point, when "row" is asked of tensors
    without a common first dimension, or when `shared` comes with another unit or leaves no row.

    >>> space = WeightSpace(nn.Linear(3, 5), unit="row")
    >>> flat = space.pack({n: p[None] for n, p in nn.Linear(3, 5).named_parameters()})
    >>> tuple(flat.shape)
    (1, 5, 4)
    """

    def __init__(self, module: nn.Module, *, select: str = ".*", unit: Unit = "whole", shared: str = "") -> None:
        chosen: dict[str, Tensor] = {n: p for n, p in module.named_parameters() if re.search(select, n)}
        if not chosen:
            raise McdiError(
                f"select = {select!r} matches no parameter; there are: {', '.join(dict(module.named_parameters()))}"
            )
        owners = {n.rpartition(".")[0] for n in chosen}
        statistics = {
            n: b for n, b in module.named_buffers() if n.rpartition(".")[0] in owners and n.rpartition(".")[2] in STATISTICS
        }
        chosen |= statistics
        spec = {n: (tuple(p.shape), str(p.dtype).removeprefix("torch.")) for n, p in chosen.items()}
        apart = tuple(n for n in spec if shared and re.search(shared, n))
        if shared and (unit != "row" or len(apart) in (0, len(spec))):
            found = f"it matches {', '.join(apart) or 'nothing'} of {', '.join(spec)}"
            raise McdiError(
                f"shared = {shared!r} must leave rows of unit = 'row', not {unit!r} ({found}): change it or leave it out"
            )
        self._set(spec, tuple(statistics), unit, apart)

    def _set(
        self,
        spec: Spec,
        buffers: tuple[str, ...],
        unit: Unit,
        shared: tuple[str, ...],
        mean: Tensor | None = None,
        std: Tensor | None = None,
    ) -> None:
        self.spec, self.buffers, self.unit, self.shared, self.mean, self.std = spec, buffers, unit, shared, mean, std
        self.extra = 0
        dtypes = [getattr(torch, d) for _, d in spec.values()]
        if not all(d.is_floating_point for d in dtypes):
            raise McdiError("only real floating-point parameters can be generated: narrow `select`")
        self.dtype = torch.float32  # every narrower type fits in float32 exactly; float64 widens the whole
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
            self.extra = sum(self._chunks(n) for n in shared)
            self.U = first + self.extra
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
            raise McdiError(f"unknown unit {unit!r}: choose row, layer, whole or a chunk width > 0")

    def pack(self, params: Mapping[str, Tensor]) -> Tensor:
        """{name: (B, *shape)} -> (B, U, D), padded with zeros where a unit is not full."""
        missing = [n for n in self.spec if n not in params]
        if missing:
            raise McdiError(f"parameters missing: {', '.join(missing)}")
        for n, (shape, _) in self.spec.items():
            got = tuple(params[n].shape[1:])
            if got != shape and not (self.unit == "row" and n not in self.shared and got[1:] == shape[1:]):
                raise McdiError(f"{n} has shape {got} a task, this space was made for {shape}")
        parts = {n: params[n].to(self.dtype) for n in self.spec}
        batch = next(iter(parts.values())).shape[0]
        if self.unit == "row":
            rows = torch.cat([p.reshape(batch, p.shape[1], self._row(n)) for n, p in parts.items() if n not in self.shared], -1)
            return torch.cat([rows, *(self._cut(parts[n].reshape(batch, -1), self._chunks(n)) for n in self.shared)], 1)
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

    def _row(self, name: str) -> int:
        return torch.Size(self.spec[name][0][1:]).numel()

    def unpack(self, flat: Tensor) -> dict[str, Tensor]:
        """(B, U, D) -> {name: (B, *shape)} in the parameters' own dtypes; inverse of `pack`. With "row", U follows `flat`."""
        units = flat.shape[1] if flat.ndim == 3 and self.unit == "row" else self.U
        if flat.ndim != 3 or flat.shape[1:] != (units, self.D) or units < self.extra:
            raise McdiError(f"weights of shape {tuple(flat.shape)} do not fit this space: (B, {self.U}, {self.D}) is expected")
        out, batch = {}, flat.shape[0]
        if self.unit == "row":
            names = [n for n in self.spec if n not in self.shared]
            rows, *apart = flat.split([units - self.extra, *(self._chunks(n) for n in self.shared)], 1)
            for n, part in zip(names, rows.split([self._row(n) for n in names], -1), strict=True):
                out[n] = part.reshape(batch, units - self.extra, *self.spec[n][0][1:])
            for n, part in zip(self.shared, apart, strict=True):
                shape = self.spec[n][0]
                out[n] = part.flatten(1)[:, : torch.Size(shape).numel()].reshape(batch, *shape)
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
        # A variance that a generator guessed below zero would turn every output into NaN.
        for n in self.buffers:
            if n.endswith("running_var"):
                out[n] = out[n].clamp(min=0)
        return {n: out[n].to(getattr(torch, self.spec[n][1])) for n in self.spec}

    def units(self, rows: int) -> int:
        """How many units a task has: `rows` and the extra ones with "row", else always U."""
        return rows + self.extra if self.unit == "row" else self.U

    @property
    def kinds(self) -> int:
        """How many kinds of units there are: exchangeable rows are one, every other unit is its own."""
        return 1 + self.extra if self.unit == "row" else self.U

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """What an optimiser may move: the names of `spec` without its running statistics."""
        return tuple(n for n in self.spec if n not in self.buffers)

    def fitted(self, parts: Iterable[tuple[Tensor, Tensor]]) -> "WeightSpace":
        """A new space that standardises by the mean and std of all flat (N, U, D) over the units in their masks (N, U).

        `parts`: (flat, mask) pairs, so that they need not be in memory at once. Rows are exchangeable and share one mean and
        std, every other unit has its own: (D,) where there are rows alone, else (kinds, D).
        """
        count = first = second = torch.zeros((), dtype=torch.float64)
        for flat, mask in parts:
            weight, flat = mask[..., None].double(), flat.double()
            count, first = count + self._pooled(weight), first + self._pooled(flat * weight)
            second = second + self._pooled(flat.square() * weight)
        mean = first / count.clamp(min=1)
        std = (second / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
        return self.with_statistics(mean.float(), torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.ones_like(std)).float())

    def _pooled(self, values: Tensor) -> Tensor:
        """Sums over tasks, and over rows: (N, U, n) -> (n,) or (kinds, n)."""
        total = values.sum(0)
        if self.unit != "row":
            return total
        rows = total[: len(total) - self.extra].sum(0)
        return torch.cat([rows[None], total[len(total) - self.extra :]]) if self.extra else rows

    def _spread(self, statistic: Tensor, flat: Tensor) -> Tensor:
        """What `fitted` keeps, for every unit of flat (..., U, D): all rows have the first one's."""
        if self.extra:
            statistic = torch.cat([statistic[:1].expand(flat.shape[-2] - self.extra, -1), statistic[1:]])
        return statistic.to(flat)

    def with_statistics(self, mean: Tensor, std: Tensor) -> "WeightSpace":
        space = object.__new__(WeightSpace)
        space._set(self.spec, self.buffers, self.unit, self.shared, mean, std)
        return space

    def standardise(self, flat: Tensor) -> Tensor:
        """Natural scale -> zero mean, unit variance (the scale of the diffusion)."""
        mean, std = self.statistics()
        return (flat - self._spread(mean, flat)) / self._spread(std, flat)

    def restore(self, z: Tensor) -> Tensor:
        """Inverse of `standardise`."""
        mean, std = self.statistics()
        return z * self._spread(std, z) + self._spread(mean, z)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and std. Raises McdiError before `fitted`."""
        if self.mean is None or self.std is None:
            raise McdiError("this space has no statistics yet: call fitted first")
        return self.mean, self.std

    def config(self) -> dict[str, Any]:
        """Names, shapes and dtypes as JSON: two spaces with equal config hold interchangeable weights."""
        parameters = {n: [list(s), d] for n, (s, d) in self.spec.items()}
        # Stores and generators made before there was `shared` do not have it.
        shared = {"shared": list(self.shared)} if self.shared else {}
        return {"unit": self.unit, "parameters": parameters, "buffers": list(self.buffers), **shared}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "WeightSpace":
        space = object.__new__(cls)
        spec = {n: (tuple(s), d) for n, (s, d) in config["parameters"].items()}
        space._set(spec, tuple(config.get("buffers", ())), config["unit"], tuple(config.get("shared", ())))
        return space
