"""Image files as they look: turned as the camera was held, on white, at any size and depth; and folders of them."""

import io
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.tasks.images.class_images import DRAWING, Shape
from mcdi.utils.files import visible
from mcdi.utils.places import check_readable

HEIC = (".heic", ".heif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".bmp", ".gif", ".webp", ".tif", ".tiff", *HEIC)
SUFFIXES = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
VISIBLE = 0.5  # of the largest opacity of an image, from which a pixel counts as drawn
PAPERS = (255, 0, 128)  # grey levels that what is transparent becomes, the first that shows what is drawn
CONTRAST, HIDDEN = 64, 0.05  # levels of a paper that hide a pixel, and the share of an outline that may be hidden
log = logging.getLogger("mcdi.images")
Source = Path | memoryview  # of one encoded image
MOST_PIXELS = 300_000_000  # to decode: a gigabyte of colours
_LIMIT = threading.Lock()  # of Pillow's limit of pixels, which is one for the process


@contextmanager
def opened(source: Source, formats: tuple[str, ...] | None = None) -> Iterator[Image.Image]:
    """An image file before its pixels are decoded, of Pillow's `formats`, by default any. Pillow's limit of pixels is not
    applied: photos of phones are beyond it, and a server has limits of its own."""
    if isinstance(source, Path) and source.suffix.lower() in HEIC:
        _read_heic(source)
    data: Any = source if isinstance(source, Path) else io.BytesIO(source)
    with _LIMIT:
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            file = Image.open(data, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = usual
    with file:
        yield file


def scale_down(file: Image.Image, side: int) -> None:
    """Let a JPEG be decoded at the smallest of 1, 1/2, 1/4 and 1/8 of its size at which its sides have `side` pixels; its
    `size` is then that. Other formats stay as they are."""
    file.draft(None, (side, side))


def _read_heic(path: Path) -> None:
    """Teach Pillow the format. Raises McdiError where the package for it is missing."""
    try:
        import_module("pillow_heif").register_heif_opener()
    except ImportError as error:
        raise McdiError(
            f"{path} is in the HEIC format, which needs a package: pip install pillow-heif, or save it as JPEG"
        ) from error


def read_image(source: Source, shape: Shape, where: str) -> Tensor:
    """An image file, by path or by its bytes, as uint8 of `shape`: (1, side, side) or (3, side, side). One channel: a
    drawing, ink = 255; a dark one on light paper is inverted. Three: a colour image, its shorter side resized, the
    centre kept. It is turned as its EXIF orientation says, what is transparent becomes white (black or
    grey where white would hide what is drawn), and 16 bits become 8. Raises
    McdiError naming `where` for an unreadable file."""
    side = shape[-1]
    try:
        with opened(source) as file:
            scale_down(file, side)
            if file.width * file.height > MOST_PIXELS:  # more likely a damaged header than an image
                raise McdiError(f"{where} has {file.width} x {file.height} pixels to decode: save it smaller, or as JPEG")
            return fit_image(file, shape, where)
    except McdiError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(source, Path):
            check_readable(source)
        raise McdiError(f"{where} cannot be read as an image: replace or remove it") from error


def fit_image(image: Image.Image, shape: Shape, where: str) -> Tensor:
    """As `read_image`, of an image in memory."""
    channels, _, side = shape
    colours = _opaque(_of_eight_bits(_upright(image), where), "L" if channels == 1 else "RGB")
    if channels == 1:
        grey = np.array(colours.resize((side, side), Image.Resampling.BOX))
        return torch.from_numpy(255 - grey if grey.mean() > 127 else grey)[None]
    width, height = colours.size
    edge = min(width, height)
    left, top = (width - edge) / 2, (height - edge) / 2
    smooth = Image.Resampling.BOX if edge >= side else Image.Resampling.BICUBIC  # enlarged, BOX repeats pixels
    small = colours.resize((side, side), smooth, box=(left, top, left + edge, top + edge))
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def _upright(file: Image.Image) -> Image.Image:
    """The image as the camera was held. A damaged EXIF block says nothing of that, and is no reason to refuse the image."""
    file.load()
    try:
        return ImageOps.exif_transpose(file)
    except Exception:  # Pillow raises many kinds
        return file


def _of_eight_bits(image: Image.Image, where: str) -> Image.Image:
    """Grey images of 16 bits in 8, which Pillow would clip to white. Raises McdiError for values of an unknown range."""
    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F" or values.min() < 0 or values.max() > 65_535:
        raise McdiError(f"{where} has 32 bits a pixel, and what is white in it is unknown: save it with 8 or 16")
    return Image.fromarray((values / 257).round().astype(np.uint8))


def _opaque(image: Image.Image, mode: str) -> Image.Image:
    """The image in `mode`, "L" or "RGB", without transparency: on white, or on black or grey where white would hide the outline
    of what is drawn."""
    if image.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in image.info:
        return image.convert("RGB").convert(mode)
    image = image.convert("RGBA")
    alpha, drawn = image.getchannel("A"), image.convert("RGB").convert(mode)
    opacity = np.asarray(alpha)
    if opacity.min() == 255:
        return drawn
    least = max(1.0, VISIBLE * float(opacity.max()))
    seen = opacity >= least
    outline = seen & (np.asarray(alpha.filter(ImageFilter.MinFilter(3))) < least)
    values = np.asarray(drawn)[outline if outline.any() else seen].astype(np.int16)
    levels = values.reshape(len(values), len(drawn.getbands()))
    hidden = {paper: float((abs(levels - paper).max(1) < CONTRAST).mean()) if len(levels) else 0.0 for paper in PAPERS}
    paper = next((p for p in PAPERS if hidden[p] <= HIDDEN), min(PAPERS, key=lambda p: hidden[p]))
    return Image.composite(drawn, Image.new(mode, image.size, (paper,) * len(drawn.getbands())), alpha)


def folders_in(folder: Path) -> list[Path]:
    """The visible folders in a folder, in order."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and visible(p.name)) if folder.is_dir() else []


def files_of(folder: Path) -> list[Path]:
    """The image files in a folder and in the folders below it, in order; a warning counts the visible files that are none."""
    found = _files(folder)
    _warn(folder, found.unused)
    return found.images


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """The image files of every visible folder in `folder`, as `files_of`, by its name."""
    found = {p.name: _files(p) for p in folders_in(folder)}
    beside = [p for p in folder.iterdir() if p.is_file() and visible(p.name)] if found else []
    _warn(folder, sum((f.unused for f in found.values()), Counter()), len(beside))
    return {name: f.images for name, f in found.items()}


class _Files(NamedTuple):
    images: list[Path]
    unused: Counter[str]  # visible files by their suffix


def _files(folder: Path) -> _Files:
    below = (p for p in folder.rglob("*") if visible(*p.relative_to(folder).parts))
    files = sorted(p for p in below if not p.is_dir() or p.is_symlink())  # links to folders are not followed: they may turn
    images = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
    return _Files(images, Counter(map(_kind, set(files) - set(images))))


def _kind(path: Path) -> str:
    """What a file is that is not used."""
    if path.is_dir() or not path.exists():
        return "links to folders" if path.is_dir() else "broken links"
    return path.suffix.lower() or "without a suffix"


def _warn(folder: Path, unused: Counter[str], beside: int = 0) -> None:
    if unused:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(unused.items()))
        log.warning("%s: %d files are not used (%s): images are %s", folder, unused.total(), kinds, SUFFIXES)
    if beside:
        log.warning("%s: %d files beside the folders of classes are not used", folder, beside)


def read_images(folder: Path, shape: Shape = DRAWING) -> tuple[Tensor, list[str]]:
    """Every image file in a folder and in those below it, by name, as `read_image` makes it: uint8 (N, *shape), and the paths.
    Raises McdiError naming a folder without images, or an unreadable file."""
    if not folder.is_dir():
        raise McdiError(f"{folder} is not a folder: give one that holds image files")
    return _stacked(folder, files_of(folder), shape)


def _stacked(folder: Path, paths: list[Path], shape: Shape) -> tuple[Tensor, list[str]]:
    if not paths:
        raise McdiError(f"{folder} holds no image files ({SUFFIXES}): add some")
    return torch.stack([read_image(path, shape, str(path)) for path in paths]), [str(p) for p in paths]


def read_folder(folder: Path, shape: Shape = DRAWING) -> tuple[Tensor, Tensor, list[str]]:
    """A support set from one sub-folder of images a class: x uint8 (S, *shape), y (S,), class names. Raises McdiError
    when there are fewer than two classes."""
    classes = class_folders(folder) if folder.is_dir() else {}
    if len(classes) < 2:
        raise McdiError(f"{folder} needs at least two sub-folders of example images, one a class; it has {len(classes)}")
    images = [_stacked(folder / name, paths, shape)[0] for name, paths in classes.items()]
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(x) for x in images]))
    return torch.cat(images), labels, list(classes)
