"""The contract of a method, and the registry: a method is anything that, given tasks, returns weights.

A method registers itself in its own file with `register_method`; the rest of the package asks its `MethodSpec`, or one of
the small protocols here and in sampling.py, and never its class.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar, runtime_checkable

from torch import Tensor

from mcdi.networks.base import Network, NetworkTraits
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.store import Stored
from mcdi.types import Examples
from mcdi.utils.registry import Registry
from mcdi.utils.settings import make, merged

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])
# Called after every step of long work with (steps done, steps in all, figures such as the loss).
Log = Callable[[int, int, dict[str, float]], None]


def silent(done: int, total: int, figures: dict[str, float]) -> None:
    """A Log that keeps nothing."""


def nearest_shots(values: Mapping[str, T], net: Network, support: Examples, mask: Tensor) -> T:
    """The entry of {shots: value} for the support set's number of examples a class, or for the nearest number."""
    shots = support.y.shape[1] // net.classes(mask.shape[1])
    return values[min(values, key=lambda n: abs(int(n) - shots))]


class WeightGenerator(Protocol):
    """What every method and every baseline implements; evaluation, tables and serving see nothing else of most of them."""

    def fit(self, family: TaskFamily, data: Stored | None, *, seed: int, log: Log = silent, folder: Path | None = None) -> Self:
        """Meta-train, or tune, on training and validation tasks.

        Args:
            family: the tasks; nothing of its test split may be read.
            data: stored trajectories of training tasks; None unless the spec says `needs_trajectories`.
            seed, log: decides the result; hears of every step.
            folder: where checkpoints go, from which a stopped training resumes to the same result.
        """

    def generate(self, net: Network, support: Examples, mask: Tensor, *, seed: int) -> Tensor:
        """Weights (B, U, D) on the natural scale for B tasks.

        Args:
            net: the downstream network.
            support: x (B, S, ...) and y (B, S).
            mask: (B, U), which units exist.
            seed: of whatever is drawn.
        """

    def config(self) -> dict[str, Any]: ...
    def state(self) -> dict[str, Tensor]: ...
    def restore(self, config: dict[str, Any], state: dict[str, Tensor]) -> Self: ...


@runtime_checkable
class ChecksNetwork(Protocol):
    """A method whose settings do not go with every network or every number of stored targets."""

    @property
    def local_targets(self) -> int:
        """k: the number of stored targets must be a multiple of it."""

    def check_network(self, traits: NetworkTraits) -> None:
        """Raises McdiError where the weights of such a network cannot be generated."""


@runtime_checkable
class SupportsFineTuning(Protocol):
    """A method of gradient steps on the support set, of which studies change the number of steps."""

    @property
    def tuned(self) -> Mapping[str, tuple[float, int, float]]:
        """{shots: (rate, steps, decay)} that validation tasks chose."""

    def initial(self, net: Network, units: int) -> Tensor:
        """The weights before the first step, (1 or U, D)."""


@runtime_checkable
class SupportsDevice(Protocol):
    """A method that trains and generates on a device that is chosen before."""

    def to(self, device: str) -> Self: ...


