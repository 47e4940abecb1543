"""N-way K-shot tasks over the classes of a split."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.networks.base import Network
from mcdi.networks.support import centre_of
from mcdi.types import Examples, TaskBatch
from mcdi.utils.random import uniform


class FewShot:
    """Tasks of `way` classes drawn from the embedded examples of a split.

    A task is its classes, named by (split, seed); `draw` picks which examples of them are support and query. Its training
    data are ALL M examples of its classes: the generator learns "support set -> the weights that full data would give". Test
    tasks are measured on queries that no support set contains.

    Args:
        name: of the family.
        downstream: the network; `embed` of it has made the examples.
        examples: {split: (C, M, ...)}.
        way: classes of a task.
        shots: numbers of examples a class of support sets.
        queries: examples a class of query sets.
        groups: {split: a number of every class}, its domain say: the classes of a task are of one group, each as often as any.

    Raises:
        McdiError: a split or a group has fewer than `way` classes, or fewer than shots + queries examples a class.
    """

    def __init__(
        self,
        name: str,
        downstream: Network,
        examples: Mapping[str, Tensor],
        *,
        way: int,
        shots: Sequence[int],
        queries: int = 15,
        groups: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        for split, x in examples.items():
            if len(x) < way:
                raise McdiError(f"way = {way} is more than the {len(x)} classes of the {split} split: lower it or add classes")
            if x.shape[1] < max(shots) + queries:
                raise McdiError(
                    f"{max(shots)} shots and {queries} queries need {max(shots) + queries} examples a class; "
                    f"the {split} split has {x.shape[1]}: lower shots or queries"
                )
        self.groups = {split: torch.as_tensor(numbers) for split, numbers in (groups or {}).items()}
        for split, numbers in self.groups.items():
            _, counts = numbers.unique(return_counts=True)
            if int(counts.min()) < way:
                raise McdiError(
                    f"way = {way} is more than the {int(counts.min())} classes of a group of the {split} split: lower it"
                )
        self.name, self.downstream, self.examples = name, downstream, dict(examples)
        self.way, self.shots, self.queries = way, tuple(shots), queries

    def _examples(self, split: str) -> Tensor:
        if split not in self.examples:
            raise McdiError(f"unknown split {split!r}: {self.name} has {', '.join(self.examples)}")
        return self.examples[split]

    def classes(self, split: str, seeds: Sequence[int]) -> Tensor:
        """(B, way) class indices, without repetition."""
        keys = torch.from_numpy(uniform(split, seeds, 0, count=len(self._examples(split))))
        if split in self.groups:
            groups = self.groups[split].unique()
            drawn = torch.from_numpy(uniform(split, seeds, 2, count=1)[:, 0])
            chosen = groups[(drawn * len(groups)).long()]
            keys = keys.masked_fill(self.groups[split] != chosen[:, None], -1.0)
        return keys.topk(self.way, dim=1).indices

    def sample(self, split: str, seeds: Sequence[int], *, draw: int = 0, shots: int | None = None) -> TaskBatch:
        shots = self.shots[0] if shots is None else shots
        examples, classes = self._examples(split), self.classes(split, seeds)
        if shots + self.queries > examples.shape[1]:
            raise McdiError(f"{shots} shots and {self.queries} queries need more than {examples.shape[1]} examples a class")
        drawn = uniform(split, seeds, 1, draw, count=self.way * examples.shape[1])
        keys = torch.from_numpy(drawn).reshape(len(seeds), self.way, -1)
        # topk is sorted: the head of a full sort, in a third of its time.
        chosen = keys.topk(shots + self.queries, largest=False).indices
        x = examples[classes[..., None], chosen]
        y = torch.arange(self.way).reshape(1, -1, 1).expand(len(seeds), -1, shots + self.queries)
        mask = torch.ones(len(seeds), self.downstream.space.units(self.way), dtype=torch.bool)
        support = Examples(x[:, :, :shots].flatten(1, 2), y[:, :, :shots].flatten(1))
        query = Examples(x[:, :, shots:].flatten(1, 2), y[:, :, shots:].flatten(1))
        if self.downstream.centred:
            centre = centre_of(*support, self.way)
            support, query = (e._replace(x=e.x - centre) for e in (support, query))
        return TaskBatch(support, query, mask, torch.as_tensor(seeds))

    def training_data(self, split: str, seeds: Sequence[int]) -> Examples:
        x = self._examples(split)[self.classes(split, seeds)]
        y = torch.arange(self.way).reshape(1, -1, 1).expand(x.shape[:3])
        data = Examples(x.flatten(1, 2), y.flatten(1))
        return data._replace(x=data.x - centre_of(*data, self.way)) if self.downstream.centred else data

    def columns(self, split: str, seeds: Sequence[int]) -> dict[str, Tensor]:
        return {"classes": self.classes(split, seeds)}
