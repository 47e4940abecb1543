"""Sources of data by name: the settings that they share, and `register_source`, with which a source adds itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from torch import Tensor

from mcdi.errors import McdiError
from mcdi.networks.base import Network, NetworkTraits
from mcdi.networks.registry import NETWORKS
from mcdi.tasks.family import TaskFamily
from mcdi.utils.registry import Registry
from mcdi.utils.settings import check_fields, make


@dataclass(frozen=True)
class FamilySettings:
    """What every [family] table of a recipe has; a source of data extends it with settings of its own.

    Attributes:
        data: name of the source.
        network: name of the network whose weights are generated.
        way: classes of a task.
        shots: examples (a class) of support sets; a run measures every number.
        queries: examples (a class) of query sets.
        seed: decides everything random that the source does.
    """

    data: str = "glyphs"
    network: str = "linear-head"
    way: int = 5
    shots: tuple[int, ...] = (1, 5)
    queries: int = 15
    seed: int = 0

    def check(self) -> None:
        """Raises McdiError for settings that do not go together; sources extend it."""
        check_fields(self)
        if not self.shots or min(*self.shots, self.queries) < 1 or self.way < 2:
            raise McdiError("way must be at least 2; shots needs at least one entry; shots and queries must be at least 1")
        kind, network = SOURCES.get(self.data).kind, NETWORKS.get(self.network)
        if kind not in network.data:
            fitting = ", ".join(n for n in NETWORKS if kind in NETWORKS.get(n).data)
            given = f"network = {self.network!r} does not fit data = {self.data!r}"
            raise McdiError(f"{given}: choose {fitting or f'a network for {kind}'}")
        network.network.check_family(self)

    @property
    def traits(self) -> NetworkTraits:
        """What methods ask of the network before it is built."""
        return NETWORKS.get(self.network).network.traits(self)

    def quick(self) -> Self:
        """The same at a size at which everything takes seconds and results mean nothing."""
        return self


class Target(NamedTuple):
    """Another data set as a run's network reads it: features (C, M, F), the names of the C classes, and for text those names as
    features (C, F)."""

    features: Tensor
    classes: list[str]
    names: Tensor | None = None


@dataclass(frozen=True)
class FamilySpec:
    """A source of data.

    Attributes:
        name: as in `data = "NAME"`.
        settings: dataclass of the [family] table, a FamilySettings.
        build: (settings, folder, *, data, device, progress) -> the family. It keeps in the run's folder what `load` needs, and
            makes nothing twice. data: --data, or None; device: where frozen networks are trained and run; progress: called
            after every step of long work, whose "loss" is logged under its name.
        load: (settings, folder) -> the family that `build` made there.
        kind: of its examples: "images", "vectors", "points", "texts", or a word of your own that a network declares.
        reads_data: whether it takes --data.
        embed_target: (settings, network, path) -> the Target at a path, for `mcdi transfer`; None where there are no targets.
    """

    name: str
    settings: type[FamilySettings]
    build: Callable[..., TaskFamily]
    load: Callable[[Any, Path], TaskFamily]
    kind: str
    reads_data: bool = True
    embed_target: Callable[[Any, Network, Path], Target] | None = None


SOURCES: Registry[FamilySpec] = Registry(
    "source of data",
    "mcdi.tasks",
    {
        **dict.fromkeys(("glyphs", "omniglot", "natural", "domains"), "mcdi.tasks.images.features"),
        "sines": "mcdi.tasks.curves",
        "text": "mcdi.tasks.text.source",
        "intents": "mcdi.tasks.text.intents",
    },
)


def register_source(spec: FamilySpec) -> None:
    """Recipes find the source under `spec.name` from now on. Raises McdiError for a name that is taken."""
    SOURCES.add(spec.name, spec)


def family_settings(values: Mapping[str, Any], where: str) -> FamilySettings:
    """The settings of the source that `values["data"]` names, from a [family] table; they are not checked yet. Raises
    McdiError: an unknown source, or everything wrong with keys and types; `where` is in front."""
    data = values.get("data", FamilySettings.data)
    if data not in SOURCES:
        raise McdiError(f"{where}.data = {data!r} must be one of {', '.join(SOURCES)}")
    return make(SOURCES.get(data).settings, values, where)
