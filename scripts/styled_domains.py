"""A data set of several domains from one collection of photos, for use where no set of drawings is available.

    python scripts/styled_domains.py PHOTOS styles.npz
    mcdi run styles-20way --data styles.npz

PHOTOS is anything that `natural` reads. Every image of the first classes is written once in every style: the photo, its
negative, a coarse mosaic of eight levels a channel, a grey and blurred copy with noise (as in ImageNet-C), and lines on white
paper, the test domain of the recipe. Names are domain/class, as in PACS. The shift is real, but the lines are not hand-drawn.
"""

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from mcdi.tasks.images.photos import encoded_images, natural_images
from mcdi.utils.files import write_bytes

SIDE = 32


def mosaic(photo: Image.Image, noise: np.ndarray) -> Image.Image:
    return ImageOps.posterize(photo.resize((SIDE // 3, SIDE // 3)), 3).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def faded(photo: Image.Image, noise: np.ndarray) -> Image.Image:
    grey = np.asarray(ImageOps.grayscale(photo).filter(ImageFilter.GaussianBlur(1)), dtype=np.float64)
    return Image.fromarray((0.6 * grey + 50 + 12 * noise).clip(0, 255).astype(np.uint8)).convert("RGB")


def lines(photo: Image.Image, noise: np.ndarray) -> Image.Image:
    edges = ImageOps.grayscale(photo).filter(ImageFilter.Kernel((3, 3), (-1, -1, -1, -1, 8, -1, -1, -1, -1), 1))
    return ImageOps.invert(edges).convert("RGB")


STYLES: dict[str, Callable[[Image.Image, np.ndarray], Image.Image]] = {
    "photo": lambda photo, noise: photo,
    "negative": lambda photo, noise: ImageOps.invert(photo),
    "mosaic": mosaic,
    "faded": faded,
    "lines": lines,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--examples", type=int, default=100)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    photos = natural_images(arguments.photos, size=SIDE, limit=arguments.classes, examples=arguments.examples)["train"]
    files, label, domain = [], [], []
    for number_of_class, images in enumerate(photos.pixels.permute(0, 1, 3, 4, 2).numpy()):
        for pixels in images:
            noise = rng.standard_normal((SIDE, SIDE))
            for number, style in enumerate(STYLES.values()):
                file = io.BytesIO()
                style(Image.fromarray(pixels), noise).save(file, "PNG")
                files.append(file.getvalue())
                label.append(number_of_class)
                domain.append(number)
    out = io.BytesIO()
    names: dict[str, Any] = {"classes": np.array(photos.names), "domains": np.array(list(STYLES))}
    np.savez(out, **encoded_images(files), label=np.array(label), domain=np.array(domain), **names)
    write_bytes(arguments.out, out.getvalue())
    print(f"{arguments.out}: {len(files)} images of {len(photos.names)} classes in {len(STYLES)} styles")


if __name__ == "__main__":
    main()
