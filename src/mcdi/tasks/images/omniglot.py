"""The drawings of Omniglot, from its two official archives, in a folder or downloaded. Lake, Salakhutdinov and
Tenenbaum, "Human-level concept learning through probabilistic program induction", 2015."""

import hashlib
import re
import stat
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mcdi.errors import McdiError, explained
from mcdi.tasks.images.class_images import ClassImages, alphabet
from mcdi.tasks.images.files import read_image
from mcdi.utils.files import read_bytes, visible, write_bytes
from mcdi.utils.places import check_readable, check_writable

Split = Literal["alphabets", "characters"]

URL = "https://github.com/brendenlake/omniglot/raw/master/python/"
CHECKSUMS = {  # md5 of the official release; a local archive may be packed otherwise and is not held to them
    "images_background": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation": "6b91aef0f799c5bb55b94e3f2daec811",
}
ALPHABETS = {"images_background": 30, "images_evaluation": 20}
VALIDATION = (4, 9, 14, 19, 24)  # numbers of the 30 sorted background alphabets
DRAWINGS = 20  # of every character
TIMEOUT = 60.0  # seconds without a byte
# The larger archive has 9.5 million bytes, 19,800 files, and drawings of some 300 bytes.
MOST_BYTES, MOST_ENTRIES, MOST_BYTES_OF_A_DRAWING = 2**25, 100_000, 2**16
ANEW = "delete it and fetch the archive anew"


def omniglot_images(
    path: str | Path | None, download_to: Path | None = None, *, size: int = 28, split: Split = "alphabets"
) -> dict[str, ClassImages]:
    """Splits "train", "val", "test" of drawings (C, 20, size, size).

    Args:
        path: a folder with images_background.zip and images_evaluation.zip, or with the folders they unpack to. None
            downloads what `download_to` lacks.
        size: pixels of a side.
        split: "alphabets": 25 background alphabets, the 5 others of them, and the 20 evaluation alphabets. "characters": of
            every 81 characters of all alphabets in order 60, 5 and 16, so that 1,203, 100 and 320 classes are different but
            their alphabets are not: the easier task of most few-shot papers, which draw 1,200 characters at random.
        download_to: a folder for the archives.

    Raises:
        McdiError: a file that is missing, corrupt or incomplete, or an address that cannot be fetched.
    """
    if path is None:
        if download_to is None:
            raise McdiError("Omniglot needs a folder: give the one that holds its archives, or one to download them to")
        for part in CHECKSUMS:
            _download(part, download_to)
        path = download_to
    background, test = (_read(Path(path), part, size) for part in CHECKSUMS)
    if split == "alphabets":
        validation = {background.alphabets[i] for i in VALIDATION}
        held = {name for name in background.names if alphabet(name) in validation}
        return {"train": _only(background, set(background.names) - held), "val": _only(background, held), "test": test}
    both = ClassImages(torch.cat([background.images, test.images]), background.names + test.names)
    number = {name: i % 81 for i, name in enumerate(sorted(both.names))}
    parts = {"train": range(60), "val": range(60, 65), "test": range(65, 81)}
    return {part: _only(both, {n for n in number if number[n] in numbers}) for part, numbers in parts.items()}


def _only(classes: ClassImages, names: set[str]) -> ClassImages:
    rows = [i for i, name in enumerate(classes.names) if name in names]
    return ClassImages(classes.images[rows], tuple(classes.names[i] for i in rows))


