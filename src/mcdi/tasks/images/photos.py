"""Colour images of many classes, and of the same classes in several domains: one file of JPEGs, or the usual layouts.

- a `.npz` of encoded images: `encoded` (uint8, all files one after another), `offset` (N + 1), `label` (N), `classes` and,
  where classes have a split of their own, `class_split` (0 for training, 1 for validation, 2 for the test);
- Mini-ImageNet as Ravi and Larochelle published it (2017): `train.csv`, `val.csv`, `test.csv` (filename,label) and `images/`;
- `train/`, `val/`, `test/`, a folder a class in each: Tiered-ImageNet (1803.00676), CUB, any collection of one's own;
- a folder a class: the train/ of ImageNet-1k, any collection of one's own.

PACS, Office-Home and DomainNet: a folder a domain, in it a folder a class; or a `.npz` with `domain` (N) and `domains` (names).
"""

import csv
import io
import random
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mcdi.errors import McdiError, explained
from mcdi.tasks.episodes import split_classes
from mcdi.tasks.images.class_images import ClassImages
from mcdi.tasks.images.files import Source, class_folders, folders_in, read_image
from mcdi.types import SPLITS
from mcdi.utils.files import read_text
from mcdi.utils.places import check_readable

Classes = dict[str, list[Source]]
LAYOUTS = (
    "a .npz of encoded images, train.csv / val.csv / test.csv next to images/, train/ val/ test/ with a folder a class, "
    "or a folder a class"
)
KEYS = ("encoded", "offset", "label", "classes")


def natural_images(
    path: Path | None, *, size: int = 32, limit: int | None = None, examples: int | None = None
) -> dict[str, ClassImages]:
    """Splits "train", "val", "test" of colour images (C, M, 3, size, size), resized and cropped to the centre. M is the
    smallest number of images that a class of the split has, or `examples`, so that classes weigh the same. Where there
    is no split of classes, of every 25 in order 16 are for training, 4 for validation and 5 for the test. All images
    are in memory as uint8, 3 size^2 bytes each: up to 2.4 GB for the 779,165 of Tiered-ImageNet at 32 pixels, 16.5 GB
    at 84. limit: at most so many classes of a split. Raises McdiError naming what is missing or broken."""
    if path is None:
        raise McdiError(f"this family reads colour images: give --data, {LAYOUTS}")
    if not path.exists():
        raise McdiError(f"{path} does not exist: check --data, which must be {LAYOUTS}")
    splits = _npz(path) if path.suffix == ".npz" else _folders(path)
    seen: dict[str, str] = {}
    for split, classes in splits.items():
        if not classes:
            raise McdiError(f"{path} holds no classes for the {split} split: it must be {LAYOUTS}")
        for name, sources in classes.items():
            if not sources:
                raise McdiError(f"{path}: class {name} of the {split} split holds no image: add some or remove it")
            if name in seen:
                both = f"class {name} is in the {seen[name]} and the {split} split"
                raise McdiError(f"{path}: {both}, but tasks are made of unseen classes: give every class to one split")
            seen[name] = split
    return {split: read_classes(dict(sorted(classes.items())[:limit]), size, examples) for split, classes in splits.items()}


def read_classes(classes: Classes, size: int, examples: int | None) -> ClassImages:
    """As many images of every class as the smallest has, `examples` at most, cropped and resized."""
    count = min(len(sources) for sources in classes.values())
    count = count if examples is None else min(count, examples)
    images = torch.empty(len(classes), count, 3, size, size, dtype=torch.uint8)
    for of, (name, sources) in zip(images, classes.items(), strict=True):
        for i, source in enumerate(sources[:count]):
            where = str(source) if isinstance(source, Path) else f"image {i} of class {name}"
            of[i] = read_image(source, (3, size, size), where)
    return ClassImages(images, tuple(classes))


def npz_classes(path: Path) -> tuple[Classes, list[int] | None]:
    """The classes of a `.npz` in its order, and its `class_split` where it has one. Raises McdiError naming the fault."""
    arrays = npz_arrays(path, KEYS, optional=("class_split",))
    classes: Classes = {str(name): [] for name in arrays["classes"]}
    names = list(classes)
    for of, source in zip(arrays["label"].tolist(), arrays["encoded"], strict=True):
        classes[names[of]].append(source)
    if "class_split" not in arrays:
        return classes, None
    own = arrays["class_split"].tolist()
    if len(own) != len(names) or set(own) - set(range(len(SPLITS))):
        raise McdiError(f"{path} is damaged: class_split must be 0, 1 or 2 for each of {len(names)} classes; make it again")
    return classes, own


