"""N-way K-shot tasks over the classes of a split."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.networks.base import Network
from mcdi.networks.support import centre_of
from mcdi.types import SPLITS, Examples, TaskBatch
from mcdi.utils.random import uniform
from mcdi.utils.torch_state import plain_torch


def split_classes(names: Sequence[str], where: str, cure: str) -> dict[str, str]:
    """{class: split}: of every 25 classes in order 16 are for training, 4 for validation and 5 for the test. Raises McdiError
    for fewer than 21; `where` and `cure` are the ends of its sentence."""
    if len(names) < 21:
        rule = "of every 25 classes 16 are for training, 4 for validation, 5 for the test"
        raise McdiError(f"{where} {len(names)} classes, but {rule}: give at least 21, or {cure}")
    return {name: SPLITS[(n % 25 >= 16) + (n % 25 >= 20)] for n, name in enumerate(names)}


class FewShot:
    """Tasks of `way` classes drawn from the embedded examples of a split.

    A task is its classes, named by (split, seed); `draw` picks which examples of them are support and query. Its training
    data are ALL M examples of its classes: the generator learns "support set -> the weights that full data would give". Test
    tasks are measured on queries that no support set contains.

    Args:
        downstream: the network; `embed` of it has made the examples.
        examples: {split: (C, M, ...)}.
        shots: numbers of examples a class of support sets.
        queries: examples a class of query sets.
        training_queries: of those of training tasks, where they are fewer.
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
        training_queries: int | None = None,
        groups: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.name, self.downstream, self.examples = name, downstream, dict(examples)
        self.way, self.shots, self.queries = way, tuple(shots), queries
        self.training_queries = training_queries or queries
        self.groups = {split: torch.as_tensor(numbers) for split, numbers in (groups or {}).items()}
        for split, x in examples.items():
            if len(x) < way:
                raise McdiError(f"way = {way} is more than the {len(x)} classes of the {split} split: lower it or add classes")
            self._check_shots(split, max(shots))
        for split, numbers in self.groups.items():
            least = int(numbers.unique(return_counts=True)[1].min())
            if least < way:
                raise McdiError(f"way = {way} is more than the {least} classes of a group of the {split} split: lower it")

    def _check_shots(self, split: str, shots: int) -> None:
        needed, held = shots + self.queries, self._examples(split).shape[1]
        if held < needed:
            given = f"{shots} shots and {self.queries} queries need {needed} examples a class"
            raise McdiError(f"{given}; the {split} split has {held}: lower shots or queries")

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

    @plain_torch()
    def sample(self, split: str, seeds: Sequence[int], *, draw: int = 0, shots: int | None = None) -> TaskBatch:
        shots = self.shots[0] if shots is None else shots
        self._check_shots(split, shots)
        examples, classes = self._examples(split), self.classes(split, seeds)
        drawn = uniform(split, seeds, 1, draw, count=self.way * examples.shape[1])
        keys = torch.from_numpy(drawn).reshape(len(seeds), self.way, -1)
        # topk is sorted: the head of a full sort, in a third of its time.
        queries = self.training_queries if split == "train" else self.queries
        chosen = keys.topk(shots + queries, largest=False).indices
        x = examples[classes[..., None], chosen]
        mask = torch.ones(len(seeds), self.downstream.space.units(self.way), dtype=torch.bool)
        support, query = self._labelled(x[:, :, :shots], x[:, :, shots:])
        return TaskBatch(support, query, mask, torch.as_tensor(seeds))

    @plain_torch()
    def training_data(self, split: str, seeds: Sequence[int]) -> Examples:
        return self._labelled(self._examples(split)[self.classes(split, seeds)])[0]

    def _labelled(self, *parts: Tensor) -> list[Examples]:
        """Examples of (B, way, n, ...) each, less the centre of the first, where the network wants that."""
        labels = torch.arange(self.way).reshape(1, -1, 1)
        out = [Examples(x.flatten(1, 2), labels.expand(x.shape[:3]).flatten(1)) for x in parts]
        if not self.downstream.centred:
            return out
        centre = centre_of(*out[0], self.way)
        return [e._replace(x=e.x - centre) for e in out]

    def columns(self, split: str, seeds: Sequence[int]) -> dict[str, Tensor]:
        return {"classes": self.classes(split, seeds)}
