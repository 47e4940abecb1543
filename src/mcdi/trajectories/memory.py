"""Peak memory of a computation, counted from its tensors, so that the result is the same every time."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensor storages that are alive at once while the mode is on; `peak` is the maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)

        def freed(_: Any) -> None:
            self.now -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, freed)


def bytes_per_task(run: Callable[[int], object]) -> int:
    """Bytes that one more task adds to the peak of `run(number of tasks)`, from runs with one task and with three."""
    peaks = []
    for tasks in (1, 3):
        with LiveBytes() as live:
            run(tasks)
        peaks.append(live.peak)
    return max(1, (peaks[1] - peaks[0]) // 2)
