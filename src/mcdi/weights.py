"""The weight space: the generated parameters of a network as (B, U, D) tensors, B tasks, U units of D numbers."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mcdi.errors import McdiError

Unit = Literal["whole", "row", "layer"] | int
Spec = dict[str, tuple[tuple[int, ...], str]]
Names = tuple[str, ...]
STATISTICS = ("running_mean", "running_var")


class WeightSpace:
    """The selected parameters of a module, packed as units.

    Running statistics (batch norm) of a layer with selected parameters are packed like parameters, under their own names;
    `buffers` lists them.

    Args:
        module: the network.
        select: a regular expression, matched anywhere in the names of parameters ("head", "norm|bn", ".*").
        unit: "row": one unit per output row of all selected tensors (one class of a classifier head; U may vary by task);
            "layer": one unit per layer with selected parameters; "whole": one unit; n: chunks of n numbers.
        shared: with "row", a regular expression for selected tensors that belong to no row (norms, FiLM). Each is cut into
            chunks of D numbers; these `extra` units follow the rows of every task.

    Raises:
        McdiError: when nothing matches; for parameters that are not real floating point; for "row" and tensors without a
            common first dimension; for `shared` with another unit, or when it matches no tensor or all of them.

    >>> space = WeightSpace(nn.Linear(3, 5), unit="row")
    >>> flat = space.pack({n: p[None] for n, p in nn.Linear(3, 5).named_parameters()})
    >>> tuple(flat.shape)
    (1, 5, 4)
    """

    def __init__(self, module: nn.Module, *, select: str = ".*", unit: Unit = "whole", shared: str = "") -> None:
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
        self._set(spec, tuple(statistics), unit, in_no_row)

    def _set(
        self, spec: Spec, buffers: Names, unit: Unit, shared: Names, mean: Tensor | None = None, std: Tensor | None = None
    ) -> None:
        self.spec, self.buffers, self.unit, self.shared, self.mean, self.std = spec, buffers, unit, shared, mean, std
        self.extra = 0
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
        """{name: (B, *shape)} -> (B, U, D), padded with zeros. Raises McdiError for a missing name or another shape."""
        missing = [n for n in self.spec if n not in params]
        if missing:
            raise McdiError(f"parameters missing: {', '.join(missing)}")
        for n, (shape, _) in self.spec.items():
            got = tuple(params[n].shape[1:])
            if got != shape and not (self.unit == "row" and n not in self.shared and got[1:] == shape[1:]):
                raise McdiError(f"{n} has shape {got} in a task: this space needs {shape}")
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
        """Inverse of `pack`: (B, U, D) -> {name: (B, *shape)} in the parameters' own dtypes; with "row", for any U."""
        units = flat.shape[1] if flat.ndim == 3 and self.unit == "row" else self.U
        if flat.ndim != 3 or flat.shape[1:] != (units, self.D) or units < self.extra:
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
        """Number of units of a task: `rows` and the extra ones with "row", otherwise U."""
        return rows + self.extra if self.unit == "row" else self.U

    @property
    def kinds(self) -> int:
        """Number of kinds of units: exchangeable rows are one kind, every other unit is a kind of its own."""
        return 1 + self.extra if self.unit == "row" else self.U

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """The trainable parameters: the names of `spec` without running statistics."""
        return tuple(n for n in self.spec if n not in self.buffers)

    def fitted(self, parts: Iterable[tuple[Tensor, Tensor]]) -> "WeightSpace":
        """A copy of this space with the statistics of weights (N, U, D) and masks (N, U), passed in parts: one mean and std
        for all rows, which are exchangeable, and one for every other unit."""
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
        """A statistic for every unit of flat (..., U, D): all rows have the first one."""
        if self.extra:
            statistic = torch.cat([statistic[:1].expand(flat.shape[-2] - self.extra, -1), statistic[1:]])
        return statistic.to(flat)

    def with_statistics(self, mean: Tensor, std: Tensor) -> "WeightSpace":
        """A copy of this space that standardises by mean and std, (D,) with rows only, else (kinds, D)."""
        space = object.__new__(WeightSpace)
        space._set(self.spec, self.buffers, self.unit, self.shared, mean, std)
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
        shared = {"shared": list(self.shared)} if self.shared else {}
        return {"unit": self.unit, "parameters": parameters, "buffers": list(self.buffers), **shared}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "WeightSpace":
        """Inverse of `config`, without statistics."""
        space = object.__new__(cls)
        spec = {n: (tuple(s), d) for n, (s, d) in config["parameters"].items()}
        space._set(spec, tuple(config.get("buffers", ())), config["unit"], tuple(config.get("shared", ())))
        return space
