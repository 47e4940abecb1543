"""Limits of requests, API keys of tenants, and refusals: errors with an HTTP status."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from mcdi.errors import McdiError
from mcdi.utils.files import read_text

MIB = 2**20


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
        body, text: bytes of a body; characters of a sentence.
        pixels, all_pixels: to be decoded of one image, and of a request; of a large JPEG that is a fraction.
        handles, handle_bytes: per tenant.
    """

    queue: int = 128
    batch: int = 32
    wait: float = 0.002
    timeout: float = 30.0
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
        low = [f.name for f in fields(self) if getattr(self, f.name) < (0 if f.name == "wait" else 1e-3)]
        if low:
            raise McdiError(f"{low[0]} = {getattr(self, low[0])} allows no request: choose a larger limit")


class Keys:
    """Tenants and their keys, from a file of lines `tenant:key`; without a file all requests belong to one tenant."""

    def __init__(self, path: Path | None = None) -> None:
        self.keys: list[tuple[str, bytes]] | None = None
        if path is None:
            return
        self.keys = []
        for number, line in enumerate(read_text(path).splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            tenant, _, key = line.strip().partition(":")
            if not tenant or len(key) < 16:
                raise McdiError(f"{path}, line {number} must be tenant:key with a key of 16 characters or more: correct it")
            self.keys.append((tenant, key.encode()))
        if not self.keys:
            raise McdiError(f"{path} holds no key: write lines tenant:key, or omit --api-key-file")

    def tenant(self, key: str | None) -> str:
        """The tenant of a key; all keys are compared, each in constant time. Raises Refused (401) for an unknown key."""
        if self.keys is None:
            return ""
        tenants = [tenant for tenant, secret in self.keys if hmac.compare_digest((key or "").encode(), secret)]
        if not tenants:
            raise Refused(401, "send an API key in the header 'Authorization: Bearer KEY'", {"WWW-Authenticate": "Bearer"})
        return tenants[-1]
