"""The image sources of this package: drawn glyphs, Omniglot, photos, and photos of several domains."""

from pathlib import Path

from mcdi.tasks.images.class_images import ClassImages
from mcdi.tasks.images.features import cut, register_images
from mcdi.tasks.images.settings import DomainSettings, ImageSettings, OmniglotSettings, PhotoSettings

Splits = dict[str, ClassImages]


def _glyphs(settings: ImageSettings, data: Path | None, folder: Path) -> Splits:
    from mcdi.tasks.images.glyphs import glyph_images

    return cut(glyph_images(settings.seed, size=settings.side, limit=settings.limit), settings)


def _omniglot(settings: OmniglotSettings, data: Path | None, folder: Path) -> Splits:
    from mcdi.tasks.images.omniglot import omniglot_images

    return cut(omniglot_images(data, size=settings.side, split=settings.split, download_to=folder / "downloads"), settings)


def _photos(settings: PhotoSettings, data: Path | None, folder: Path) -> Splits:
    from mcdi.tasks.images.photos import natural_images

    return cut(natural_images(data, size=settings.side, limit=settings.limit, examples=settings.examples), settings)


def _domains(settings: DomainSettings, data: Path | None, folder: Path) -> Splits:
    from mcdi.tasks.images.domains import domain_images

    limit, examples = settings.limit, settings.examples
    return domain_images(data, settings.domain, size=settings.side, limit=limit, examples=examples)


register_images("glyphs", ImageSettings, _glyphs, reads_data=False)
register_images("omniglot", OmniglotSettings, _omniglot)
register_images("natural", PhotoSettings, _photos)
register_images("domains", DomainSettings, _domains)
