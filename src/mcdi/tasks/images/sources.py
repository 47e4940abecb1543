"""The image sources of this package: drawn glyphs, Omniglot, photos, and photos of several domains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcdi.tasks.images.class_images import ClassImages, with_rotations
from mcdi.tasks.images.domains import domain_images
from mcdi.tasks.images.glyphs import glyph_images
from mcdi.tasks.images.omniglot import omniglot_images
from mcdi.tasks.images.photos import natural_images
from mcdi.tasks.images.settings import DomainSettings, ImageSettings, OmniglotSettings, PhotoSettings

Splits = dict[str, ClassImages]


def _cut(images: Splits, settings: ImageSettings) -> Splits:
    """The first `limit` classes of every split with `examples` images each; training classes also turned, where asked."""
    few = settings.limit, settings.examples
    out = {n: ClassImages(c.images[: few[0], : few[1]], c.names[: few[0]]) for n, c in images.items()}
    return {n: with_rotations(c) if n == "train" and settings.rotations else c for n, c in out.items()}


def _glyphs(settings: ImageSettings, data: Path | None, folder: Path) -> Splits:
    return _cut(glyph_images(settings.seed, size=settings.side, limit=settings.limit), settings)


def _omniglot(settings: OmniglotSettings, data: Path | None, folder: Path) -> Splits:
    return _cut(omniglot_images(data, size=settings.side, split=settings.split, download_to=folder / "downloads"), settings)


def _photos(settings: PhotoSettings, data: Path | None, folder: Path) -> Splits:
    return _cut(natural_images(data, size=settings.side, limit=settings.limit, examples=settings.examples), settings)


def _domains(settings: DomainSettings, data: Path | None, folder: Path) -> Splits:
    limit, examples = settings.limit, settings.examples
    return domain_images(data, settings.domain, size=settings.side, limit=limit, examples=examples)


# (settings, --data, folder of the run for downloads) -> images by split, "train", "val" and "test".
Reader = Callable[[Any, Path | None, Path], Splits]
READERS: dict[str, Reader] = {"glyphs": _glyphs, "omniglot": _omniglot, "natural": _photos, "domains": _domains}