@dataclass(frozen=True)
class MethodSpec:
    """What the package asks of a method.

    Args:
        name: in recipes, tables and folders.
        build: an untrained method from the values of its settings.
        settings: the dataclass of these values.
        label: its name in prose.
        colour, marker: in every plot; "" takes the next free one.
        needs_trajectories: whether `fit` reads stored trajectories.
        draws_at_random: whether another seed gives another result; others run once.
        slow: minutes of training or sampling; such a method runs with two seeds and fewer test tasks.
        gradient_free: whether weights come without a gradient step.
        exportable: whether `generate` is a pure function of features that ONNX and torch.export can hold.
        seed_per_task: whether each task of a batch may have a seed of its own.
        networks: "heads" for formulas that exist for linear heads only, "last layer" for whole networks whose last layer can be
            solved in closed form.
        unit_features: whether it needs features of one length, as image embeddings have.
        proposed: whether tables mark it, and say how it compares with the baselines.
        baseline: whether it is what a user would take instead of a proposed method.
        in_landscape: whether reports draw its chain over the loss of a task.
        shared_settings: whether it reads a recipe's [generator] table, under a table of its own name.
    """

    name: str
    build: Callable[[Mapping[str, Any]], WeightGenerator]
    settings: type
    label: str
    colour: str = ""
    marker: str = ""
    needs_trajectories: bool = False
    draws_at_random: bool = True
    slow: bool = False
    gradient_free: bool = True
    exportable: bool = False
    seed_per_task: bool = False
    networks: Literal["any", "heads", "last layer"] = "any"
    unit_features: bool = False
    proposed: bool = False
    baseline: bool = False
    shared_settings: bool = False
    in_landscape: bool = False

    def serves(self, traits: NetworkTraits) -> bool:
        """Whether it can make the weights of such a network."""
        fits = {"any": True, "heads": traits.closed_form, "last layer": traits.last_layer}[self.networks]
        return fits and (traits.equal_lengths or not self.unit_features)


_MCDI = "mcdi.methods.mcdi.method"
_BASELINES, _PUBLISHED = "mcdi.methods.baselines", "mcdi.methods.published"
METHODS: Registry[MethodSpec] = Registry(
    "method",
    "mcdi.methods",
    {
        **dict.fromkeys(("mc-di", "mv-di", "tw-di", "ocd", "hypernetwork"), _MCDI),
        **dict.fromkeys(("prototypes", "linear-probe", "meta-baseline"), f"{_BASELINES}.closed_form"),
        **dict.fromkeys(("protonet", "r2-d2"), f"{_BASELINES}.shared_body"),
        **dict.fromkeys(("lda", "plda", "adaptive-plda"), f"{_BASELINES}.discriminant"),
        "logistic-regression": f"{_BASELINES}.logistic",
        "adam": f"{_BASELINES}.finetune",
        "reptile": f"{_BASELINES}.reptile",
        "maml": f"{_BASELINES}.maml",
        "meta-hypernetwork": f"{_PUBLISHED}.meta_hypernetwork",
        "ghn-3": f"{_PUBLISHED}.ghn3",
        "metadiff": f"{_PUBLISHED}.metadiff",
        "vae": f"{_PUBLISHED}.vae",
        **dict.fromkeys(("p-diff", "d2nwg"), f"{_PUBLISHED}.latent_diffusion"),
        "ocd-residual": f"{_PUBLISHED}.ocd",
        "icis": f"{_PUBLISHED}.icis",
    },
)


def register_method(
    name: str, *, settings: type, label: str = "", fixed: Mapping[str, Any] | None = None, **facts: Any
) -> Callable[[C], C]:
    """Decorate a class, whose constructor takes one `settings`, so that recipes can name it.

    Args:
        name, label: in recipes, tables and folders; in prose, by default the same.
        settings: a frozen dataclass; values are checked against it.
        fixed: values that make this name what it is; a recipe cannot change them.
        facts: further fields of `MethodSpec`.

    Raises:
        McdiError: a name that is taken.
    """
    where = "generator" if facts.get("shared_settings") else name

    def register(build: C) -> C:
        def built(values: Mapping[str, Any]) -> WeightGenerator:
            return build(make(settings, merged(values, fixed or {}), where))

        METHODS.add(name, MethodSpec(name, built, settings, label or name, **facts))
        return build

    return register


def all_methods() -> dict[str, MethodSpec]:
    """Every method by name, those of installed extensions (entry points `mcdi.methods`) included."""
    return {name: METHODS.get(name) for name in METHODS}


def method_spec(name: str) -> MethodSpec:
    """The spec of a method. Raises McdiError for an unknown name."""
    return METHODS.get(name)


def make_method(name: str, values: Mapping[str, Any]) -> WeightGenerator:
    """An untrained method. Raises McdiError for an unknown name, or settings that it does not have."""
    return method_spec(name).build(values)
