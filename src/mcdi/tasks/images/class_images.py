"""Named classes of small grey or colour images, M a class, and how image files are read."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mcdi.errors import McdiError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
Shape = tuple[int, int, int]  # (channels, side, side)
DRAWING: Shape = (1, 28, 28)


@dataclass(frozen=True)
class ClassImages:
    """C classes of M square images, uint8: drawings (C, M, H, H), 0 = paper, 255 = full ink, or colours (C, M, 3, H,
    H). Names of drawings are "alphabet/character". Raises McdiError when the images have another shape or type, or when
    the names are not C different ones."""

    images: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        valid = len(shape) == 4 or (len(shape) == 5 and shape[2] == 3)
        if self.images.dtype != torch.uint8 or not valid or shape[-2] != shape[-1]:
            given = f"{self.images.dtype} {shape}"
            raise McdiError(f"class images must be uint8 (classes, examples, [3,] side, side), not {given}: convert them")
        if len(set(self.names)) != len(self.names) or len(self.names) != len(self.images):
            different = f"{len(set(self.names))} different names for {len(self.images)} classes"
            raise McdiError(f"class images have {different}: give every class a name of its own")

    @property
    def pixels(self) -> Tensor:
        """(C, M, channels, H, H)."""
        return self.images if self.images.ndim == 5 else self.images[:, :, None]

    @property
    def alphabets(self) -> tuple[str, ...]:
        """The different alphabets, sorted."""
        return tuple(sorted({alphabet(name) for name in self.names}))

    def across_domains(self) -> "ClassImages":
        """The images of every class from all domains together, (C, M, ..) -> (classes, domains * M, ..): what a backbone is
        trained on. Classes that are not in every domain are left out. Raises McdiError where fewer than two remain."""
        rows: dict[str, list[int]] = {}
        for number, name in enumerate(self.names):
            rows.setdefault(name.rpartition("/")[2], []).append(number)
        everywhere = {name: of for name, of in rows.items() if len(of) == len(self.alphabets)}
        if len(everywhere) < 2:
            raise McdiError("fewer than two classes are in every training domain: a backbone has nothing to tell apart")
        return ClassImages(torch.stack([self.images[of].flatten(0, 1) for of in everywhere.values()]), tuple(everywhere))

    def domain_numbers(self) -> list[int]:
        """The number of every class's domain, for names "domain/class"."""
        numbers = {name: number for number, name in enumerate(self.alphabets)}
        return [numbers[alphabet(name)] for name in self.names]


def alphabet(name: str) -> str:
    """The part of a class name before its last "/"."""
    return name.rpartition("/")[0]


def with_rotations(classes: ClassImages) -> ClassImages:
    """The classes, and these turned by 90, 180 and 270 degrees as further ones, named "...@90": (C, ...) -> (4 C, ...)."""
    images = torch.cat([torch.rot90(classes.images, k, dims=(-2, -1)) for k in range(4)])
    return ClassImages(images, classes.names + tuple(f"{name}@{90 * k}" for k in (1, 2, 3) for name in classes.names))


def split_alphabets(names: Sequence[str], counts: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Whole alphabets to splits, the largest first: the first split gets the counts[split] with most names, and so on.
    Ties go by the alphabet's name. Raises McdiError when the counts do not add up to the number of alphabets."""
    sizes = Counter(alphabet(name) for name in names)
    order = sorted(sizes, key=lambda a: (-sizes[a], a))
    if min(counts.values(), default=0) < 0 or sum(counts.values()) != len(order):
        raise McdiError(f"the counts {dict(counts)} must add up to the number of alphabets, {len(order)}: change them")
    rest = iter(order)
    return {split: tuple(next(rest) for _ in range(count)) for split, count in counts.items()}


def read_image(source: Path | memoryview, shape: Shape, where: str) -> Tensor:
    """An image file, by path or by its bytes, as uint8 of `shape`: (1, side, side) or (3, side, side). One channel: a
    drawing, ink = 255; a dark one on light paper is inverted. Three: a colour image, its shorter side resized, the
    centre kept. What is transparent becomes white. Raises McdiError naming `where` for an unreadable file."""
    channels, _, side = shape
    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as file:
            if channels == 3:
                file.draft("RGB", (side, side))  # a large JPEG is decoded at a fraction of its size
            if file.mode[0] in "IF":  # Pillow would clip them to white
                raise McdiError(f"{where} has 16 or 32 bits a pixel: save it with 8")
            image = _opaque(file)
            if channels == 1:
                grey = np.array(image.convert("L").resize((side, side), Image.Resampling.BOX))
                return torch.from_numpy(255 - grey if grey.mean() > 127 else grey)[None]
            colours = image.convert("RGB")
    except McdiError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise McdiError(f"{where} cannot be read as an image: replace or remove it") from error
    width, height = colours.size
    edge = min(width, height)
    left, top = (width - edge) / 2, (height - edge) / 2
    small = colours.resize((side, side), Image.Resampling.BOX, box=(left, top, left + edge, top + edge))
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def _opaque(image: Image.Image) -> Image.Image:
    """The image on white."""
    if image.mode not in ("LA", "PA", "RGBA") and "transparency" not in image.info:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))


def read_images(folder: Path, shape: Shape = DRAWING) -> tuple[Tensor, list[str]]:
    """Every image file of `folder`, by name, as `read_image` makes it: uint8 (N, *shape), and the paths. Raises
    McdiError naming a folder without images, or an unreadable file."""
    if not folder.is_dir():
        raise McdiError(f"{folder} is not a folder: give one that holds image files")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise McdiError(f"{folder} holds no image files (png, jpg, bmp, gif, webp)")
    return torch.stack([read_image(path, shape, str(path)) for path in paths]), [str(p) for p in paths]


def read_folder(folder: Path, shape: Shape = DRAWING) -> tuple[Tensor, Tensor, list[str]]:
    """A support set from one sub-folder of images a class: x uint8 (S, *shape), y (S,), class names. Raises McdiError
    when there are fewer than two classes."""
    classes = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    if len(classes) < 2:
        raise McdiError(f"{folder} needs at least two sub-folders of example images, one a class; it has {len(classes)}")
    images = [read_images(c, shape)[0] for c in classes]
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(x) for x in images]))
    return torch.cat(images), labels, [c.name for c in classes]
