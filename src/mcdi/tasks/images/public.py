"""Images of other data sets in the form in which they are published: CIFAR, STL-10, Aircraft, Pets, any folder a class.

- CIFAR-10 and CIFAR-100, "binary version": `data_batch_1.bin` .. or `train.bin`, with the names of classes next to them;
- STL-10, binary: `train_X.bin`, `train_y.bin`, `class_names.txt`;
- FGVC-Aircraft: `images/` and `images_variant_*.txt`, in the folder or in its `data/`;
- Oxford Pets: `images/` with files named BREED_NUMBER.jpg;
- a folder of images a class, or `train/` and `test/` with such folders, whose images are put together;
- a `.npz` of encoded images as `natural` reads it, or of `image` (N, H, W) or (N, H, W, 3), `label` (N), `classes`.

Nothing is trained on them, so that their own splits are put together: support and query of a task never share an image.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcdi.errors import McdiError
from mcdi.tasks.images.class_images import ClassImages
from mcdi.tasks.images.files import Source, class_folders, files_of
from mcdi.tasks.images.photos import KEYS, Classes, npz_arrays, read_classes
from mcdi.types import SPLITS
from mcdi.utils.files import read_bytes, read_text

LAYOUTS = "CIFAR or STL-10 in binary form, FGVC-Aircraft, Oxford Pets, a folder of images a class, or a .npz"


def public_images(path: Path, *, size: int, examples: int = 100) -> ClassImages:
    """All classes of a data set (C, M, 3, size, size), M the smallest number of images of a class, at most `examples`.
    Raises McdiError naming what is missing or broken."""
    if not path.exists():
        raise McdiError(f"{path} does not exist: a target is {LAYOUTS}")
    layouts = (read for mark, read in FOLDERS.items() if any(path.glob(mark)))
    read = _npz if path.suffix == ".npz" else next(layouts, _class_folders)
    classes: Classes = defaultdict(list)
    for name, source in read(path):
        classes[name].append(source)
    if len(classes) < 2:
        raise McdiError(f"{path} holds images of {len(classes)} classes, and two are needed: a target is {LAYOUTS}")
    return read_classes(dict(sorted(classes.items())), size, examples)


Labelled = Iterable[tuple[str, Source]]


def _pixels(image: NDArray[np.uint8]) -> Source:
    """(H, W, 3) or (H, W) as a PPM or PGM file in memory."""
    kind = b"P6" if image.ndim == 3 else b"P5"
    return memoryview(b"%s %d %d 255\n" % (kind, image.shape[1], image.shape[0]) + np.ascontiguousarray(image).tobytes())


def _records(path: Path, size: int) -> NDArray[np.uint8]:
    """(N, size) of a file of records. Raises McdiError where it holds a part of one."""
    data = np.frombuffer(read_bytes(path), dtype=np.uint8)
    if not len(data) or len(data) % size:
        raise McdiError(f"{path} holds {len(data)} bytes, no number of records of {size}: it is damaged, get it again")
    return data.reshape(-1, size)


def _names(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _named(names: list[str], label: int, path: Path) -> str:
    if not 0 <= label < len(names):
        raise McdiError(f"{path} has the label {label}, and there are {len(names)} names of classes: get both again")
    return names[label]


def _cifar(path: Path) -> Labelled:
    """A record: one label, or a coarse and a fine one, and 32 x 32 pixels, a colour after the other."""
    fine = (path / "train.bin").exists()
    names = _names(path / ("fine_label_names.txt" if fine else "batches.meta.txt"))
    files, labels = (("train.bin", "test.bin"), 2) if fine else (("data_batch_*.bin", "test_batch.bin"), 1)
    for file in (f for pattern in files for f in sorted(path.glob(pattern))):
        for record in _records(file, labels + 3 * 32 * 32):
            image = record[labels:].reshape(3, 32, 32).transpose(1, 2, 0)
            yield _named(names, int(record[labels - 1]), file), _pixels(image)


def _stl(path: Path) -> Labelled:
    """Labels from 1; an image is 3 x 96 x 96, column after column."""
    names = _names(path / "class_names.txt")
    for part in (p for p in ("train", "test") if (path / f"{p}_X.bin").exists()):
        images, labels = _records(path / f"{part}_X.bin", 3 * 96 * 96), _records(path / f"{part}_y.bin", 1)
        if len(images) != len(labels):
            given = f"{part}_X.bin has {len(images)} images and {part}_y.bin {len(labels)} labels"
            raise McdiError(f"{path}: {given}: get both again")
        for image, (label,) in zip(images, labels, strict=True):
            yield _named(names, int(label) - 1, path / f"{part}_y.bin"), _pixels(image.reshape(3, 96, 96).transpose(2, 1, 0))


def _aircraft(path: Path) -> Labelled:
    """Lines of "number variant" in images_variant_PART.txt; train and val are also in trainval."""
    path = path if any(path.glob("images_variant_*.txt")) else path / "data"
    for line in dict.fromkeys(line for table in sorted(path.glob("images_variant_*.txt")) for line in _names(table)):
        number, _, variant = line.partition(" ")
        yield variant, path / "images" / f"{number}.jpg"


def _class_folders(path: Path) -> Iterator[tuple[str, Source]]:
    if not path.is_dir():
        raise McdiError(f"{path} is neither a folder nor a .npz: a target is {LAYOUTS}")
    for part in [path / split for split in SPLITS if (path / split).is_dir()] or [path]:
        for name, files in class_folders(part).items():
            yield from ((name, file) for file in files)


def _npz(path: Path) -> Labelled:
    arrays = npz_arrays(path, KEYS, ("image", "label", "classes"))
    label, names, image = arrays["label"].tolist(), [str(c) for c in arrays["classes"]], arrays.get("image")
    if image is not None and (image.dtype != np.uint8 or image.ndim not in (3, 4) or len(image) != len(label)):
        shapes = "(N, H, W) or (N, H, W, 3)"
        raise McdiError(f"{path}: image must be uint8 {shapes} with a label each, not {image.dtype} {image.shape}")
    for of, source in zip(label, arrays["encoded"] if image is None else map(_pixels, image), strict=True):
        yield _named(names, of, path), source


FOLDERS: dict[str, Callable[[Path], Labelled]] = {
    "data_batch_*.bin": _cifar,
    "train.bin": _cifar,
    "train_X.bin": _stl,
    "images_variant_*.txt": _aircraft,
    "data/images_variant_*.txt": _aircraft,
    "annotations/list.txt": lambda path: ((file.stem.rpartition("_")[0], file) for file in files_of(path / "images")),
}
