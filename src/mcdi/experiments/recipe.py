"""The recipe of a run, checked as a whole: family, preparation, methods, evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mcdi.errors import McdiError
from mcdi.experiments.recipe_files import read_tables
from mcdi.methods import all_methods, method_spec
from mcdi.methods.base import ChecksNetwork, NetworkFacts
from mcdi.networks.backbones.language import LoraSettings
from mcdi.networks.backbones.pretrained import is_pretrained
from mcdi.networks.backbones.vision import BACKBONES, Objective
from mcdi.networks.linear_head import CLOSED_FORM_HEADS, Condition
from mcdi.networks.registry import NETWORKS
from mcdi.tasks.images.omniglot import Split
from mcdi.tasks.text.pools import TextSettings
from mcdi.trajectories.prepare import Preparation
from mcdi.utils.settings import make, merged

COLOURS = ("natural", "domains")  # data of three channels
KINDS = ", ".join([*BACKBONES, "hf:ID", "timm:NAME", "torchvision:KIND=FILE"])


@dataclass(frozen=True)
class FamilySettings:
    """Which tasks, and which network is generated for them.

    network "linear-head": a classifier row a class on frozen features; "film-head": these rows and the scale and shift of
    conv4's last normalisation; "pixel-net", "conv-net": all weights of a small image network; "curve": all weights of a
    small R -> R network (data "sines"); "lora": classifier rows and LoRA pairs of a language model (data "text", see `text` and
    `lora`). side: pixels of an image's side. backbone_data: the images that the backbone is
    trained on, training classes of the "same" data or of the embedded "glyphs", drawn at that side: a shift of domain.
    backbone: "conv4" or "resnet8", trained here, or one of colour images that comes trained, "hf:ID" (or a folder) of
    transformers, "timm:NAME" or "torchvision:resnet50=FILE", with backbone_steps = 0. backbone_steps: episodes of its
    training, backbone_loss: of ProtoNet, of a classifier of all training classes, or both. embedding: another such network, by
    whose features the tasks of a linear head are embedded, while the head reads the backbone's ("": these too); one that is
    trained here is trained as the backbone is, with the next seed. split: of Omniglot, whole
    alphabets or characters of all of them. domain: of data "domains", the one that is never met before the test. limit: at
    most so many classes a split;
    examples: at most so many images a class. condition: what the generator of a linear head, or of "lora", reads of a class,
    see LinearHead; centred: of features less the centre of the support set.
    """

    data: Literal["glyphs", "omniglot", "natural", "domains", "sines", "text"] = "glyphs"
    network: Literal["linear-head", "film-head", "pixel-net", "conv-net", "curve", "lora"] = "linear-head"
    condition: Condition = "means"
    centred: bool = False
    way: int = 5
    shots: tuple[int, ...] = (1, 5)
    queries: int = 15
    rotations: bool = False
    limit: int | None = None
    examples: int | None = None
    split: Split = "alphabets"
    domain: str = ""
    side: int = 28
    backbone: str = "conv4"
    backbone_data: Literal["same", "glyphs"] = "same"
    backbone_loss: Objective = "prototypes"
    backbone_steps: int = 400
    backbone_way: int = 60
    embedding: str = ""
    text: TextSettings = TextSettings()
    lora: LoraSettings = LoraSettings()
    seed: int = 0


@dataclass(frozen=True)
class Evaluation:
    """tasks: unseen tasks of the test split, the same for every method. validation: tasks on which a sampler is selected.
    seeds: one generator is trained with each."""

    tasks: int = 600
    validation: int = 300
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Recipe:
    """What decides a run. generator: settings shared by the methods that train a denoiser. method: a table for each."""

    name: str
    about: str = ""
    methods: tuple[str, ...] = ("prototypes", "adam", "reptile", "hypernetwork", "ocd", "tw-di", "mv-di", "mc-di")
    family: FamilySettings = field(default_factory=FamilySettings)
    preparation: Preparation = field(default_factory=Preparation)
    generator: Mapping[str, Any] = field(default_factory=dict)
    method: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def settings_of(self, name: str) -> dict[str, Any]:
        """The settings that method `name` is built with."""
        return merged(self.generator if method_spec(name).shared_settings else {}, self.method.get(name, {}))


def read_recipe(name: str) -> Recipe:
    """A shipped recipe by name, or a TOML file by path, with its base. Raises McdiError that lists everything wrong with it."""
    return checked(read_tables(name), name)


def checked(values: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from plain values; `where` names them in errors. Every method is built, so that its settings are checked too."""
    recipe = make(Recipe, values, where)
    unknown = [m for m in (*recipe.methods, *recipe.method) if m not in all_methods()]
    if unknown:
        raise McdiError(f"{where}: unknown method {unknown[0]!r}, choose {', '.join(all_methods())}")
    for name in recipe.methods:
        method = method_spec(name).build(recipe.settings_of(name))
        if not isinstance(method, ChecksNetwork):
            continue
        kind = recipe.family.network
        alone = recipe.family.lora.generate == "rows" if kind == "lora" else kind == "linear-head"
        heads = CLOSED_FORM_HEADS if recipe.family.condition == "heads" else NETWORKS[kind].condition_heads
        method.check_network(NetworkFacts(kind, heads, alone, bool(recipe.family.embedding)))
        if recipe.preparation.k % method.local_targets:
            raise McdiError(
                f"{where}: {name} takes k = {method.local_targets} targets evenly from preparation.k = {recipe.preparation.k}: "
                "make preparation.k a multiple of it"
            )
    family = recipe.family
    if (family.data == "text") != (family.network == "lora"):
        raise McdiError(f"{where}: network = {family.network!r} does not fit data = {family.data!r}; text goes with lora")
    if family.data == "text" and family.condition not in ("means", "examples"):
        raise McdiError(f"{where}: condition = {family.condition!r} is for images: text has means, or examples beside them")
    if family.lora.start == "drawn":
        raise McdiError(f"{where}: lora.start = 'drawn' is where the study adapters fine-tunes from, no recipe: leave it out")
    _check_images(family, where)
    _check_embedding(family, where)
    if not (recipe.methods and family.shots and recipe.evaluation.seeds):
        raise McdiError(f"{where}: methods, shots and seeds need at least one entry each")
    counts = (*family.shots, family.queries, recipe.evaluation.tasks, recipe.evaluation.validation, recipe.preparation.tasks)
    if min(counts) < 1 or family.way < 2:
        raise McdiError(f"{where}: way must be at least 2; shots, queries and tasks at least 1")
    return recipe


