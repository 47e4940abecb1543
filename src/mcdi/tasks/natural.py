"""Where do colour images of many classes come from? One file of JPEGs, or the layouts that few-shot learning uses.

- a `.npz` of encoded images: `encoded` (uint8, all files one after another), `offset` (N + 1), `label` (N), `classes`;
- Mini-ImageNet as Ravi and Larochelle published it (2017): `train.csv`, `val.csv`, `test.csv` (filename,label) and `images/`;
- `train/`, `val/`, `test/`, a folder a class in each: Tiered-ImageNet (1803.00676), CUB, any collection of one's own.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.tasks.base import SPLITS
from mcdi.tasks.images import IMAGE_SUFFIXES, ImageBank

Source = Callable[[], bytes]
LAYOUTS = "a .npz of encoded images, train.csv / val.csv / test.csv beside images/, or train/ val/ test/ with a folder a class"


def natural_banks(path: Path | None, *, size: int = 32, limit: int | None = None) -> dict[str, ImageBank]:
    """Banks "train", "val", "test" of colour images (C, M, 3, size, size), resized and cropped to the centre.

    M is the smallest number of images that a class of the split has, so that classes weigh the same. A `.npz` has no
    split of classes: of every 25 in order 16 are for training, 4 for validation and 5 for the test. `limit` keeps so many
    classes of a split. Raises McdiError naming what is missing or broken.
    """
    if path is None:
        raise McdiError(f"this family reads colour images: give --data, {LAYOUTS}")
    if size < 1:
        raise McdiError(f"size={size} must be positive: 32 is usual")
    splits = _npz(path) if path.suffix == ".npz" else _csv(path) if (path / "train.csv").is_file() else _folders(path)
    banks = {}
    for split, classes in splits.items():
        names = sorted(classes)[:limit]
        count = min(len(classes[name]) for name in names)
        images = [torch.stack([_image(source, size, name) for source in classes[name][:count]]) for name in names]
        banks[split] = ImageBank(torch.stack(images), tuple(names))
    return banks


def _image(source: Source, size: int, name: str) -> Tensor:
    """(3, size, size) uint8: the shorter side resized, the centre kept."""
    try:
        with Image.open(io.BytesIO(source())) as image:
            image.draft("RGB", (size, size))
            whole = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise McdiError(f"an image of class {name} cannot be read ({error}): replace or remove it") from error
    width, height = whole.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    small = whole.resize((size, size), Image.Resampling.BOX, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def _checked(splits: Mapping[str, Mapping[str, Sequence[Source]]], path: Path) -> dict[str, dict[str, Sequence[Source]]]:
    for split, classes in splits.items():
        if not classes:
            raise McdiError(f"{path} holds no classes for the {split} split: it must be {LAYOUTS}")
        empty = [name for name, sources in classes.items() if not sources]
        if empty:
            raise McdiError(f"{path}: class {empty[0]} of the {split} split holds no image: add some or remove it")
    return {split: dict(classes) for split, classes in splits.items()}


def _npz(path: Path) -> dict[str, dict[str, Sequence[Source]]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            encoded, offset, label, classes = (file[n] for n in ("encoded", "offset", "label", "classes"))
    except FileNotFoundError as error:
        raise McdiError(f"{path} does not exist: check --data") from error
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise McdiError(f"{path} is no file of encoded images ({error}): it needs encoded, offset, label, classes") from error
    ordered: list[list[Source]] = [[] for _ in classes]
    for i, of in enumerate(label):
        ordered[int(of)].append(lambda i=i: encoded[offset[i] : offset[i + 1]].tobytes())  # type: ignore[misc]
    splits: dict[str, dict[str, Sequence[Source]]] = {split: {} for split in SPLITS}
    for number, sources in enumerate(ordered):
        place = number % 25
        splits["train" if place < 16 else "val" if place < 20 else "test"][str(classes[number])] = sources
    return _checked(splits, path)


def _csv(path: Path) -> dict[str, dict[str, Sequence[Source]]]:
    splits = {}
    for split in SPLITS:
        found: dict[str, list[Source]] = defaultdict(list)
        try:
            with (path / f"{split}.csv").open(newline="") as file:
                for row in csv.DictReader(file):
                    found[row["label"]].append((path / "images" / row["filename"]).read_bytes)
        except (OSError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise McdiError(f"{path / f'{split}.csv'} cannot be read ({error}): it needs columns filename and label") from error
        splits[split] = found
    return _checked(splits, path)


def _folders(path: Path) -> dict[str, dict[str, Sequence[Source]]]:
    missing = [split for split in SPLITS if not (path / split).is_dir()]
    if missing:
        raise McdiError(f"{path} has no {missing[0]}/: it must be {LAYOUTS}")
    splits = {}
    for split in SPLITS:
        folders = sorted(p for p in (path / split).iterdir() if p.is_dir())
        files = {f.name: sorted(p for p in f.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES) for f in folders}
        splits[split] = {name: [p.read_bytes for p in paths] for name, paths in files.items()}
    return _checked(splits, path)
