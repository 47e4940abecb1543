"""The loss of one task over a plane in weight space; reports and the server draw it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mcdi.networks.base import Network
from mcdi.types import Examples


def plane(
    net: Network, paths: Mapping[str, Tensor], centre: Tensor, data: Examples, mask: Tensor, grid: int
) -> tuple[dict[str, Any], dict[str, list[list[float]]]]:
    """The loss of one task over the plane through `centre` along the two directions in which the paths vary most.

    Args:
        paths: {name: weights (n, U, D)}; centre: (U, D).
        data, mask: the examples whose loss is drawn, and the units of the task, with a batch dimension of 1.

    Returns:
        {"x", "y": (grid), "loss": (grid, grid), one row per y}, and the points of every path in the plane, {name: (n, 2)}.
    """
    cloud, origin = torch.cat(list(paths.values())).flatten(1), centre.flatten()
    basis = torch.linalg.svd(cloud - origin, full_matrices=False).Vh[:2]
    flat = {n: ((c.flatten(1) - origin) @ basis.T) for n, c in paths.items()}
    projected = torch.cat(list(flat.values()))
    low, high = projected.min(0).values, projected.max(0).values
    margin = 0.15 * (high - low)
    x, y = (torch.linspace(float(low[d] - margin[d]), float(high[d] + margin[d]), grid) for d in (0, 1))
    x, y = x.to(basis.device), y.to(basis.device)
    points = origin + x.repeat(grid)[:, None] * basis[0] + y.repeat_interleave(grid)[:, None] * basis[1]
    losses = []
    for weights in points.reshape(-1, *centre.shape).split(200):
        inputs, labels, units = (part.expand(len(weights), *part.shape[1:]) for part in (*data, mask))
        losses.append(net.loss(weights, Examples(inputs, labels), units))
    surface = {"x": x.tolist(), "y": y.tolist(), "loss": torch.cat(losses).reshape(grid, grid).tolist()}
    return surface, {n: p.tolist() for n, p in flat.items()}
