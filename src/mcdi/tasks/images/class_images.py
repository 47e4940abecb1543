"""Named classes of small grey or colour images, M a class."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcdi.errors import McdiError

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
