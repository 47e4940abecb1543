"""Where do weights live that a client refers to by a handle? In memory; the least recently used go first, tenant by tenant."""

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass

from mcdi.generator.api import Generator, Weights
from mcdi.serve.refusals import Refused
from mcdi.serve.wire import Label


@dataclass(frozen=True)
class Kept:
    """Weights, and the generator that made them: after a reload its backbone is still the one that they read."""

    generator: Generator
    weights: Weights
    classes: tuple[Label, ...]

    @property
    def size(self) -> int:
        return sum(w.nbytes for w in self.weights.values())


class Handles:
    """Of every tenant at most `number`, and `size` bytes; a handle of another tenant is as unknown as one that never was."""

    def __init__(self, number: int, size: int) -> None:
        self.number, self.size = number, size
        self._kept: dict[str, OrderedDict[str, Kept]] = {}
        self._bytes: dict[str, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._kept.values()))

    def add(self, tenant: str, kept: Kept) -> str:
        if kept.size > self.size:
            raise Refused(
                422, f"these weights take {kept.size} bytes, handles may take {self.size}: ask for format 'safetensors'"
            )
        handle = secrets.token_urlsafe(18)
        with self._lock:
            mine = self._kept.setdefault(tenant, OrderedDict())
            mine[handle] = kept
            total = self._bytes.get(tenant, 0) + kept.size
            while len(mine) > self.number or total > self.size:
                total -= mine.popitem(last=False)[1].size
            self._bytes[tenant] = total
        return handle

    def get(self, tenant: str, handle: str) -> Kept:
        with self._lock:
            mine = self._kept.get(tenant, OrderedDict())
            if handle not in mine:
                raise Refused(404, "this handle is unknown, or was dropped for newer ones: generate the weights again")
            mine.move_to_end(handle)
            return mine[handle]
