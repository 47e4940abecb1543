"""One collection of photos from several, for a generator that knows more classes than one of them has.

    python scripts/join_photos.py FIRST.npz MORE.npz ... --out photos.npz
    mcdi run photos --data photos.npz

All are `.npz` files of encoded images. The first keeps its split of classes, `class_split`. The others add classes for training
alone: those that they train on themselves, all of them where they have no split. A class that the first has under the same name
is left out, or unseen classes would be seen.
"""

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np

from mcdi.tasks.images.photos import encoded_images, npz_classes
from mcdi.types import SPLITS
from mcdi.utils.files import write_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=100, help="at most so many images a class")
    arguments = parser.parse_args()
    classes: dict[str, list[Any]] = {}
    split: list[int] = []
    for number, path in enumerate(arguments.files):
        found, own = npz_classes(path)
        of = dict(zip(found, own or [0] * len(found), strict=True))
        added = {n: files for n, files in found.items() if n not in classes and (number == 0 or of[n] == 0)}
        classes |= {n: files[: arguments.examples] for n, files in added.items()}
        split += [of[n] for n in added]
        print(f"{path.name}: {len(added)} of {len(found)} classes")
    out = io.BytesIO()
    label = np.repeat(np.arange(len(classes)), [len(files) for files in classes.values()])
    images = encoded_images([file for files in classes.values() for file in files])
    np.savez(out, **images, label=label, classes=np.array(list(classes)), class_split=np.array(split))
    write_bytes(arguments.out, out.getvalue())
    counts = ", ".join(f"{split.count(i)} {name}" for i, name in enumerate(SPLITS))
    print(f"{arguments.out}: {len(label)} images of classes for {counts}")


if __name__ == "__main__":
    main()