def encoded_images(files: Sequence[bytes | memoryview]) -> dict[str, NDArray[Any]]:
    """The arrays of a `.npz` that hold image files."""
    return {"encoded": np.frombuffer(b"".join(files), dtype=np.uint8), "offset": np.cumsum([0, *map(len, files)])}


def _npz(path: Path) -> dict[str, Classes]:
    classes, own = npz_classes(path)
    if own is None:
        return _split(classes, path)
    return {split: {n: c for (n, c), of in zip(classes.items(), own, strict=True) if of == i} for i, split in enumerate(SPLITS)}


def _split(classes: Classes, path: Path) -> dict[str, Classes]:
    of = split_classes(list(classes), f"{path} holds", "folders of your own split")
    return {split: {name: sources for name, sources in classes.items() if of[name] == split} for split in SPLITS}


def npz_arrays(path: Path, keys: Sequence[str], plain: Sequence[str] = (), optional: Sequence[str] = ()) -> dict[str, Any]:
    """The arrays `keys` of a `.npz`, with `encoded` cut into images; `plain` where it has the first of those instead; of
    `optional` what it has. Raises McdiError naming the fault."""
    kinds = OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error
    cure = f"it needs {', '.join(keys)}, no pickles"
    check_readable(path)
    with explained(f"{path} is no .npz of images", cure, *kinds), np.load(path, allow_pickle=False) as file:
        wanted = [*(plain if plain and plain[0] in file.files else keys), *(key for key in optional if key in file.files)]
        arrays: dict[str, Any] = {key: file[key] for key in wanted}
    if "encoded" in arrays:
        if fault := _fault(*(arrays[key] for key in KEYS)):
            raise McdiError(f"{path} is damaged: {fault}; make it again")
        data = arrays["encoded"].data
        arrays["encoded"] = [data[start:end] for start, end in pairwise(arrays["offset"].tolist())]
    return arrays


def _fault(encoded: NDArray[Any], offset: NDArray[Any], label: NDArray[Any], classes: NDArray[Any]) -> str | None:
    """What is wrong with a `.npz`, if anything; without a fault every index is valid."""
    if any(array.ndim != 1 for array in (encoded, offset, label, classes)):
        return "its arrays must have one dimension"
    if encoded.dtype != np.uint8 or not all(np.issubdtype(array.dtype, np.integer) for array in (offset, label)):
        return "encoded must be uint8, offset and label integers"
    if len(offset) != len(label) + 1:
        return f"{len(label)} labels need one offset more than there are labels, not {len(offset)}"
    if not (offset[1:] > offset[:-1]).all():
        return "offset does not increase"
    if offset[0] < 0 or offset[-1] > len(encoded):
        return f"offset runs from {offset[0]} to {offset[-1]}, but encoded holds {len(encoded)} bytes"
    if len(label) and not (label.min() >= 0 and label.max() < len(classes)):
        return f"labels run from {label.min()} to {label.max()}, but there are {len(classes)} classes"
    return "two classes have the same name" if len(set(classes.tolist())) < len(classes) else None


def _rows(table: Path, images: Path) -> Classes:
    rows: dict[str, list[Source]] = defaultdict(list)
    text = read_text(table)
    with explained(f"{table} cannot be read", "it needs columns filename and label", KeyError, csv.Error):
        for row in csv.DictReader(io.StringIO(text, newline="")):
            name, label = row["filename"], row["label"]
            if not (name and label):
                raise McdiError(f"{table} has a row without filename or label: complete it or remove it")
            if not (images / name).is_file():
                raise McdiError(f"{table} names {name}, which {images} lacks: add it or remove the row")
            rows[label].append(images / name)
    return rows


def _folders(path: Path) -> dict[str, Classes]:
    if (path / "train.csv").is_file():
        return {split: _rows(path / f"{split}.csv", path / "images") for split in SPLITS}
    missing = [split for split in SPLITS if not (path / split).is_dir()]
    if len(missing) == len(SPLITS) and (classes := _sources(path)):
        return _split(classes, path)
    if missing:
        raise McdiError(f"{path} has no {missing[0]}/: it must be {LAYOUTS}")
    return {split: _sources(path / split) for split in SPLITS}


