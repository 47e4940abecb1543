"""The [family] tables of image sources: which images, which backbone, and what they are checked for."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from mcdi.errors import McdiError
from mcdi.networks.backbones.pretrained import is_pretrained
from mcdi.networks.backbones.vision import BACKBONES, Objective
from mcdi.networks.heads import Condition
from mcdi.tasks.registry import FamilySettings

NAMES = ", ".join([*BACKBONES, "hf:ID", "timm:NAME", "torchvision:KIND=FILE"])  # of backbones


@dataclass(frozen=True)
class ImageSettings(FamilySettings):
    """Images, and a frozen backbone in front of the network.

    Attributes:
        condition: what a generator is told of a class, see networks.heads.Head (linear heads).
        centred: tasks see features less the centre of their support set (linear heads).
        rotations: training classes also come turned by 90, 180 and 270 degrees, as classes of their own.
        limit, examples: at most so many classes a split, images a class.
        side: pixels of an image's side.
        backbone: "conv4" or "resnet8", trained here; or pretrained on colour images, with backbone_steps = 0: "hf:ID" (or a
            folder) of transformers, "timm:NAME", "torchvision:resnet50=FILE".
        backbone_data: images that the backbone is trained on: training classes of the "same" data, or of "glyphs" drawn at
            that side, a shift of domain.
        backbone_loss: of ProtoNet, of a classifier of all training classes, or both.
        backbone_steps, backbone_way: episodes of its training, and classes of one.
        embedding: a second backbone, by whose features tasks are embedded while the head reads the first's (linear heads). One
            that is trained here is trained as the backbone is, with the next seed. "": none.
    """

    channels: ClassVar[int] = 1
    by_domain: ClassVar[bool] = False  # whether classes are "domain/class", and a task is of one domain

    condition: Condition = "means"
    centred: bool = False
    rotations: bool = False
    limit: int | None = None
    examples: int | None = None
    side: int = 28
    backbone: str = "conv4"
    backbone_data: Literal["same", "glyphs"] = "same"
    backbone_loss: Objective = "prototypes"
    backbone_steps: int = 400
    backbone_way: int = 60
    embedding: str = ""

    def check(self) -> None:
        super().check()
        if self.backbone_data == self.data:
            raise McdiError(f"backbone_data = {self.data!r} changes nothing where data = {self.data!r}; leave it out")
        if is_pretrained(self.backbone):
            if self.channels != 3 or self.backbone_steps:
                given = f"data = {self.data!r}, backbone_steps = {self.backbone_steps}"
                raise McdiError(f"{self.backbone} is pretrained on colour images, it does not go with {given}: set 0 steps")
        elif self.backbone not in BACKBONES:
            raise McdiError(f"unknown backbone {self.backbone!r}: choose {NAMES}")
        smallest = 16 if "conv4" in (self.backbone, self.embedding) else 1
        if self.side < smallest:
            raise McdiError(f"side = {self.side} is too small for conv4: give at least {smallest}")
        for name, number in (("limit", self.limit), ("examples", self.examples)):
            if number is not None and number < 1:
                raise McdiError(f"{name} = {number} must be at least 1, or left out for all there are")
        given = f"embedding = {self.embedding!r}"
        if self.embedding and is_pretrained(self.embedding):
            if self.embedding == self.backbone:
                raise McdiError(f"{given} is the backbone already: leave it out")
        elif self.embedding and self.embedding not in BACKBONES:
            raise McdiError(f"{given} is unknown: choose {NAMES}, or leave it out for the backbone")
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
