"""Families of image tasks: a backbone is trained on the training classes, and the features of every image are kept.
Both lie in the folder of the run, `backbone.safetensors` and `features.safetensors`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.networks.backbones.pretrained import Pretrained, fetch, is_pretrained
from mcdi.networks.backbones.vision import Backbone, Embedder, compute_features, make_backbone, train_backbone
from mcdi.networks.registry import NETWORKS
from mcdi.tasks.episodes import FewShot
from mcdi.tasks.images.class_images import ClassImages, with_rotations
from mcdi.tasks.images.domains import domain_images
from mcdi.tasks.images.glyphs import glyph_images
from mcdi.tasks.images.omniglot import omniglot_images
from mcdi.tasks.images.photos import natural_images
from mcdi.tasks.images.settings import DomainSettings, ImageSettings, OmniglotSettings, PhotoSettings
from mcdi.tasks.registry import FamilySpec, register_source
from mcdi.utils.files import read_tensors, write_tensors
from mcdi.utils.training import BACKBONE, FEATURES, checkpoint_of, run_training
from mcdi.utils.workers import Progress

Splits = dict[str, ClassImages]


def _cut(images: Splits, settings: ImageSettings) -> Splits:
    """The first `limit` classes of every split with `examples` images each; training classes also turned, where asked."""
    few = settings.limit, settings.examples
    out = {n: ClassImages(c.images[: few[0], : few[1]], c.names[: few[0]]) for n, c in images.items()}
    return {n: with_rotations(c) if n == "train" and settings.rotations else c for n, c in out.items()}


# (settings, --data, folder of the run for downloads) -> images by split, "train", "val" and "test".
READERS: dict[str, Callable[[Any, Path | None, Path], Splits]] = {
    "glyphs": lambda s, data, run: _cut(glyph_images(s.seed, size=s.side, limit=s.limit), s),
    "omniglot": lambda s, data, run: _cut(omniglot_images(data, run / "downloads", size=s.side, split=s.split), s),
    "natural": lambda s, data, run: _cut(natural_images(data, size=s.side, limit=s.limit, examples=s.examples), s),
    "domains": lambda s, data, run: domain_images(data, s.domain, size=s.side, limit=s.limit, examples=s.examples),
}


def few_shot(
    settings: ImageSettings, embedder: Embedder, examples: Mapping[str, Tensor], groups: Mapping[str, list[int]] | None = None
) -> FewShot:
    """Tasks over features by split (C, M, X); of images, only the numbers of classes and examples are checked."""
    kind = NETWORKS.get(settings.network).network
    network = kind.for_family(settings, features=embedder.backbone.features, embedder=embedder)
    counts: dict[str, Any] = {"way": settings.way, "shots": settings.shots, "queries": settings.queries}
    return FewShot(settings.data, network, examples, groups=groups, **counts)


def _build(settings: ImageSettings, folder: Path, *, data: Path | None, device: str, progress: Progress) -> FewShot:
    if not (folder / FEATURES).exists():
        _embed(settings, folder, data, device, progress)
    return _load(settings, folder)


def _load(settings: ImageSettings, folder: Path) -> FewShot:
    state, metadata = read_tensors(folder / BACKBONE)
    embedder = _embedder(settings, metadata)
    try:
        embedder.load_state_dict(state)
    except RuntimeError as error:
        raise McdiError(f"{folder / BACKBONE} is the backbone of another version: delete {folder} and run again") from error
    features, metadata = read_tensors(folder / FEATURES)
    return few_shot(settings, embedder, features, metadata.get("groups"))


def _embed(settings: ImageSettings, folder: Path, data: Path | None, device: str, progress: Progress) -> None:
    """Train the backbone, and an embedding that is trained here; write them and the features of every image."""
    progress("images", 0, 1, {})
    splits = READERS[settings.data](settings, data, folder)
    images = {n: c.pixels for n, c in splits.items()}
    progress("images", 1, 1, {"classes": float(sum(len(c.names) for c in splits.values()))})
    embedder = _embedder(settings)
    # A task is of one domain: its styles would tell its classes apart.
    groups = {n: c.domain_numbers() for n, c in splits.items()} if settings.by_domain else None
    network, training = few_shot(settings, embedder, images, groups).downstream, _training_images(settings, splits)
    readers = {"backbone": embedder} | ({} if embedder.embedding is None else {"embedding": embedder.embedding})
    options: dict[str, Any] = {"objective": settings.backbone_loss, "way": settings.backbone_way}
    for seed, (name, reader) in enumerate(readers.items(), settings.seed):
        steps = 0 if isinstance(reader.backbone, Pretrained) else settings.backbone_steps
        losses = partial(train_backbone, reader.backbone.to(device), training, steps=steps, seed=seed, **options)
        run_training(losses, steps, folder, name, progress)
        reader.fit(compute_features(reader.backbone.cpu(), images["train"]))
    described = {"model" if n == "backbone" else n: reader.config().get("model") for n, reader in readers.items()}
    write_tensors(folder / BACKBONE, embedder.state_dict(), described)
    for name in readers:
        checkpoint_of(folder, name).unlink(missing_ok=True)
    features = {}
    for done, (n, x) in enumerate(images.items(), 1):
        features[n] = network.embed(x)
        progress("features", done, len(images), {})
    write_tensors(folder / FEATURES, features, {"groups": groups})


def _training_images(settings: ImageSettings, splits: Mapping[str, ClassImages]) -> Tensor:
    """The images that the backbone is trained on, (C, M, channels, side, side)."""
    if settings.backbone_data == "same":
        return (splits["train"].across_domains() if settings.by_domain else splits["train"]).pixels
    drawings = READERS["glyphs"](replace(settings, examples=None), None, Path())["train"].pixels
    return drawings.expand(-1, -1, settings.channels, -1, -1)


def _embedder(settings: ImageSettings, described: Mapping[str, Any] | None = None) -> Embedder:
    """With untrained networks; pretrained ones are fetched, or rebuilt without their weights from what is `described`."""
    models, embedding = described or {}, None
    if settings.embedding:
        other = _backbone(settings, settings.embedding, settings.seed + 1, models.get("embedding"))
        embedding = Embedder(other, settings.side)
    return Embedder(_backbone(settings, settings.backbone, settings.seed, models.get("model")), settings.side, embedding)


def _backbone(settings: ImageSettings, name: str, seed: int, described: Mapping[str, Any] | None) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if is_pretrained(name) and described is None:
            return fetch(name)
        return make_backbone({"backbone": name, "channels": settings.channels, "model": described})


for _name, _kind in zip(READERS, (ImageSettings, OmniglotSettings, PhotoSettings, DomainSettings), strict=True):
    register_source(FamilySpec(_name, _kind, _build, _load, kind="images", reads_data=_name != "glyphs"))
