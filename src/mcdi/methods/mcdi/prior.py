"""The linear prior under a denoiser: what a support set alone says about the weights, solved once in closed form."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.store import Stored
from mcdi.weights import WeightSpace


class Prior(nn.Module):
    """z ~ N(mean, s^2), the mean from the condition; `units` kinds of units, each with its variances. Ours, not the paper's."""

    def __init__(self, size: int, units: int) -> None:
        super().__init__()
        self.variance = nn.Buffer(torch.ones(units, size))

    def fit(self, parts: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """From parts (z (N, U, D), the prior's part of the condition (N, U, ..), mask (N, U)), of which only sums are kept."""
        raise NotImplementedError

    def mean_of_weights(self, cond: Tensor, mask: Tensor) -> Tensor:
        """The mean of z given the condition alone: -> (B, U, D)."""
        raise NotImplementedError

    def forward(self, x: Tensor, bar: Tensor | float, mean: Tensor) -> Tensor:
        """E[z | x, cond], x = sqrt(bar) z + sqrt(1 - bar) eps: a Wiener filter around the mean; bar (B, 1, 1) or a number."""
        variance = self._expand(self.variance, x.shape[1])
        return (mean * (1 - bar) + variance * bar**0.5 * x) / (variance * bar + 1 - bar)

    def _expand(self, kinds: Tensor, units: int) -> Tensor:
        """One row a kind of unit -> one a unit, of `units`: the first kind takes as many as the others leave."""
        first = kinds[:1].expand(units - len(kinds) + 1, *kinds.shape[1:])
        return torch.cat([first, kinds[1:]]) if len(kinds) > 1 else first


class LinearPrior(Prior):
    """z ~ N(A [cond, mean of cond over units, 1], s^2): the least-squares map from condition to standardised weights.

    Solved once in closed form, then fixed. A denoiser that starts from its posterior mean given x_t (`forward`) learns
    only what the linear map does not know. It pays where weights are nearly linear in the condition (heads on features:
    far fewer iterations) and costs where they are not (whole networks: leave it out with prior = false).
    """

    def __init__(self, size: int, condition_size: int, units: int) -> None:
        super().__init__(size, units)
        self.matrix = nn.Buffer(torch.zeros(units, 2 * condition_size + 1, size))

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
        solution = torch.linalg.solve(gram + ridge * torch.eye(size, dtype=gram.dtype), right)
        error = square - 2 * (solution * right).sum(1) + (solution * (gram @ solution)).sum(1)  # mean of (y - solution a)^2
        self.matrix.copy_(solution)
        self.variance.copy_(error.clamp(min=1e-4))

    def mean_of_weights(self, cond: Tensor, mask: Tensor) -> Tensor:
        """The linear map's answer: (B, U, C) -> (B, U, D)."""
        inputs = self._inputs(cond, mask)
        if len(self.matrix) == 1:
            return inputs @ self.matrix[0]
        return torch.einsum("bui,uid->bud", inputs, self._expand(self.matrix, cond.shape[1]))


class HeadPrior(Prior):
    """z ~ N(sum_j s_j head_j, s^2) for rows: closed-form heads of the support set, each times one number. Units that are
    no rows have the mean theta_0, for which the heads were computed.

    A full map has as many unknowns as rows are long, squared; where training tasks are few, these can still be solved. One
    number for a whole head, weight and bias: scaled apart from each other they would move the boundary between classes.
    """

    def __init__(self, size: int, heads: int, units: int) -> None:
        super().__init__(size, units)
        self.scale = nn.Buffer(torch.ones(heads))
        self.mean, self.std = nn.Buffer(torch.zeros(size)), nn.Buffer(torch.ones(size))
        self.start = nn.Buffer(torch.zeros(units - 1, size))

    def set_statistics(self, mean: Tensor, std: Tensor, start: Tensor) -> None:
        """Mean and std (D,) that rows are standardised by, and the standardised theta_0 of the other units (units - 1, D)."""
        for own, given in ((self.mean, mean), (self.std, std), (self.start, start)):
            own.copy_(given)

    def fit(self, parts: Iterable[tuple[Tensor, Tensor, Tensor]], ridge: float = 1e-6) -> None:
        """Least squares over all rows and all their numbers at once, unstandardised, of parts (z (N, U, D), heads (N, U, J D),
        mask (N, U)), of which only sums are kept."""
        heads, size = len(self.scale), len(self.mean)
        rows, square = torch.zeros(heads + 1, heads + 1, size).double(), torch.zeros(self.start.shape).double()
        count = tasks = torch.zeros(())
        for z, closed, mask in parts:
            chosen = mask[:, : self._rows(z)]
            natural = z[:, : self._rows(z)][chosen][:, None] * self.std + self.mean
            both = torch.cat([closed[:, : self._rows(z)][chosen].unflatten(-1, (heads, size)), natural], 1).double()
            rows += torch.einsum("njd,nkd->jkd", both, both)
            square += (z[:, self._rows(z) :] - self.start).square().double().sum(0)
            count, tasks = count + len(both), tasks + len(z)
        gram, right = rows[:-1, :-1].sum(-1), rows[:-1, -1].sum(-1)
        scale = torch.linalg.solve(gram + ridge * gram.diagonal().diag(), right)
        signed = torch.cat([scale, -torch.ones_like(scale[:1])])  # sum_j s_j head_j - z
        missed = torch.einsum("j,k,jkd->d", signed, signed, rows) / count / self.std.square()
        self.scale.copy_(scale)
        self.variance.copy_(torch.cat([missed[None], square / tasks]).clamp(min=1e-4))

    def _rows(self, z: Tensor) -> int:
        return z.shape[1] - len(self.variance) + 1

    def mean_of_weights(self, cond: Tensor, mask: Tensor) -> Tensor:
        """Scaled heads for rows, theta_0 for other units, standardised: (B, U, J D) -> (B, U, D)."""
        rows = torch.einsum("burd,r->bud", cond[:, : self._rows(cond)].unflatten(-1, (len(self.scale), -1)), self.scale)
        return torch.cat([(rows - self.mean) / self.std, self.start.expand(rows.shape[0], -1, -1)], 1)

    def directions(self, cond: Tensor) -> Tensor:
        """The heads in standardised units, of tasks whose units are all rows: (B, U, J D) -> (B, U, J D)."""
        return (cond.unflatten(-1, (len(self.scale), -1)) / self.std).flatten(-2)


def fit_prior(
    prior: Prior, family: TaskFamily, data: Stored, space: WeightSpace, prior_input: Callable[[Tensor], Tensor]
) -> None:
    """Fit a prior on the CPU, on every stored task with a support set of every number of shots drawn for it.

    Args:
        prior_input: what of a condition (B, U, C) the prior reads.
    """

    def parts() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for part in data.parts():
            for shots in family.shots:
                draw = family.sample("train", part.seeds.tolist(), shots=shots)
                cond = family.downstream.condition(draw.support, draw.mask.shape[1])
                yield space.standardise(part.targets[:, -1]), prior_input(cond), part.mask

    if isinstance(prior, HeadPrior):
        net = family.downstream
        mean, std = (statistic.reshape(-1, space.D)[0] for statistic in space.statistics())
        prior.set_statistics(mean, std, space.standardise(net.theta0(0, net.space.U))[net.way :])
    prior.fit(parts())
