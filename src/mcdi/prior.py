"""What does a support set alone say about the weights? A linear map, solved once, that a denoiser starts from."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Prior(nn.Module):
    """z ~ N(guess, s^2), a guess from what is known of the support set; `units` kinds of units, each with its variances."""

    def __init__(self, size: int, units: int) -> None:
        super().__init__()
        self.variance: Tensor
        self.register_buffer("variance", torch.ones(units, size))

    def fit(self, parts: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """From parts (z (N, U, D), what is read of the condition (N, U, ..), mask (N, U)), of which only sums are kept."""
        raise NotImplementedError

    def guess(self, cond: Tensor, mask: Tensor) -> Tensor:
        """The mean of z given the condition alone: -> (B, U, D)."""
        raise NotImplementedError

    def forward(self, x: Tensor, bar: Tensor, guess: Tensor) -> Tensor:
        """E[z | x, cond] for x = sqrt(bar) z + sqrt(1 - bar) eps: the Wiener filter around the guess; bar (B, 1, 1)."""
        variance = self._spread(self.variance, x.shape[1])
        return (guess * (1 - bar) + variance * bar.sqrt() * x) / (variance * bar + 1 - bar)

    def _spread(self, kept: Tensor, units: int) -> Tensor:
        """What is kept for every kind of unit, for `units` of them: the first kind is as many as the others leave."""
        first = kept[:1].expand(units - len(kept) + 1, *kept.shape[1:])
        return torch.cat([first, kept[1:]]) if len(kept) > 1 else first


class LinearPrior(Prior):
    """z ~ N(A [cond, mean of cond over units, 1], s^2): the least-squares map from condition to standardised weights.

    Solved once in closed form, then fixed. A denoiser that starts from its posterior mean given x_t (`forward`) learns
    only what the linear map does not know. It pays where weights are nearly linear in the condition (heads on features:
    far fewer iterations) and costs where they are not (whole networks: leave it out with prior = false).
    """

    def __init__(self, size: int, condition_size: int, units: int) -> None:
        super().__init__(size, units)
        self.matrix: Tensor
        self.register_buffer("matrix", torch.zeros(units, 2 * condition_size + 1, size))

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


class HeadPrior(Prior):
    """z ~ N(sum_j s_j head_j + shift, s^2) for rows: heads that the support set itself gives, each times one number.

    A full map has as many unknowns as rows are long, squared; where training tasks are few, this one still can be solved. Units
    that are no rows are guessed at their mean, and keep their variance.
    """

    def __init__(self, size: int, heads: int, units: int) -> None:
        super().__init__(size, units)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", torch.zeros(heads, size))
        self.register_buffer("shift", torch.zeros(size))

    def fit(self, parts: Iterable[tuple[Tensor, Tensor, Tensor]], ridge: float = 1e-6) -> None:
        """Least squares over all rows and all their numbers at once, of parts (z (N, U, D), heads (N, U, J D), mask (N, U)); a
        head's numbers are in units of their own standard deviation over rows."""
        heads, size = self.scale.shape
        count, first = 0, torch.zeros(heads + 1, size).double()  # of the heads, and last of z
        second = torch.zeros(heads + 1, heads + 1, size).double()
        for z, read, mask in parts:
            rows = self._rows(z)
            chosen = mask[:, :rows]
            both = torch.cat([read[:, :rows][chosen].unflatten(-1, (heads, size)), z[:, :rows][chosen][:, None]], 1).double()
            count, first = count + len(both), first + both.sum(0)
            second = second + torch.einsum("njd,nkd->jkd", both, both)
        middle = first / count
        covariance = second / count - middle[:, None] * middle
        std = covariance.diagonal().T[:-1].clamp(min=1e-18).sqrt()
        gram, right = (covariance[:-1, :-1] / (std[:, None] * std)).mean(-1), (covariance[:-1, -1] / std).mean(-1)
        scale = torch.linalg.solve(gram + ridge * torch.eye(heads, dtype=gram.dtype), right)[:, None] / std
        self.scale.copy_(scale)
        self.shift.copy_(middle[-1] - (scale * middle[:-1]).sum(0))
        explained = 2 * (scale * covariance[:-1, -1]).sum(0) - torch.einsum("jd,jkd,kd->d", scale, covariance[:-1, :-1], scale)
        self.variance[0] = (covariance[-1, -1] - explained).clamp(min=1e-4)

    def _rows(self, z: Tensor) -> int:
        return z.shape[1] - len(self.variance) + 1

    def guess(self, cond: Tensor, mask: Tensor) -> Tensor:
        """The heads' answer for rows, 0 for other units: (B, U, J D) -> (B, U, D)."""
        rows = (cond[:, : self._rows(cond)].unflatten(-1, self.scale.shape) * self.scale).sum(-2) + self.shift
        return torch.nn.functional.pad(rows, (0, 0, 0, cond.shape[1] - rows.shape[1]))
