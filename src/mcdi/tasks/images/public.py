"""Images of other data sets in the form in which they are published: CIFAR, STL-10, Aircraft, Pets, any folder a class.

- CIFAR-10 and CIFAR-100, "binary version": `data_batch_1.bin` .. or `train.bin`, with the names of classes next to them;
- STL-10, binary: `train_X.bin`, `train_y.bin`, `class_names.txt`;
- FGVC-Aircraft: `images/` and `images_variant_*.txt`, in the folder or in its `data/`;
- Oxford Pets: `images/` with files named BREED_NUMBER.jpg;
- a folder of images a class, or `train/` and `test/` with such folders, whose images are put together;
- a `.npz` of encoded images as `natural` reads it, or of `image` (N, H, W) or (N, H, W, 3), `label` (N), `classes`.

Nothing is trained on them, so that their own splits are put together: support and query of a task never share an image.
"""

import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcdi.errors import McdiError
from mcdi.tasks.images.class_images import ClassImages
from mcdi.tasks.images.photos import Classes, Source, encoded_arrays, files_of, read_classes

LAYOUTS = "CIFAR or STL-10 in binary form, FGVC-Aircraft, Oxford Pets, a folder of images a class, or a .npz"


def public_images(path: Path, *, size: int, examples: int = 100) -> ClassImages:
    """All classes of a data set (C, M, 3, size, size), M the smallest number of images of a class, at most `examples`.

    Raises McdiError naming what is missing or broken."""
    if not path.exists():
        raise McdiError(f"{path} does not exist: a target is {LAYOUTS}")
    read = _npz if path.suffix == ".npz" else next((read for mark, read in FOLDERS.items() if _has(path, mark)), _class_folders)
    classes: Classes = defaultdict(list)
    for name, source in read(path):
        classes[name].append(source)
    if len(classes) < 2:
        raise McdiError(f"{path} holds images of {len(classes)} classes, and two are needed: a target is {LAYOUTS}")
    return read_classes(dict(sorted(classes.items())), size, examples)


Labelled = Iterable[tuple[str, Source]]


def _has(path: Path, mark: str) -> bool:
    return any(path.glob(mark))


def _pixels(image: NDArray[np.uint8]) -> Source:
    """(H, W, 3) or (H, W) as a PPM or PGM file in memory."""
    kind = b"P6" if image.ndim == 3 else b"P5"
    return memoryview(b"%s %d %d 255\n" % (kind, image.shape[1], image.shape[0]) + np.ascontiguousarray(image).tobytes())


def _records(path: Path, size: int) -> NDArray[np.uint8]:
    """(N, size) of a file of records. Raises McdiError where it holds a part of one."""
    data = np.fromfile(path, dtype=np.uint8)
    if not len(data) or len(data) % size:
        raise McdiError(f"{path} holds {len(data)} bytes, no number of records of {size}: it is damaged, get it again")
    return data.reshape(-1, size)


def _names(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise McdiError(f"{path}, the names of classes, cannot be read ({error}): get it again") from error


def _named(names: list[str], label: int, path: Path) -> str:
    if not 0 <= label < len(names):
        raise McdiError(f"{path} has the label {label}, and there are {len(names)} names of classes: get both again")
    return names[label]


def _cifar(path: Path) -> Labelled:
    """A record: one label, or a coarse and a fine one, and 32 x 32 pixels, a colour after the other."""
    fine = (path / "train.bin").exists()
    names = _names(path / ("fine_label_names.txt" if fine else "batches.meta.txt"))
    files = (
        [path / "train.bin", path / "test.bin"] if fine else [*sorted(path.glob("data_batch_*.bin")), path / "test_batch.bin"]
    )
    for file in (f for f in files if f.exists()):
        labels = 2 if fine else 1
        for record in _records(file, labels + 3 * 32 * 32):
            image = record[labels:].reshape(3, 32, 32).transpose(1, 2, 0)
            yield _named(names, int(record[labels - 1]), file), _pixels(image)


def _stl(path: Path) -> Labelled:
    """Labels from 1; an image is 3 x 96 x 96, column after column."""
    names = _names(path / "class_names.txt")
    for part in (p for p in ("train", "test") if (path / f"{p}_X.bin").exists()):
        images, labels = _records(path / f"{part}_X.bin", 3 * 96 * 96), _records(path / f"{part}_y.bin", 1)
        if len(images) != len(labels):
            raise McdiError(
                f"{path}: {part}_X.bin has {len(images)} images and {part}_y.bin {len(labels)} labels: get both again"
            )
        for image, (label,) in zip(images, labels, strict=True):
            yield _named(names, int(label) - 1, path / f"{part}_y.bin"), _pixels(image.reshape(3, 96, 96).transpose(2, 1, 0))


def _aircraft(path: Path) -> Labelled:
    """Lines of "number variant" in images_variant_PART.txt; train and val are also in trainval."""
    path = path if _has(path, "images_variant_*.txt") else path / "data"
    seen: set[str] = set()
    for table in sorted(path.glob("images_variant_*.txt")):
        for line in _names(table):
            number, _, variant = line.partition(" ")
            if number not in seen:
                seen.add(number)
                yield variant, path / "images" / f"{number}.jpg"


def _pets(path: Path) -> Labelled:
    for file in files_of(path / "images"):
        assert isinstance(file, Path)
        yield file.stem.rpartition("_")[0], file


def _class_folders(path: Path) -> Iterator[tuple[str, Source]]:
    if not path.is_dir():
        raise McdiError(f"{path} is neither a folder nor a .npz: a target is {LAYOUTS}")
    parts = [p for p in (path / "train", path / "val", path / "test") if p.is_dir()] or [path]
    for part in parts:
        for folder in sorted(p for p in part.iterdir() if p.is_dir()):
            for file in files_of(folder):
                yield folder.name, file


def _npz(path: Path) -> Labelled:
    try:
        with np.load(path, allow_pickle=False) as file:
            plain = {key: file[key] for key in ("image", "label", "classes")} if "image" in file.files else None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise McdiError(
            f"{path} is no .npz of images ({error}): it needs image or encoded, label, classes, no pickles"
        ) from error
    if plain is None:
        encoded, offset, label, classes = encoded_arrays(path).values()
        for of, start, end in zip(label.tolist(), offset[:-1].tolist(), offset[1:].tolist(), strict=True):
            yield str(classes[of]), encoded.data[start:end]
        return
    image, label, names = plain["image"], plain["label"], [str(c) for c in plain["classes"]]
    if image.dtype != np.uint8 or image.ndim not in (3, 4) or len(image) != len(label):
        raise McdiError(
            f"{path}: image must be uint8 (N, H, W) or (N, H, W, 3) with a label each, not {image.dtype} {image.shape}"
        )
    for one, of in zip(image, label.tolist(), strict=True):
        yield _named(names, of, path), _pixels(one)


FOLDERS: dict[str, Callable[[Path], Labelled]] = {
    "data_batch_*.bin": _cifar,
    "train.bin": _cifar,
    "train_X.bin": _stl,
    "images_variant_*.txt": _aircraft,
    "data/images_variant_*.txt": _aircraft,
    "annotations/list.txt": _pets,
}
