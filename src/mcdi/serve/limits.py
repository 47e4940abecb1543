"""Limits of requests, API keys of tenants, and refusals: errors with an HTTP status."""

import hmac
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mcdi.errors import McdiError
from mcdi.utils.files import read_text

MIB = 2**20
KEY_LENGTH = 16, 1000  # characters; the head of a request has room for 16 KiB


class Refused(McdiError):  # noqa: N818 - a refused request
    """An error with its own HTTP status; any other McdiError has 422. At 429 and 503 clients retry after a second."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or ({"Retry-After": "1"} if status in (429, 503) else {}))


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Args:
        queue, batch: requests at once, waiting or running; chains that run together.
        wait: seconds that the first request of a batch waits for others; 0 = take only those that are queued already.
        timeout: seconds for the body of a request, and again for its computation.
        idle, connections: seconds to wait for the head of a request; open connections, see `connections.py`.
        body, text: bytes of a body; characters of a sentence.
        pixels, all_pixels: to be decoded of one image, and of a request; of a large JPEG that is a fraction.
        handles, handle_bytes: per tenant.
    """

    queue: int = 128
    batch: int = 32
    wait: float = 0.002
    timeout: float = 30.0
    idle: float = 30.0
    connections: int = 512
    body: int = 8 * MIB
    examples: int = 1000
    classes: int = 100
    samples: int = 16
    pixels: int = 16_000_000
    all_pixels: int = 64_000_000
    text: int = 10_000
    handles: int = 1000
    handle_bytes: int = 256 * MIB

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (0 if name == "wait" else 1e-3) <= value < math.inf:
                raise McdiError(f"{name} = {value} is no limit that allows a request: choose another")


class Keys:
    """Tenants and their keys, from a file of lines `tenant:key`; without a file all requests belong to one tenant."""

    def __init__(self, path: Path | None = None) -> None:
        self.path, self._reading = path, threading.Lock()
        self._keys = None if path is None else _read_keys(path)

    @property
    def needed(self) -> bool:
        return self._keys is not None

    @property
    def tenants(self) -> set[str]:
        return {""} if self._keys is None else {tenant for tenant, _ in self._keys}

    def reload(self) -> None:
        """Read the file anew. Raises McdiError, and the old keys stay, where it cannot be read or holds a wrong line."""
        with self._reading:  # of two signals the later one reads last
            if self.path is not None:
                self._keys = _read_keys(self.path)

    def tenant(self, key: bytes | None) -> str:
        """The tenant of a key; all keys are compared, each in constant time. Raises Refused (401) for an unknown key."""
        if self._keys is None:
            return ""
        tenants = [tenant for tenant, secret in self._keys if hmac.compare_digest(key or b"", secret)]
        if not tenants:
            raise Refused(401, "send an API key in the header 'Authorization: Bearer KEY'", {"WWW-Authenticate": "Bearer"})
        return tenants[-1]


def is_key(text: str) -> bool:
    """Whether this can be sent in a header and found in a line of a file: no blanks, no control characters."""
    return text.isprintable() and " " not in text


def _read_keys(path: Path) -> list[tuple[str, bytes]]:
    """(tenant, key) of every line; keys beyond ASCII twice, as some clients send UTF-8 and others Latin-1."""
    lines = read_text(path).split("\n")
    found: dict[bytes, str] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        tenant, _, key = line.partition(":")
        tenant = tenant.strip()
        if not tenant or not KEY_LENGTH[0] <= len(key) <= KEY_LENGTH[1] or not is_key(key):
            right = f"tenant:key with a key of {KEY_LENGTH[0]} to {KEY_LENGTH[1]} characters without blanks"
            raise McdiError(f"{path}, line {number} must be {right}: correct it")
        for secret in {key.encode(), key.encode("latin-1") if max(key) <= "\xff" else key.encode()}:
            if found.setdefault(secret, tenant) != tenant:
                raise McdiError(f"{path}, line {number} has the key of another tenant, {found[secret]}: give each its own")
    if not found:
        raise McdiError(f"{path} holds no key: write lines tenant:key, or omit --api-key-file")
    return [(tenant, secret) for secret, tenant in found.items()]
