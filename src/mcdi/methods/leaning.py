"""How much of a generated head should a task keep? Its own examples are asked, some of which are left out at a time."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.tasks.base import Examples
from mcdi.tasks.downstream import Network
from mcdi.tasks.sets import centre_of, places

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
# A power of the likelihood, the best of 1, 1/2 and 1/4 on validation tasks of photos and of drawings: what a head says of one
# example says something of the next.
TEMPER = 0.25
MOST = 5  # folds


def folds(labels: Tensor, way: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Places of the examples that are kept and that are left out, (B, S - n), (B, n), for labels (B, S): of a class of c > 1
    examples, one in min(c, 5) at a time, over and over where another class has more; an only one stays.

    All tasks of a batch have as many examples of their classes as each other, in some order of classes and examples.
    """
    place, count = places(labels, way)
    parts = count.clamp(max=MOST)
    for fold in range(int(parts.max()) if bool((count > 1).any()) else 0):
        out = (place % parts == fold % parts) & (count > 1)
        order = out.int().argsort(dim=1, stable=True)
        kept = labels.shape[1] - int(out[0].sum())
        yield order[:, :kept], order[:, kept:]


def fitted_shares(
    heads: Callable[[Examples, Tensor], Tensor], net: Network, support: Examples, mask: Tensor, share: float
) -> Tensor:
    """(B,) the mean of GRID under the tempered likelihood of what is left out; `share` where nothing can be. Raises McdiError
    for what is no head.

    heads: generated weights, (B, U, D), of (support sets, mask). No gradient is taken. A head that is sure of classes as
    training had them, and wrong here, is given up by the first examples that it misses.
    """
    if not net.leans:
        raise McdiError(f"fitted shares are for heads, and a {net.kind} is none: set fitted = false")
    way = net.classes(mask.shape[1])
    counts = F.one_hot(support.y, way).sum(1).sort(1).values
    if bool((counts != counts[:1]).any()):  # tasks with other numbers of examples: one by one
        alone = ((Examples(support.x[b, None], support.y[b, None]), mask[b, None]) for b in range(len(mask)))
        return torch.cat([fitted_shares(heads, net, *task, share) for task in alone])
    rows, missed = torch.arange(len(mask), device=mask.device)[:, None], []
    for kept, out in folds(support.y, way):
        seen, asked = (Examples(support.x[rows, part], support.y[rows, part]) for part in (kept, out))
        if net.centred:
            centre = centre_of(*seen)
            seen, asked = (e._replace(x=e.x - centre) for e in (seen, asked))
        drawn = heads(seen, mask)[:, None]
        each = [net.loss(net.leant(drawn, seen, mask, s)[:, 0], asked, mask) for s in GRID]
        missed.append(out.shape[1] * torch.stack(each, 1))
    if not missed:
        return torch.full((len(mask),), share, device=mask.device)
    return (-TEMPER * torch.stack(missed).sum(0)).softmax(1) @ torch.tensor(GRID, device=mask.device)
