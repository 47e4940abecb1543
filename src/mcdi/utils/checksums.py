"""Checksums, by which every reader of a file notices that a byte of it has changed.

A file that this package reads again carries a seal: a text that holds the checksum of the whole file, taken with zeros in the
place of the checksum. The seal is an entry `checksum` in the metadata of safetensors and ONNX, and at the top of JSON. Files of
earlier versions have none.
"""

import hashlib
import mmap
import re

from mcdi.errors import McdiError

CHECKSUM = "checksum"  # the name of the entry
# The mark stands on both sides, so that a flipped bit in one of them does not make a file look like one of an earlier version.
_MARK = "mcdi-blake2b"
BLANK = f"{_MARK}:{'0' * 32}:{_MARK}"
_SEAL = re.compile(rf"{_MARK}:([0-9a-f]{{32}}):{_MARK}".encode())

Content = bytes | bytearray | mmap.mmap


def checksum(*parts: bytes | memoryview) -> str:
    """BLAKE2b of the joined parts, 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def seal(data: bytes) -> bytes:
    """The content of a file, its first BLANK filled with the checksum."""
    return data.replace(BLANK.encode(), BLANK.replace("0" * 32, checksum(data)).encode(), 1)


def is_sealed(data: Content, where: str) -> bool:
    """Whether content has a seal, which is verified; `where` names it in errors. Raises McdiError where it was changed."""
    found = _SEAL.search(data)
    if found is None and data.find(_MARK.encode()) < 0:
        return False
    if found is not None:
        view = memoryview(data)
        if checksum(view[: found.start(1)], b"0" * 32, view[found.end(1) :]) == found[1].decode():
            return True
    own = f"; if you changed it yourself, remove its entry {CHECKSUM!r}" if data[:1] == b"{" else ""
    raise McdiError(f"{where} does not match its checksum: restore it, or delete it and run its step again{own}")
