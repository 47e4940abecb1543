"""Families of image tasks: a backbone is trained on the training classes, and the features of every image are kept.
Both lie in the folder of the run, `backbone.safetensors` and `features.safetensors`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.networks.backbones.embedder import Embedder, cl2n, compute_features
from mcdi.networks.backbones.pretrained import EFFICIENTNET, Pretrained, fetch, is_pretrained
from mcdi.networks.backbones.vision import BACKBONES, Backbone, Objective, make_backbone, train_backbone
from mcdi.networks.base import LastLayer, Network
from mcdi.networks.heads import Condition
from mcdi.networks.registry import NETWORKS
from mcdi.tasks.episodes import FewShot
from mcdi.tasks.images.class_images import ClassImages, with_rotations
from mcdi.tasks.images.class_metric import choose_metric
from mcdi.tasks.images.feature_cache import caching
from mcdi.tasks.images.glyphs import glyph_images
from mcdi.tasks.images.omniglot import omniglot_images
from mcdi.tasks.images.photos import domain_images, natural_images
from mcdi.tasks.images.public import public_images
from mcdi.tasks.registry import FamilySettings, FamilySpec, Target, register_source
from mcdi.utils.files import read_tensors, write_tensors
from mcdi.utils.training import BACKBONE, FEATURES, checkpoint_of, run_training
from mcdi.utils.workers import Progress

NAMES = ", ".join([*BACKBONES, EFFICIENTNET, "hf:ID", "timm:NAME", "torchvision:KIND=FILE"])  # of backbones


@dataclass(frozen=True)
class ImageSettings(FamilySettings):
    """Images, and a frozen backbone in front of the network.

    Attributes:
        condition: what a generator is told of a class, see networks.heads.Head (linear heads).
        centred: tasks see features less the centre of their support set (linear heads).
        rotations: training classes also come turned by 90, 180 and 270 degrees, as classes of their own.
        limit, examples: at most so many classes a split, images a class.
        side: pixels of an image's side; a generator on pretrained backbones alone reads a user's images at theirs.
        backbone: "conv4" or "resnet8", trained here; "none" for networks that read pixels alone; or pretrained on colour
            images, with backbone_steps = 0: "efficientnet-lite0", "hf:ID" (or a folder), "timm:NAME",
            "torchvision:resnet50=FILE".
        backbone_data: images that the backbone is trained on: training classes of the "same" data, or of "glyphs" drawn at
            that side, a shift of domain.
        backbone_loss: of ProtoNet, of a classifier of all training classes, or both.
        training_queries: examples a class of the query sets of training tasks; None: as many as of others.
        backbone_steps, backbone_way: episodes of its training, and classes of one.
        filters, pixels: of conv-net, see networks.conv_net.ConvNet: filters a layer, and pixels of a side that it reads.
        head: of conv-net and pixel-net: how the last layer is made.
        embedding: a second backbone, by whose features tasks are embedded while the head reads the first's (linear heads). One
            that is trained here is trained as the backbone is, with the next seed. "": none.
        metric_axes: of a map of the backbone's features that knows how training classes differ, see networks.discriminant
            (linear heads); 0: none.
    """

    channels: ClassVar[int] = 1
    by_domain: ClassVar[bool] = False  # whether classes are "domain/class", and a task is of one domain

    condition: Condition = "means"
    centred: bool = False
    rotations: bool = False
    limit: int | None = None
    examples: int | None = None
    training_queries: int | None = None
    side: int = 28
    backbone: str = "conv4"
    backbone_data: Literal["same", "glyphs"] = "same"
    backbone_loss: Objective = "prototypes"
    backbone_steps: int = 400
    backbone_way: int = 60
    embedding: str = ""
    filters: int = 8
    pixels: int = 14
    head: LastLayer = "generated"
    metric_axes: int = 0

    def check(self) -> None:
        super().check()
        if self.backbone_data == self.data:
            raise McdiError(f"backbone_data = {self.data!r} changes nothing where data = {self.data!r}; leave it out")
        if is_pretrained(self.backbone):
            if self.channels != 3 or self.backbone_steps:
                given = f"data = {self.data!r}, backbone_steps = {self.backbone_steps}"
                raise McdiError(f"{self.backbone} is pretrained on colour images, it does not go with {given}: set 0 steps")
        elif self.backbone == "none":
            if self.network not in ("conv-net", "pixel-net") or self.backbone_steps or self.embedding:
                given = f"network = {self.network!r}, backbone_steps = {self.backbone_steps}, embedding = {self.embedding!r}"
                raise McdiError(f"backbone = 'none' goes with conv-net and pixel-net, 0 steps and no embedding, not {given}")
        elif self.backbone not in BACKBONES:
            raise McdiError(f"unknown backbone {self.backbone!r}: choose {NAMES}")
        smallest = 16 if "conv4" in (self.backbone, self.embedding) else 1
        if self.side < smallest:
            raise McdiError(f"side = {self.side} is too small for conv4: give at least {smallest}")
        if self.filters < 2 or self.filters % 2 or self.pixels < 6:
            raise McdiError(f"filters = {self.filters} must be even, and pixels = {self.pixels} at least 6")
        if self.metric_axes and (self.metric_axes < 0 or self.network != "linear-head"):
            given = f"metric_axes = {self.metric_axes}, network = {self.network!r}"
            raise McdiError(f"a metric has a positive number of axes, and is for linear heads, not {given}: leave it out")
        for name in ("limit", "examples", "training_queries"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise McdiError(f"{name} = {number} must be at least 1, or left out")
        given = f"embedding = {self.embedding!r}"
        if self.embedding and is_pretrained(self.embedding):
            if self.embedding == self.backbone:
                raise McdiError(f"{given} is the backbone already: leave it out")
        elif self.embedding and self.embedding not in set(BACKBONES) - {"none"}:
            raise McdiError(f"{given} is unknown: choose {NAMES.replace('none, ', '')}, or leave it out for the backbone")
        elif self.embedding and not self.backbone_steps:
            raise McdiError(f"{given} is trained here, and backbone_steps = 0: choose a pretrained one, such as hf:ID")

    def quick(self) -> Self:
        return replace(self, limit=24, backbone_steps=min(2, self.backbone_steps), backbone_way=8)


@dataclass(frozen=True)
class OmniglotSettings(ImageSettings):
    """Omniglot; split: test classes are of other "alphabets", or other "characters" of all alphabets."""

    data: str = "omniglot"
    split: Literal["alphabets", "characters"] = "alphabets"


@dataclass(frozen=True)
class PhotoSettings(ImageSettings):
    """Colour images of many classes."""

    channels: ClassVar[int] = 3
    data: str = "natural"


@dataclass(frozen=True)
class DomainSettings(PhotoSettings):
    """Colour images of the same classes in several domains; domain: the one that only the test has."""

    by_domain: ClassVar[bool] = True
    data: str = "domains"
    domain: str = ""

    def check(self) -> None:
        super().check()
        if not self.domain:
            raise McdiError("family.domain names the unseen domain of data = 'domains', and there it is needed")


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
    counts: dict[str, Any] = {n: getattr(settings, n) for n in ("way", "shots", "queries", "training_queries")}
    return FewShot(settings.data, network, examples, groups=groups, **counts)


def _build(settings: ImageSettings, folder: Path, *, data: Path | None, device: str, progress: Progress) -> FewShot:
    if not (folder / FEATURES).exists():
        _embed(settings, folder, data, device, progress)
    for name in ("backbone", "embedding"):  # after a kill, too
        checkpoint_of(folder, name).unlink(missing_ok=True)
    return _load(settings, folder)


def _load(settings: ImageSettings, folder: Path) -> FewShot:
    state, metadata = read_tensors(folder / BACKBONE)
    embedder = _embedder(settings, metadata)
    try:
        embedder.restore(state)
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
        if steps:
            run_training(losses, steps, folder, name, progress)
    features = _read(settings, readers, network, images, device, progress)
    described = {"model" if n == "backbone" else n: reader.config().get("model") for n, reader in readers.items()}
    write_tensors(folder / BACKBONE, embedder.saved(), described)
    write_tensors(folder / FEATURES, features, {"groups": groups})


def _read(
    settings: ImageSettings,
    readers: Mapping[str, Embedder],
    network: Network,
    images: Mapping[str, Tensor],
    device: str,
    progress: Progress,
) -> dict[str, Tensor]:
    """Fit the readers to the training images; the features of all images through them."""
    embedder, features = readers["backbone"], {}
    backbones = [reader.backbone.cpu() for reader in readers.values()]
    # A backbone reads training images once more, for their mean, and those of validation for a metric.
    passes = [*images.values(), images["train"], *([images["val"]] if embedder.metric_axes else [])]
    total = sum(x[:, :, 0, 0, 0].numel() for x in passes) * sum(isinstance(b, Pretrained) for b in backbones)
    with caching(backbones, device, lambda done: progress("images through the backbone", done, total, {})):
        trained = {n: reader.fit(compute_features(reader.backbone, images["train"])) for n, reader in readers.items()}
        if embedder.metric_axes:
            progress("metric", 0, 1, {})
            counts: dict[str, Any] = {n: getattr(settings, n) for n in ("way", "shots", "queries")}
            val = cl2n(compute_features(embedder.backbone, images["val"]), embedder.mean)
            embedder.set_metric(choose_metric(trained["backbone"], val, embedder.metric_axes, **counts))
            progress("metric", 1, 1, {})
        for number, (n, x) in enumerate(images.items(), 1):
            features[n] = network.embed(x)
            progress("features", number, len(images), {})
    return features


def _training_images(settings: ImageSettings, splits: Mapping[str, ClassImages]) -> Tensor:
    """The images that the backbone is trained on, (C, M, channels, side, side)."""
    if settings.backbone_data == "same":
        return (splits["train"].across_domains() if settings.by_domain else splits["train"]).pixels
    drawings = READERS["glyphs"](replace(settings, examples=None), None, Path())["train"].pixels
    return drawings.expand(-1, -1, settings.channels, -1, -1)


def _embedder(settings: ImageSettings, described: Mapping[str, Any] | None = None) -> Embedder:
    """With untrained networks; pretrained ones are fetched, or rebuilt without their weights from what is `described`.
    Where all are pretrained, a user's images are read at their size, whatever the side of the training images."""
    models, names = described or {}, {"model": settings.backbone, "embedding": settings.embedding}
    backbones = [
        _backbone(settings, name, settings.seed + i, models.get(key)) for i, (key, name) in enumerate(names.items()) if name
    ]
    own = [b.scaled for b in backbones if isinstance(b, Pretrained)]
    side = max(own) if len(own) == len(backbones) else settings.side
    embedding = Embedder(backbones[1], side) if settings.embedding else None
    return Embedder(backbones[0], side, embedding, metric_axes=min(settings.metric_axes, backbones[0].features))


def _backbone(settings: ImageSettings, name: str, seed: int, described: Mapping[str, Any] | None) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if is_pretrained(name) and described is None:
            return fetch(name)
        return make_backbone({"backbone": name, "channels": settings.channels, "model": described})


def _embed_target(settings: ImageSettings, network: Network, path: Path) -> Target:
    if network.embedder is None or network.embedder.shape[0] != 3:
        raise McdiError(f"data = {settings.data!r} has no backbone of colour images: choose a recipe such as natural")
    images = public_images(path, size=network.embedder.side)
    return Target(network.embed(images.pixels), list(images.names))


for _name, _kind in zip(READERS, (ImageSettings, OmniglotSettings, PhotoSettings, DomainSettings), strict=True):
    _reads = _name != "glyphs"
    register_source(FamilySpec(_name, _kind, _build, _load, kind="images", reads_data=_reads, embed_target=_embed_target))