def _check_images(family: FamilySettings, where: str) -> None:
    if (family.data == "sines") != (family.network == "curve"):
        raise McdiError(f"{where}: network = {family.network!r} does not fit data = {family.data!r}; sines go with curve")
    if family.network in ("pixel-net", "conv-net") and (family.data in COLOURS or family.side % 14):
        given = f"data = {family.data!r}, side = {family.side}"
        side = "reads drawings of a side that is a multiple of 14"
        raise McdiError(f"{where}: {family.network} {side}, not {given}; use linear-head")
    if (family.data == "domains") != bool(family.domain):
        raise McdiError(f"{where}: family.domain names the unseen domain of data = 'domains', and there it is needed")
    if family.network == "film-head" and family.backbone != "conv4":
        given = f"backbone = {family.backbone!r}"
        raise McdiError(f"{where}: film-head adapts the last normalisation of conv4, not of {given}; use linear-head or conv4")
    if family.backbone_data == "glyphs" and family.data in ("glyphs", "sines"):
        why = "already draws glyphs" if family.data == "glyphs" else "has no backbone"
        raise McdiError(f"{where}: backbone_data = 'glyphs' changes nothing where data = {family.data!r} {why}; leave it out")
    if is_pretrained(family.backbone):
        if family.data not in COLOURS or family.backbone_steps:
            given = f"data = {family.data!r}, backbone_steps = {family.backbone_steps}"
            raise McdiError(
                f"{where}: {family.backbone} is pretrained on colour images, it does not go with {given}: set 0 steps"
            )
    elif family.backbone not in BACKBONES:
        raise McdiError(f"{where}: unknown backbone {family.backbone!r}: choose {KINDS}")
    smallest = 16 if "conv4" in (family.backbone, family.embedding) else 1
    if family.side < smallest:
        raise McdiError(f"{where}: side = {family.side} is too small for conv4: give at least {smallest}")
    for name, number in (("limit", family.limit), ("examples", family.examples)):
        if number is not None and number < 1:
            raise McdiError(f"{where}: {name} = {number} must be at least 1, or left out for all there are")


def _check_embedding(family: FamilySettings, where: str) -> None:
    given = f"{where}: embedding = {family.embedding!r}"
    if not family.embedding:
        return
    if family.network != "linear-head":
        raise McdiError(f"{given} is for network = 'linear-head', not {family.network!r}: leave it out")
    if is_pretrained(family.embedding):
        if family.embedding == family.backbone:
            raise McdiError(f"{given} is the backbone already: leave it out")
    elif family.embedding not in BACKBONES:
        raise McdiError(f"{given} is unknown: choose {KINDS}, or leave it out for the backbone")
    elif not family.backbone_steps:
        raise McdiError(f"{given} is trained here, and backbone_steps = 0: choose one that comes trained, hf:ID say")
