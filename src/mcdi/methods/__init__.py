"""Every method by its name in the field; all of them are WeightGenerators."""

from collections.abc import Callable, Mapping
from typing import Any

from mcdi.errors import McdiError
from mcdi.methods.base import Log, WeightGenerator, for_shots, silent
from mcdi.methods.baselines.closed_form import ClosedForm, ClosedFormSettings, LinearProbe, MetaBaseline, Prototypes
from mcdi.methods.baselines.finetune import FineTune, FineTuneSettings, adapt
from mcdi.methods.baselines.maml import Maml, MamlSettings
from mcdi.methods.baselines.reptile import Reptile, ReptileSettings
from mcdi.methods.mcdi.method import Diffusion
from mcdi.methods.mcdi.sampling import SAMPLERS, SHARES, Sampling
from mcdi.methods.mcdi.settings import DiffusionSettings
from mcdi.methods.published.ghn3 import Ghn, GhnSettings
from mcdi.methods.published.icis import Icis, IcisSettings
from mcdi.methods.published.latent import Latent, LatentSettings
from mcdi.methods.published.metadiff import MetaDiff
from mcdi.methods.published.noise_prediction import FromNoiseSettings
from mcdi.methods.published.ocd import OcdSettings, ResidualOcd
from mcdi.methods.published.vae import Vae, VaeSettings
from mcdi.utils.settings import make, merged

__all__ = [
    "DIFFUSIONS",
    "FROM_WEIGHTS",
    "HEADS_ALONE",
    "METHODS",
    "SAMPLERS",
    "SHARES",
    "SLOW",
    "Diffusion",
    "FineTune",
    "Log",
    "Sampling",
    "WeightGenerator",
    "adapt",
    "for_shots",
    "make_method",
    "silent",
]


def _diffusion(**fixed: Any) -> Callable[[Mapping[str, Any]], WeightGenerator]:
    def build(values: Mapping[str, Any]) -> WeightGenerator:
        return Diffusion(make(DiffusionSettings, merged(values, fixed), "generator"))

    return build


def _latent(**fixed: Any) -> Callable[[Mapping[str, Any]], WeightGenerator]:
    return lambda values: Latent(make(LatentSettings, {**values, **fixed}, "latent diffusion"))


def _closed(kind: type[ClosedForm], *grid: float) -> Callable[[Mapping[str, Any]], WeightGenerator]:
    return lambda values: kind(make(ClosedFormSettings, {"grid": grid, **values}, kind.name))


# The rows of the ablation differ by one value each; they share every other setting of the [generator] table.
METHODS: dict[str, Callable[[Mapping[str, Any]], WeightGenerator]] = {
    "mc-di": _diffusion(objective="local"),
    "mv-di": _diffusion(objective="local", k=1),
    "tw-di": _diffusion(objective="vanilla"),
    "ocd": _diffusion(objective="local", k=1, training={"meta": "none"}),
    "hypernetwork": _diffusion(objective="regression", k=1, sampling={"steps": 1, "temperature": 0.0, "samples": 1}),
    "prototypes": _closed(Prototypes),
    "linear-probe": _closed(LinearProbe, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0),
    "meta-baseline": _closed(MetaBaseline, 1.0, 3.0, 5.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0),
    "adam": lambda values: FineTune(make(FineTuneSettings, values, "adam")),
    "reptile": lambda values: Reptile(make(ReptileSettings, values, "reptile")),
    "maml": lambda values: Maml(make(MamlSettings, values, "maml")),
    "meta-hypernetwork": lambda values: Maml(make(MamlSettings, {"code": 32, **values}, "meta-hypernetwork")),
    "ghn-3": lambda values: Ghn(make(GhnSettings, values, "ghn-3")),
    "metadiff": lambda values: MetaDiff(make(FromNoiseSettings, values, "metadiff")),
    "vae": lambda values: Vae(make(VaeSettings, values, "vae")),
    "p-diff": _latent(conditional=False),
    "d2nwg": _latent(conditional=True),
    "ocd-residual": lambda values: ResidualOcd(make(OcdSettings, values, "ocd-residual")),
    "icis": lambda values: Icis(make(IcisSettings, values, "icis")),
}
HEADS_ALONE = ("prototypes", "linear-probe", "meta-baseline")  # formulas for linear heads
DRAW_NOTHING = (*HEADS_ALONE, "adam")  # one seed says all
SLOW = ("ocd-residual", "metadiff", "d2nwg", "p-diff")  # minutes of training and of sampling: two seeds
DIFFUSIONS = ("mc-di", "mv-di", "tw-di", "ocd", "hypernetwork")  # they share a recipe's [generator] table
FROM_WEIGHTS = ("vae", "p-diff", "d2nwg", "ocd-residual", "icis", "metadiff")  # other systems that learn from stored weights
LEARNS_FROM_TRAJECTORIES = (*DIFFUSIONS, *FROM_WEIGHTS)


def make_method(name: str, values: Mapping[str, Any]) -> WeightGenerator:
    """An untrained method. Raises McdiError for an unknown name, or settings that it does not have."""
    if name not in METHODS:
        raise McdiError(f"unknown method {name!r}: choose {', '.join(METHODS)}")
    return METHODS[name](values)
