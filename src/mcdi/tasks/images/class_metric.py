"""The choice of the metric of features: from training classes, judged on validation classes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mcdi.networks.discriminant import Metric, Space, best_space, covariances, metric_of
from mcdi.networks.linear_head import LinearHead
from mcdi.networks.support import class_means, prototype_rows
from mcdi.tasks.episodes import FewShot

SHARES_WITHIN, SHARES_BETWEEN = (0.5, 0.7, 0.9), (0.8, 0.9, 0.95)  # of multiples of the identity
TASKS = 300


def choose_metric(train: Tensor, val: Tensor, axes: int, *, way: int, shots: Sequence[int], queries: int) -> Metric:
    """The metric of training classes under which the nearest class mean is right most often in validation tasks.

    Args:
        train, val: features (classes, examples, F).
        axes: of the metric.
        way, shots, queries: of the tasks.
    """
    net = LinearHead(train.shape[-1], way)

    def score(space: Space) -> float:
        mapped = metric_of(space, axes)(val)
        family = FewShot("metric", net, {"val": mapped}, way=way, shots=shots, queries=queries)
        scores = []
        for n in family.shots:
            tasks = family.sample("val", range(TASKS), shots=n)
            rows = prototype_rows(class_means(tasks.support.x, tasks.support.y, way)[0])
            scores.append(net.score(rows, tasks.query, tasks.mask).mean())
        return float(torch.stack(scores).mean())

    space, _ = best_space(covariances(train), SHARES_WITHIN, SHARES_BETWEEN, score)
    return metric_of(space, axes)
