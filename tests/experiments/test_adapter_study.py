"""Parts of the study of adapters, without a language model."""

from types import SimpleNamespace

import torch

from mcdi.experiments.studies import adapters
from mcdi.types import Examples, TaskBatch


def test_a_whole_set_is_learnt_once_and_asked_for_all_queries():
    """Its support sets are nearly one."""
    y, x = torch.tensor([[0, 1]] * 3), torch.arange(6).view(3, 2)
    batch = TaskBatch(Examples(x, y), Examples(10 * x, x), torch.ones(3, 1), torch.arange(3))
    learnt, net = [], SimpleNamespace(space=SimpleNamespace(extra=1))

    def classes(part: TaskBatch) -> torch.Tensor:
        learnt.append(part.support.x[0].tolist())
        return part.query.x // 10

    for whole, supports in ((True, x[:1]), (False, x)):
        predicted, seconds = adapters._one_by_one(net, adapters.Answer(classes, deep=True), batch, whole=whole)
        assert torch.equal(predicted, batch.query.y) and seconds >= 0
        assert learnt == supports.tolist()
        learnt.clear()
