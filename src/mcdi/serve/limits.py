"""How much may one request ask, and who may ask?"""

import hmac
from dataclasses import dataclass, fields
from pathlib import Path

from mcdi.errors import McdiError
from mcdi.serve.refusals import Refused

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """queue: requests at once, waiting and under way. batch: chains that are run together; wait: seconds that the first of them
    waits for others at most, 0 = only what has queued up meanwhile. timeout: seconds of a request. body: bytes. examples: of a
    support set, or of queries. pixels: of one image; all_pixels: of all images of a request. text: characters of one sentence.
    handles and handle_bytes: of one tenant."""

    queue: int = 128
    batch: int = 32
    wait: float = 0.002
    timeout: float = 30.0
    body: int = 8 * MIB
    examples: int = 1000
    classes: int = 100
    samples: int = 16
    pixels: int = 4_000_000
    all_pixels: int = 64_000_000
    text: int = 10_000
    handles: int = 1000
    handle_bytes: int = 256 * MIB

    def __post_init__(self) -> None:
        low = [f.name for f in fields(self) if getattr(self, f.name) < (0 if f.name == "wait" else 1e-3)]
        if low:
            raise McdiError(f"{low[0]} = {getattr(self, low[0])} is no limit that lets anything through: choose a larger one")


class Keys:
    """Who is who: the tenants of a file of lines `tenant:key`; without a file everybody is the same tenant."""

    def __init__(self, path: Path | None = None) -> None:
        self.keys: list[tuple[str, bytes]] = [] if path is None else list(_lines(path))
        self.open = path is None

    def tenant(self, key: str | None) -> str:
        """Raises Refused (401) for a key that nobody has. Every key is compared, each in constant time."""
        if self.open:
            return ""
        given, found = (key or "").encode(), None
        for tenant, known in self.keys:
            if hmac.compare_digest(given, known):
                found = tenant
        if found is None:
            raise Refused(
                401, "this server asks for a key: send the header 'Authorization: Bearer KEY'", {"WWW-Authenticate": "Bearer"}
            )
        return found


def _lines(path: Path) -> list[tuple[str, bytes]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise McdiError(f"{path} cannot be read ({error}): give a file of lines tenant:key") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        tenant, _, key = line.strip().partition(":")
        if not tenant or len(key) < 16:
            raise McdiError(f"{path}, line {number} is no tenant:key with a key of 16 characters or more: mend it")
        found.append((tenant, key.encode()))
    if not found:
        raise McdiError(f"{path} holds no key: write lines tenant:key, or leave --api-key-file out")
    return found
