"""What is a bank of images? Named classes of small grey or colour images, M a class, kept in one file."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.files import read_tensors, write_tensors

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")


@dataclass(frozen=True)
class ImageBank:
    """C classes of M square images, uint8: drawings (C, M, H, H), 0 = paper, 255 = full ink, or colours (C, M, 3, H, H).

    Names of drawings are "alphabet/character". Raises McdiError when the images have another shape or type, or when the
    names are not C different ones.
    """

    images: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        known = len(shape) == 4 or (len(shape) == 5 and shape[2] == 3)
        if self.images.dtype != torch.uint8 or not known or shape[-2] != shape[-1]:
            found = f"{self.images.dtype} {shape}"
            raise McdiError(f"an image bank holds uint8 images (classes, examples, [3,] side, side), not {found}: convert them")
        if len(set(self.names)) != len(self.names) or len(self.names) != len(self.images):
            different = f"{len(set(self.names))} different names for {len(self.images)} classes"
            raise McdiError(f"{different} of an image bank: give every class a name of its own")

    @property
    def pixels(self) -> Tensor:
        """(C, M, channels, H, H)."""
        return self.images if self.images.ndim == 5 else self.images[:, :, None]

    @property
    def alphabets(self) -> tuple[str, ...]:
        """The different alphabets, sorted."""
        return tuple(sorted({alphabet(name) for name in self.names}))

    def save(self, path: Path) -> None:
        """Write one safetensors file in one step. Raises McdiError naming a file that cannot be written."""
        write_tensors(path, {"images": self.images}, {"names": self.names})

    @classmethod
    def load(cls, path: Path) -> "ImageBank":
        """Inverse of `save`. Raises McdiError naming a file that is missing, corrupt or no image bank."""
        tensors, metadata = read_tensors(path)
        try:
            return cls(tensors["images"], tuple(metadata["names"]))
        except (KeyError, TypeError, McdiError) as error:
            raise McdiError(f"{path} is not an image bank ({error}): delete it and make it again") from error


def alphabet(name: str) -> str:
    """The part of a class name before its last "/"."""
    return name.rpartition("/")[0]


def rotated(bank: ImageBank) -> ImageBank:
    """The bank with its classes turned by 90, 180 and 270 degrees as further ones, named "...@90": (C, ...) -> (4 C, ...)."""
    images = torch.cat([torch.rot90(bank.images, k, dims=(-2, -1)) for k in range(4)])
    return ImageBank(images, bank.names + tuple(f"{name}@{90 * k}" for k in (1, 2, 3) for name in bank.names))


def split_alphabets(names: Sequence[str], shares: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Whole alphabets to splits, the largest first: the first split gets the shares[split] with most names, and so on.

    Ties go by the alphabet's name. Raises McdiError when the shares do not add up to the number of alphabets.
    """
    sizes = Counter(alphabet(name) for name in names)
    order = sorted(sizes, key=lambda a: (-sizes[a], a))
    if min(shares.values(), default=0) < 0 or sum(shares.values()) != len(order):
        raise McdiError(f"the shares {dict(shares)} must add up to the number of alphabets, {len(order)}: change them")
    rest = iter(order)
    return {split: tuple(next(rest) for _ in range(count)) for split, count in shares.items()}


def read_images(folder: Path, size: int = 28) -> tuple[Tensor, list[str]]:
    """Every image file of `folder`, by name: uint8 (N, 1, size, size), ink = 255, and the paths.

    A dark drawing on light paper is inverted. Raises McdiError naming a folder without images, or an unreadable file.
    """
    if not folder.is_dir():
        raise McdiError(f"{folder} is not a folder: give one that holds image files")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise McdiError(f"{folder} holds no image files (png, jpg, bmp, gif, webp)")
    images = []
    for path in paths:
        try:
            with Image.open(path) as file:
                grey = np.asarray(file.convert("L").resize((size, size), Image.Resampling.BOX))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise McdiError(f"{path} cannot be read as an image: replace or remove it") from error
        images.append(255 - grey if grey.mean() > 127 else grey)
    return torch.from_numpy(np.stack(images))[:, None], [str(p) for p in paths]


def read_folder(folder: Path) -> tuple[Tensor, Tensor, list[str]]:
    """A support set from one sub-folder of images a class: x uint8 (S, 1, 28, 28), y (S,), class names.

    Raises McdiError when there are fewer than two classes.
    """
    classes = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    if len(classes) < 2:
        raise McdiError(f"{folder} needs at least two sub-folders of example images, one a class; it has {len(classes)}")
    images = [read_images(c)[0] for c in classes]
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(x) for x in images]))
    return torch.cat(images), labels, [c.name for c in classes]
