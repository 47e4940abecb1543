"""The two shapes that data of tasks come in, and the names of the splits; every room uses them."""

from typing import NamedTuple

import torch
from torch import Tensor

SPLITS = ("train", "val", "test")


Sentences = tuple[str, ...]  # a text: one sentence, or a pair


class Examples(NamedTuple):
    """Examples of B tasks: x (B, S, ...), y (B, S): class indices (int64) or real targets. S examples each."""

    x: Tensor
    y: Tensor

    def to(self, device: torch.device | str) -> "Examples":
        return Examples(self.x.to(device), self.y.to(device))


class TaskBatch(NamedTuple):
    """B tasks, rebuilt exactly from (split, seeds, draw). Methods see `support`; only evaluation reads `query`."""

    support: Examples
    query: Examples
    mask: Tensor  # (B, U) bool: which units exist
    seeds: Tensor  # (B,) int64

    def to(self, device: torch.device | str) -> "TaskBatch":
        return TaskBatch(self.support.to(device), self.query.to(device), self.mask.to(device), self.seeds.to(device))