def _read(folder: Path, part: str, size: int) -> ClassImages:
    """All characters of one archive, sorted by name, the drawings of each by file name, which ends in the drawer's number."""
    source = next((path for path in (folder / f"{part}.zip", folder / part) if path.exists()), None)
    if source is None:
        cure = f"fetch {URL}{part}.zip into that folder, or name the folder that holds it"
        raise McdiError(f"{folder} holds neither {part}.zip nor {part}/: {cure}")
    classes: dict[str, dict[str, Tensor]] = {}
    for name, data in _files(source):
        if match := re.fullmatch(rf"{part}/([^/]+/[^/]+)/([^/]+\.png)", name):
            image = read_image(memoryview(data), (1, size, size), f"{source}: {name}")
            classes.setdefault(match[1], {})[match[2]] = image[0]
    count = len({alphabet(name) for name in classes})
    if count != ALPHABETS[part]:
        raise McdiError(f"{source} holds {count} alphabets instead of {ALPHABETS[part]}: fetch {URL}{part}.zip anew")
    for name in (n for n, drawings in classes.items() if len(drawings) != DRAWINGS):
        short = f"{source} holds {len(classes[name])} drawings of {name} instead of {DRAWINGS}"
        raise McdiError(f"{short}: fetch {URL}{part}.zip anew")
    names = sorted(classes)
    images = [torch.stack([classes[name][file] for file in sorted(classes[name])]) for name in names]
    return ClassImages(torch.stack(images), tuple(names))


def _files(source: Path) -> Iterator[tuple[str, bytes]]:
    """The PNGs of an archive or an unpacked folder: (name that starts with the part's, bytes)."""
    if source.is_dir():
        found = sorted(file for file in source.rglob("*.png") if file.is_file() and visible(*file.relative_to(source).parts))
        yield from ((file.relative_to(source.parent).as_posix(), read_bytes(file)) for file in found)
        return
    check_readable(source)
    # Besides its own errors zipfile raises those of every packer, and others for headers that make no sense.
    with explained(f"{source} cannot be read", ANEW), zipfile.ZipFile(source) as archive:
        _check_entries(source, archive.infolist())
        drawings = [entry for entry in archive.infolist() if entry.filename.endswith(".png")]
        yield from ((e.filename, archive.read(e)) for e in drawings if visible(*e.filename.split("/")))


def _check_entries(source: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Raises McdiError for what the official archives do not hold; zipfile unpacks no more bytes than an entry announces."""
    for entry in entries:
        parts = entry.filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or ":" in parts[0]:
            raise McdiError(f"{source}: {entry.filename!r} lies outside of the archive: {ANEW}")
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise McdiError(f"{source}: {entry.filename!r} is a link or a device: {ANEW}")
        if entry.file_size > MOST_BYTES_OF_A_DRAWING and entry.filename.endswith(".png"):
            raise McdiError(f"{source}: {entry.filename!r} has {entry.file_size:,} bytes, too many for a drawing: {ANEW}")
    if len({entry.filename for entry in entries}) < len(entries):
        raise McdiError(f"{source} holds several files of one name: {ANEW}")
    if len(entries) > MOST_ENTRIES:
        raise McdiError(f"{source} holds {len(entries):,} files, more than {MOST_ENTRIES:,}: {ANEW}")


def _download(part: str, folder: Path) -> None:
    """Put an official archive into `folder` unless it is there, unchanged. Nothing is left of one that fails or differs."""
    target, address = folder / f"{part}.zip", f"{URL}{part}.zip"
    if target.exists():
        _check_md5(read_bytes(target), part, str(target), "delete it: the same command fetches it anew")
        return
    cure = f"fetch it by hand into {folder}, or name a folder that holds it"
    check_writable(target)
    problem = explained(f"{address} cannot be downloaded", cure, OSError, HTTPException)
    with problem, urllib.request.urlopen(address, timeout=TIMEOUT) as response:
        data = response.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise McdiError(f"{address} has more than {MOST_BYTES:,} bytes, and the archive has about ten million: {cure}")
    _check_md5(data, part, address, cure)
    write_bytes(target, data)


def _check_md5(data: bytes, part: str, where: str, cure: str) -> None:
    checksum = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if checksum != CHECKSUMS[part]:
        raise McdiError(f"{where} has the md5 {checksum} instead of {CHECKSUMS[part]}: {cure}")
