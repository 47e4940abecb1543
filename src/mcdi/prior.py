"""What do class means alone say about the weights? A linear map, solved once, that a denoiser starts from."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class LinearPrior(nn.Module):
    """z ~ N(A [cond, mean of cond over units, 1], s^2): the least-squares map from condition to standardised weights.

    Solved once in closed form, then fixed. A denoiser that starts from its posterior mean given x_t (`forward`) learns
    only what the linear map does not know. It pays where weights are nearly linear in the condition (heads on features:
    far fewer iterations) and costs where they are not (whole networks: leave it out with prior = false).
    """

    def __init__(self, size: int, condition_size: int, units: int) -> None:
        super().__init__()
        self.matrix: Tensor
        self.variance: Tensor
        self.register_buffer("matrix", torch.zeros(units, 2 * condition_size + 1, size))
        self.register_buffer("variance", torch.ones(units, size))

    def _inputs(self, cond: Tensor, mask: Tensor) -> Tensor:
        weight = mask[..., None].to(cond.dtype)
        mean = (cond * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        return torch.cat([cond, mean.expand_as(cond), torch.ones_like(cond[..., :1])], -1)

    def fit(self, parts: Iterable[tuple[Tensor, Tensor, Tensor]], ridge: float = 1e-3) -> None:
        """Ridge regression on all (z (N, U, D), cond (N, U, C), mask (N, U)); a map a unit, the first for all U - units + 1
        exchangeable ones.

        Only sums over the parts are kept: gram (inputs x inputs), right (inputs x D), square (D), a unit each.
        """
        units, size, outputs = self.matrix.shape
        gram, right = torch.zeros(units, size, size).double(), torch.zeros(units, size, outputs).double()
        square, count = torch.zeros(units, outputs).double(), torch.zeros(units)
        for z, cond, mask in parts:
            inputs = self._inputs(cond, mask)
            for u in range(units):
                rows = z.shape[1] - units + 1
                chosen = slice(rows) if u == 0 else slice(rows + u - 1, rows + u)
                a, y = (part[:, chosen][mask[:, chosen]].double() for part in (inputs, z))
                gram[u] += a.T @ a
                right[u] += a.T @ y
                square[u] += y.square().sum(0)
                count[u] += len(a)
        gram, right, square = gram / count[:, None, None], right / count[:, None, None], square / count[:, None]
        found = torch.linalg.solve(gram + ridge * torch.eye(size, dtype=gram.dtype), right)
        error = square - 2 * (found * right).sum(1) + (found * (gram @ found)).sum(1)  # mean of (y - found a)^2
        self.matrix.copy_(found)
        self.variance.copy_(error.clamp(min=1e-4))

    def guess(self, cond: Tensor, mask: Tensor) -> Tensor:
        """The linear map's answer, (B, U, D): the mean of z given the condition alone."""
        return torch.einsum("bui,uid->bud", self._inputs(cond, mask), self._spread(self.matrix, cond.shape[1]))

    def forward(self, x: Tensor, bar: Tensor, guess: Tensor) -> Tensor:
        """E[z | x, cond] for x = sqrt(bar) z + sqrt(1 - bar) eps: the Wiener filter around the guess; bar (B, 1, 1)."""
        variance = self._spread(self.variance, x.shape[1])
        return (guess * (1 - bar) + variance * bar.sqrt() * x) / (variance * bar + 1 - bar)

    def _spread(self, kept: Tensor, units: int) -> Tensor:
        """What is kept for every kind of unit, for `units` of them: the first kind is as many as the others leave."""
        first = kept[:1].expand(units - len(kept) + 1, *kept.shape[1:])
        return torch.cat([first, kept[1:]]) if len(kept) > 1 else first
