"""Images of the same classes in several domains, as PACS, Office-Home and DomainNet have them.

- folders: a folder a domain, in it a folder a class, as all three are published;
- a `.npz` of encoded images as `natural` reads it, with `domain` (N) and `domains` (names).
"""

import random
from pathlib import Path

from mcdi.errors import McdiError
from mcdi.tasks.images.class_images import ClassImages
from mcdi.tasks.images.photos import KEYS, Classes, Source, class_folders, npz_arrays, read_classes

LAYOUTS = "a folder a domain with a folder a class in each, or a .npz of encoded images with their domains"
HELD_OUT = 5  # of so many images of a training domain one is for validation
Parts = tuple[list[Source], list[Source]]  # for training, for validation


def domain_images(
    path: Path | None, domain: str, *, size: int = 32, limit: int | None = None, examples: int | None = None
) -> dict[str, ClassImages]:
    """Splits of colour images (C, M, 3, size, size), one class a (domain, class), named "domain/class".

    "test": all images of `domain`, which nothing else sees; "train" and "val": four fifths and a fifth of those of the others
    (validation on training domains, 2007.01434).

    limit: at most so many classes. examples: images a class (a quarter of it for "val"); a class with fewer is left out of its
    domain. None: as many as the smallest class of the split has. Raises McdiError naming what is missing.
    """
    if path is None:
        raise McdiError(f"this family reads images of several domains: give --data, {LAYOUTS}")
    sources = _npz(path) if path.suffix == ".npz" else _folders(path)
    domains = {style: {n: _split(f"{style}/{n}", files) for n, files in of.items()} for style, of in sources.items()}
    if domain not in domains:
        raise McdiError(f"the domain {domain!r} is not in {path}: set family.domain to one of {', '.join(domains)}")
    if len(domains) < 2:
        raise McdiError(f"{path} has one domain only, {domain}: training needs another; it must be {LAYOUTS}")
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


def _npz(path: Path) -> dict[str, Classes]:
    encoded, _, label, classes, domain, domains = npz_arrays(path, (*KEYS, "domain", "domains")).values()
    if len(domain) != len(label) or (len(domain) and not (domain.min() >= 0 and domain.max() < len(domains))):
        raise McdiError(f"{path} is damaged: domain must name one of {len(domains)} domains for each of {len(label)} images")
    out: dict[str, Classes] = {}
    rows = zip(domain.tolist(), label.tolist(), encoded, strict=True)
    for style, of, source in sorted(rows, key=lambda row: row[:2]):
        out.setdefault(str(domains[style]), {}).setdefault(str(classes[of]), []).append(source)
    return out


def _folders(path: Path) -> dict[str, Classes]:
    if not path.is_dir():
        raise McdiError(f"{path} does not exist or is no folder: check --data, which must be {LAYOUTS}")
    styles = {style.name: class_folders(style) for style in sorted(p for p in path.iterdir() if p.is_dir())}
    held = {style: {name: files for name, files in classes.items() if files} for style, classes in styles.items()}
    out = {style: classes for style, classes in held.items() if classes}
    if not out:
        raise McdiError(f"{path} holds no images: it must be {LAYOUTS}")
    return out


def _split(name: str, sources: list[Source]) -> Parts:
    """For training and for validation: a fifth, one at least, drawn by the name of the class."""
    order = list(range(len(sources)))
    random.Random(name).shuffle(order)
    count = max(1, len(order) // HELD_OUT)
    return [sources[i] for i in sorted(order[count:])], [sources[i] for i in sorted(order[:count])]
