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

import numpy as np

from mcdi.tasks.images.photos import KEYS, npz_arrays
from mcdi.utils.files import write_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=100, help="at most so many images a class")
    arguments = parser.parse_args()
    encoded: list[bytes] = []
    label: list[int] = []
    split: dict[str, int] = {}
    for path in arguments.files:
        arrays = npz_arrays(path, KEYS, optional=("class_split",))
        names = [str(name) for name in arrays["classes"]]
        of = arrays["class_split"].tolist() if "class_split" in arrays else [0] * len(names)
        added = {n: s for n, s in zip(names, of, strict=True) if n not in split and (not split or s == 0)}
        numbers = {n: len(split) + i for i, n in enumerate(added)}
        count = dict.fromkeys(added, 0)
        for number, image in zip(arrays["label"].tolist(), arrays["encoded"], strict=True):
            name = names[number]
            if name in added and count[name] < arguments.examples:
                count[name] += 1
                encoded.append(bytes(image))
                label.append(numbers[name])
        split |= added
        print(f"{path.name}: {len(added)} of {len(names)} classes, {sum(count.values())} images")
    out = io.BytesIO()
    np.savez(
        out,
        encoded=np.frombuffer(b"".join(encoded), dtype=np.uint8),
        offset=np.cumsum([0, *map(len, encoded)]),
        label=np.array(label),
        classes=np.array(list(split)),
        class_split=np.array(list(split.values())),
    )
    write_bytes(arguments.out, out.getvalue())
    parts = ", ".join(f"{list(split.values()).count(i)} {name}" for i, name in enumerate(("training", "validation", "test")))
    print(f"{arguments.out}: classes: {parts}")


if __name__ == "__main__":
    main()
