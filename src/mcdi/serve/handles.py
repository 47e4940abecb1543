"""Generated weights that the server keeps in memory under a handle: one LRU cache per tenant."""

import secrets
import threading
from collections import OrderedDict
from collections.abc import Set
from dataclasses import dataclass

from mcdi.generator.api import Generator, Weights
from mcdi.serve.limits import Refused
from mcdi.serve.wire import Label


@dataclass(frozen=True)
class StoredWeights:
    """Weights and the generator that made them, which is kept after a reload because they need its backbone. sentences: of an
    example, see texts.sentences_in."""

    generator: Generator
    weights: Weights
    classes: tuple[Label, ...]
    sentences: int = 0

    @property
    def size(self) -> int:
        return sum(w.nbytes for w in self.weights.values())


class Handles:
    """At most `max_count` handles and `max_bytes` per tenant; a tenant cannot see the handles of another."""

    def __init__(self, max_count: int, max_bytes: int) -> None:
        self.max_count, self.max_bytes = max_count, max_bytes
        self._stored: dict[str, OrderedDict[str, StoredWeights]] = {}
        self._bytes: dict[str, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._stored.values()))

    def add(self, tenant: str, stored: StoredWeights) -> str:
        if stored.size > self.max_bytes:
            raise Refused(422, f"the weights take {stored.size} bytes, more than {self.max_bytes}: use format 'safetensors'")
        handle = secrets.token_urlsafe(18)
        with self._lock:
            handles = self._stored.setdefault(tenant, OrderedDict())
            handles[handle] = stored
            total = self._bytes.get(tenant, 0) + stored.size
            while len(handles) > self.max_count or total > self.max_bytes:
                total -= handles.popitem(last=False)[1].size
            self._bytes[tenant] = total
        return handle

    def get(self, tenant: str, handle: str) -> StoredWeights:
        with self._lock:
            handles = self._stored.get(tenant, OrderedDict())
            if handle not in handles:
                raise Refused(404, "this handle is unknown or was evicted: generate the weights again")
            handles.move_to_end(handle)
            return handles[handle]

    def keep(self, tenants: Set[str]) -> None:
        """Drop the handles of all other tenants."""
        with self._lock:
            for tenant in self._stored.keys() - tenants:
                del self._stored[tenant], self._bytes[tenant]
