"""Many classification tasks from few sets of labelled sentences."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.networks.lora import LoraClassifier
from mcdi.types import Examples, TaskBatch
from mcdi.utils.random import uniform


class Pool(NamedTuple):
    """The M examples of one set."""

    name: str
    text_ids: Tensor  # (M,), their indices in the network's feature bank
    labels: Tensor  # (M,)
    features: Tensor  # (M, F), by which topics are chosen
    held_out: Tensor  # (M,) bool, which are for queries only
    whole_set: bool = False  # tasks are not confined to a topic
    separate_classes: bool = False  # no two classes are merged


Pools = Mapping[str, Sequence[Pool]]  # by split


class Task(NamedTuple):
    pool: int
    groups: tuple[tuple[int, ...], ...]  # the set's classes that each class of the task is made of
    members: tuple[Tensor, ...]  # rows of the pool that may be support, and train; by class
    queries: tuple[Tensor, ...]


class TextTasks:
    """`way`-class tasks drawn from pools[split]; no set is in two splits. A task is a set, `way` of its classes or
    groups of them, in an order of its own, and a topic: the `examples` texts of every class that lie nearest to a text
    drawn at random (a test set's tasks are the whole set). Its training data are these texts; support and query are
    drawn from them, unless the set has texts for queries only. `draw` picks others. Raises McdiError when a set has
    fewer than `way` classes, or a class too few examples."""

    name = "text"

    def __init__(
        self, downstream: LoraClassifier, pools: Pools, *, way: int, shots: Sequence[int], queries: int, examples: int
    ) -> None:
        self.downstream, self.pools = downstream, {n: tuple(p) for n, p in pools.items()}
        self.way, self.shots, self.queries, self.examples = way, tuple(shots), queries, examples
        if examples < max(shots) + queries:
            given = f"a training task of {examples} texts a class"
            raise McdiError(f"{given} cannot give {max(shots)} shots and {queries} queries: raise text.examples")
        for pool in (p for ps in self.pools.values() for p in ps):
            self._check(pool)

    @cached_property
    def _task(self) -> Callable[[str, int], Task]:
        return lru_cache(maxsize=4096)(self._made)

    def __getstate__(self) -> dict[str, Any]:
        return {n: v for n, v in self.__dict__.items() if n != "_task"}  # workers have caches of their own

    def _check(self, pool: Pool) -> None:
        present, given = pool.labels.unique().tolist(), f"the set {pool.name} has"
        if len(present) < self.way:
            raise McdiError(f"{given} {len(present)} classes, fewer than way = {self.way}: leave it out, or lower way")
        held_out = self.queries if bool(pool.held_out.any()) else 0
        for rows, need in ((~pool.held_out, max(self.shots) + self.queries - held_out), (pool.held_out, held_out)):
            least = min(int((pool.labels[rows] == c).sum()) for c in present)
            if least < need:
                needed = f"{need} are needed ({max(self.shots)} shots, {self.queries} queries)"
                raise McdiError(f"{given} a class with {least} examples, and {needed}: lower shots or queries")

    def _made(self, split: str, seed: int) -> Task:
        if split not in self.pools:
            raise McdiError(f"unknown split {split!r}: {self.name} has {', '.join(self.pools)}")
        number = seed % len(self.pools[split])  # every set as often as any other
        pool = self.pools[split][number]
        u = uniform(split, [seed], 0, count=3 + 2 * int(pool.labels.max() + 1))[0]
        groups = _groups(pool.labels.unique().numpy(), self.way, u[3:], whole=pool.whole_set, merge=not pool.separate_classes)
        order = torch.arange(len(pool.labels))
        if not pool.whole_set:
            centre = pool.features[int(u[0] * len(order))]
            order = (pool.features - centre).square().sum(1).argsort(stable=True)
        members, queries, most = [], [], None if pool.whole_set else self.examples
        for group in groups:
            inside = torch.isin(pool.labels[order], torch.tensor(group))
            members.append(order[inside & ~pool.held_out[order]][:most])
            queries.append(order[inside & pool.held_out[order]])
        return Task(number, groups, tuple(members), tuple(queries))

    def sample(self, split: str, seeds: Sequence[int], *, draw: int = 0, shots: int | None = None) -> TaskBatch:
        shots = self.shots[0] if shots is None else shots
        tasks = [self._task(split, seed) for seed in seeds]
        picked = self._picked(split, seeds, (1, draw), [t.members for t in tasks])
        held_out = self._picked(split, seeds, (2, draw), [t.queries for t in tasks])
        support, query, end = [], [], shots + self.queries
        for task, rows, held in zip(tasks, picked, held_out, strict=True):
            text_ids = self.pools[split][task.pool].text_ids
            support.append(text_ids[torch.cat([r[:shots] for r in rows])])
            queries = [h[: self.queries] if len(h) else r[shots:end] for r, h in zip(rows, held, strict=True)]
            query.append(text_ids[torch.cat(queries)])
        mask = torch.ones(len(seeds), self.downstream.space.units(self.way), dtype=torch.bool)
        return TaskBatch(self._labelled(support), self._labelled(query), mask, torch.as_tensor(seeds))

    def _picked(
        self, split: str, seeds: Sequence[int], parts: Sequence[int], rows: Sequence[tuple[Tensor, ...]]
    ) -> list[list[Tensor]]:
        """The rows of every class of every task, all of them, in an order of (split, seed, parts, class)."""
        out: list[list[Tensor]] = [[] for _ in seeds]
        for c in range(self.way):
            most = max((len(classes[c]) for classes in rows), default=0)
            drawn = uniform(split, seeds, *parts, c, count=most)
            for picked, classes, u in zip(out, rows, drawn, strict=True):
                picked.append(classes[c][torch.from_numpy(u[: len(classes[c])].argsort(kind="stable"))])
        return out

    def _labelled(self, rows: Sequence[Tensor]) -> Examples:
        x = torch.stack(list(rows))
        return Examples(x, torch.arange(self.way).repeat_interleave(x.shape[1] // self.way).expand(len(x), -1))

    def training_data(self, split: str, seeds: Sequence[int]) -> Examples:
        """`examples` texts of every class; of fewer, some come again."""
        rows, tasks = [], [self._task(split, seed) for seed in seeds]
        for task, picked in zip(tasks, self._picked(split, seeds, (1, 0), [t.members for t in tasks]), strict=True):
            fixed = [p[torch.arange(self.examples) % len(p)] for p in picked]
            rows.append(self.pools[split][task.pool].text_ids[torch.cat(fixed)])
        return self._labelled(rows)

    def columns(self, split: str, seeds: Sequence[int]) -> dict[str, Tensor]:
        """The number of the set, and a number whose bits are the classes in each group (B, way)."""
        tasks = [self._task(split, seed) for seed in seeds]
        return {
            "set": torch.tensor([t.pool for t in tasks]),
            "classes": torch.tensor([[sum(1 << c for c in g) for g in t.groups] for t in tasks]),
        }


def _groups(classes: np.ndarray, way: int, u: np.ndarray, *, whole: bool, merge: bool) -> tuple[tuple[int, ...], ...]:
    """`way` groups of classes in a drawn order, the rest added to some if `merge`; one each, as they are, if `whole`."""
    if whole:
        return tuple((int(c),) for c in classes[:way])
    order = classes[u[: len(classes)].argsort(kind="stable")]
    groups: list[list[int]] = [[int(c)] for c in order[:way]]
    for c, v in zip(order[way:] if merge else (), u[len(classes) :], strict=False):
        group = int(v * 2 * way)
        if group < way:
            groups[group].append(int(c))
    return tuple(tuple(g) for g in groups)
