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

    Running statistics of a layer with chosen parameters (batch norm) belong to it: a network without them computes
    something else. They are packed like parameters, under their own names, and `buffers` says which they are.

    Raises McdiError when nothing matches, when parameters are not real floating point, or when "row" is asked of tensors
    without a common first dimension.

    >>> space = WeightSpace(nn.Linear(3, 5), unit="row")
    >>> flat = space.pack({n: p[None] for n, p in nn.Linear(3, 5).named_parameters()})
    >>> tuple(flat.shape)
    (1, 5, 4)
    """

    def __init__(self, module: nn.Module, *, select: str = ".*", unit: Unit = "whole") -> None:
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
        self._set(spec, tuple(statistics), unit, None, None)

    def _set(self, spec: Spec, buffers: tuple[str, ...], unit: Unit, mean: Tensor | None, std: Tensor | None) -> None:
        self.spec, self.buffers, self.unit, self.mean, self.std = spec, buffers, unit, mean, std
        dtypes = [getattr(torch, d) for _, d in spec.values()]
        if not all(d.is_floating_point for d in dtypes):
            raise McdiError("only real floating-point parameters can be generated: narrow `select`")
        self.dtype = torch.float32  # every narrower type fits in float32 exactly; float64 widens the whole
        for d in dtypes:
            self.dtype = torch.promote_types(self.dtype, d)
        sizes = {n: torch.Size(s).numel() for n, (s, _) in spec.items()}
        self.parameters = sum(sizes.values())
        if unit == "row":
            rows = {s[0] if s else None for s, _ in spec.values()}
            if len(rows) != 1 or None in rows:
                raise McdiError(f"unit = 'row' needs a common first dimension, not {sorted(map(str, rows))}: narrow `select`")
            first = next(r for r in rows if r is not None)
            self.U = first
            self.D = sum(size // first for size in sizes.values()) if first else 0
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
            if got != shape and not (self.unit == "row" and got[1:] == shape[1:]):
                raise McdiError(f"{n} has shape {got} a task, this space was made for {shape}")
        parts = {n: params[n].to(self.dtype) for n in self.spec}
        batch = next(iter(parts.values())).shape[0]
        if self.unit == "row":
            rows = next(iter(parts.values())).shape[1]
            return torch.cat([p.reshape(batch, rows, self._row(n)) for n, p in parts.items()], -1)
        if self.unit == "layer":
            units = []
            for layer, size in self._layers.items():
                flat = torch.cat([p.reshape(batch, -1) for n, p in parts.items() if n.rpartition(".")[0] == layer], -1)
                units.append(torch.nn.functional.pad(flat, (0, self.D - size)))
            return torch.stack(units, 1)
        flat = torch.cat([p.reshape(batch, -1) for p in parts.values()], -1)
        return torch.nn.functional.pad(flat, (0, self.U * self.D - self.parameters)).reshape(batch, self.U, self.D)

    def _row(self, name: str) -> int:
        return torch.Size(self.spec[name][0][1:]).numel()

    def unpack(self, flat: Tensor) -> dict[str, Tensor]:
        """(B, U, D) -> {name: (B, *shape)} in the parameters' own dtypes; inverse of `pack`. With "row", U follows `flat`."""
        if flat.ndim != 3 or flat.shape[2] != self.D or (self.unit != "row" and flat.shape[1] != self.U):
            raise McdiError(f"weights of shape {tuple(flat.shape)} do not fit this space: (B, {self.U}, {self.D}) is expected")
        out, batch = {}, flat.shape[0]
        if self.unit == "row":
            widths = [self._row(n) for n in self.spec]
            for (n, (shape, _)), part in zip(self.spec.items(), flat.split(widths, -1), strict=True):
                out[n] = part.reshape(batch, flat.shape[1], *shape[1:])
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

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """What an optimiser may move: the names of `spec` without its running statistics."""
        return tuple(n for n in self.spec if n not in self.buffers)

    def fitted(self, parts: Iterable[tuple[Tensor, Tensor]]) -> "WeightSpace":
        """A new space that standardises by the mean and std of all flat (N, U, D) over the units in their masks (N, U).

        `parts`: (flat, mask) pairs, so that they need not be in memory at once. "row" units are exchangeable and share one
        mean and std (D,); other units have their own (U, D).
        """
        dims = (0, 1) if self.unit == "row" else (0,)
        count = first = second = torch.zeros((), dtype=torch.float64)
        for flat, mask in parts:
            weight, flat = mask[..., None].double(), flat.double()
            count, first = count + weight.sum(dims), first + (flat * weight).sum(dims)
            second = second + (flat.square() * weight).sum(dims)
        mean = first / count.clamp(min=1)
        std = (second / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
        return self.with_statistics(mean.float(), torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.ones_like(std)).float())

    def with_statistics(self, mean: Tensor, std: Tensor) -> "WeightSpace":
        space = object.__new__(WeightSpace)
        space._set(self.spec, self.buffers, self.unit, mean, std)
        return space

    def standardise(self, flat: Tensor) -> Tensor:
        """Natural scale -> zero mean, unit variance (the scale of the diffusion)."""
        mean, std = self.statistics()
        return (flat - mean.to(flat)) / std.to(flat)

    def restore(self, z: Tensor) -> Tensor:
        """Inverse of `standardise`."""
        mean, std = self.statistics()
        return z * std.to(z) + mean.to(z)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and std. Raises McdiError before `fitted`."""
        if self.mean is None or self.std is None:
            raise McdiError("this space has no statistics yet: call fitted first")
        return self.mean, self.std

    def config(self) -> dict[str, Any]:
        """Names, shapes and dtypes as JSON: two spaces with equal config hold interchangeable weights."""
        parameters = {n: [list(s), d] for n, (s, d) in self.spec.items()}
        return {"unit": self.unit, "parameters": parameters, "buffers": list(self.buffers)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "WeightSpace":
        space = object.__new__(cls)
        spec = {n: (tuple(s), d) for n, (s, d) in config["parameters"].items()}
        space._set(spec, tuple(config.get("buffers", ())), config["unit"], None, None)
        return space