def _sources(path: Path) -> Classes:
    return {name: list[Source](files) for name, files in class_folders(path).items()}


DOMAIN_LAYOUTS = "a folder a domain with a folder a class in each, or a .npz of encoded images with their domains"
HELD_OUT = 5  # of so many images of a training domain one is for validation
Parts = tuple[list[Source], list[Source]]  # for training, for validation


def domain_images(
    path: Path | None, domain: str, *, size: int = 32, limit: int | None = None, examples: int | None = None
) -> dict[str, ClassImages]:
    """Splits of colour images (C, M, 3, size, size), one class a (domain, class), named "domain/class". "test": all
    images of `domain`, which nothing else sees; "train" and "val": four fifths and a fifth of those of the others
    (validation on training domains, 2007.01434). limit: at most so many classes. examples: images a class (a quarter of
    it for "val"); a class with fewer is left out of its domain. None: as many as the smallest class of the split has.
    Raises McdiError naming what is missing."""
    if path is None:
        raise McdiError(f"this family reads images of several domains: give --data, {DOMAIN_LAYOUTS}")
    sources = _domain_npz(path) if path.suffix == ".npz" else _domain_folders(path)
    domains = {style: {n: _halves(f"{style}/{n}", files) for n, files in of.items()} for style, of in sources.items()}
    if domain not in domains:
        raise McdiError(f"the domain {domain!r} is not in {path}: set family.domain to one of {', '.join(domains)}")
    if len(domains) < 2:
        raise McdiError(f"{path} has one domain only, {domain}: training needs another; it must be {DOMAIN_LAYOUTS}")
    kept = sorted({name for classes in domains.values() for name in classes})[:limit]
    parts: dict[str, Classes] = {"train": {}, "val": {}, "test": {}}
    for style, classes in domains.items():
        for name in (n for n in kept if n in classes):
            train, held = classes[name]
            full = f"{style}/{name}"
            if style == domain:
                parts["test"][full] = train + held
            else:
                parts["train"][full], parts["val"][full] = train, held
    out = {}
    for split, given in parts.items():
        count = max(1, examples // 4) if examples and split == "val" else examples
        enough = {name: sources for name, sources in given.items() if len(sources) >= (count or 1)}
        if not enough:
            raise McdiError(f"no class of {path} has {count or 1} images for {split}: lower family.examples")
        out[split] = read_classes(enough, size, count)
    return out


def _domain_npz(path: Path) -> dict[str, Classes]:
    encoded, _, label, classes, domain, domains = npz_arrays(path, (*KEYS, "domain", "domains")).values()
    if len(domain) != len(label) or (len(domain) and not (domain.min() >= 0 and domain.max() < len(domains))):
        raise McdiError(f"{path} is damaged: domain must name one of {len(domains)} domains for each of {len(label)} images")
    out: dict[str, Classes] = {}
    rows = zip(domain.tolist(), label.tolist(), encoded, strict=True)
    for style, of, source in sorted(rows, key=lambda row: row[:2]):
        out.setdefault(str(domains[style]), {}).setdefault(str(classes[of]), []).append(source)
    return out


def _domain_folders(path: Path) -> dict[str, Classes]:
    if not path.is_dir():
        raise McdiError(f"{path} does not exist or is no folder: check --data, which must be {DOMAIN_LAYOUTS}")
    styles = {style.name: _sources(style) for style in folders_in(path)}
    held = {style: {name: files for name, files in classes.items() if files} for style, classes in styles.items()}
    out = {style: classes for style, classes in held.items() if classes}
    if not out:
        raise McdiError(f"{path} holds no images: it must be {DOMAIN_LAYOUTS}")
    return out


def _halves(name: str, sources: list[Source]) -> Parts:
    """For training and for validation: a fifth, one at least, drawn by the name of the class."""
    order = list(range(len(sources)))
    random.Random(name).shuffle(order)
    count = max(1, len(order) // HELD_OUT)
    return [sources[i] for i in sorted(order[count:])], [sources[i] for i in sorted(order[:count])]
