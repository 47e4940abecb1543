"""How does a prior come to know its family? From every stored task, with a support set of every shot number drawn for it."""

from collections.abc import Callable, Iterator

from torch import Tensor

from mcdi.prior import HeadPrior, Prior
from mcdi.store import Stored
from mcdi.tasks.base import TaskFamily
from mcdi.weights import WeightSpace

Read = Callable[[Tensor], Tensor]


def fit_prior(prior: Prior, family: TaskFamily, data: Stored, space: WeightSpace, read: Read) -> None:
    """Fit on the CPU; `read`: what of a condition the prior sees."""

    def parts() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for part in data.parts():
            for shots in family.shots:
                draw = family.sample("train", part.seeds.tolist(), shots=shots)
                cond = family.downstream.condition(draw.support, draw.mask.shape[1])
                yield space.standardise(part.targets[:, -1]), read(cond), part.mask

    if isinstance(prior, HeadPrior):
        net = family.downstream
        mean, std = (statistic.reshape(-1, space.D)[0] for statistic in space.statistics())
        prior.place(mean, std, space.standardise(net.theta0(0, net.space.U))[net.way :])
    prior.fit(parts())
