"""Which parameters of a network are generated, and how do they become (B, U, D): tasks, units, numbers per unit?

The only place that knows parameter names and shapes.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mcdi.errors import McdiError

Unit = Literal["whole", "row", "layer"] | int


class WeightSpace:
    """The chosen parameters of `module`, packed as units.

    select: a regular expression over parameter names ("head", "norm|bn", ".*"), matched anywhere in the name.
    unit: "row": one unit per output row of all chosen tensors (a classifier head: one a class; U may then vary by task);
        "layer": one unit per layer that owns chosen parameters; "whole": one unit; n: chunks of n numbers of the flat vector.

    Raises McdiError when nothing matches, when a chosen layer keeps running statistics (they are not weights), when
    parameters are not real floating point, or when "row" is asked of tensors without a common first dimension.

    >>> space = WeightSpace(nn.Linear(3, 5), unit="row")
    >>> flat = space.pack({n: p[None] for n, p in nn.Linear(3, 5).named_parameters()})
    >>> tuple(flat.shape)
    (1, 5, 4)
    """

    def __init__(self, module: nn.Module, *, select: str = ".*", unit: Unit = "whole") -> None:
        chosen = {n: p for n, p in module.named_parameters() if re.search(select, n)}
        if not chosen:
            raise McdiError(
                f"select = {select!r} matches no parameter; there are: {', '.join(dict(module.named_parameters()))}"
            )
        for name in chosen:
            owner = module.get_submodule(name.rpartition(".")[0])
            if getattr(owner, "running_mean", None) is not None:
                raise McdiError(
                    f"{name} belongs to a layer with running statistics: use GroupNorm or track_running_stats=False"
                )
        spec = {n: (tuple(p.shape), str(p.dtype).removeprefix("torch.")) for n, p in chosen.items()}
        self._set(spec, unit, None, None)

    def _set(self, spec: dict[str, tuple[tuple[int, ...], str]], unit: Unit, mean: Tensor | None, std: Tensor | None) -> None:
        self.spec, self.unit, self.mean, self.std = spec, unit, mean, std
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
        return {n: out[n].to(getattr(torch, self.spec[n][1])) for n in self.spec}

    def call(self, module: nn.Module, flat: Tensor, x: Tensor) -> Tensor:
        """Apply `module` with each task's own weights: (B, U, D), (B, S, ...) -> (B, S, ...), one vmapped functional_call."""

        def one(params: dict[str, Tensor], inputs: Tensor) -> Tensor:
            return torch.func.functional_call(module, params, (inputs,))

        return torch.func.vmap(one)(self.unpack(flat), x)

    def in_matrices(self) -> Tensor:
        """(U, D), or (1, D) for rows: 1 where a number is of a tensor of two or more dimensions, 0 in biases and padding."""
        ones = {n: torch.full((1, *s), float(len(s) > 1), dtype=self.dtype) for n, (s, _) in self.spec.items()}
        packed = self.pack(ones)[0]
        return packed[:1] if self.unit == "row" else packed

    def fitted(self, flat: Tensor, mask: Tensor) -> "WeightSpace":
        """A new space that standardises by the mean and std of flat (N, U, D) over the units that exist in mask (N, U).

        "row" units are exchangeable and share one mean and std (D,); other units have their own (U, D).
        """
        weight = mask[..., None].to(flat.dtype)
        dims = (0, 1) if self.unit == "row" else (0,)
        count = weight.sum(dims).clamp(min=1)
        mean = (flat * weight).sum(dims) / count
        std = (((flat - mean) ** 2 * weight).sum(dims) / count).sqrt()
        return self.with_statistics(mean, torch.where(std > 1e-6, std, torch.ones_like(std)))

    def with_statistics(self, mean: Tensor, std: Tensor) -> "WeightSpace":
        space = object.__new__(WeightSpace)
        space._set(self.spec, self.unit, mean, std)
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
            raise McdiError("this space has no statistics yet: call fitted(weights, mask) first")
        return self.mean, self.std

    def config(self) -> dict[str, Any]:
        """Names, shapes and dtypes as JSON: two spaces with equal config hold interchangeable weights."""
        return {"unit": self.unit, "parameters": {n: [list(s), d] for n, (s, d) in self.spec.items()}}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "WeightSpace":
        space = object.__new__(cls)
        space._set({n: (tuple(s), d) for n, (s, d) in config["parameters"].items()}, config["unit"], None, None)
        return space
