"""Studies of whole networks: which part of a network to generate, at which size that pays, and along which chains."""

from collections.abc import Mapping
from typing import Any

from mcdi.experiments.recipe import Recipe
from mcdi.experiments.run import Context
from mcdi.experiments.studies import measures
from mcdi.experiments.studies.variants import Measured, Variant
from mcdi.methods import WeightGenerator
from mcdi.methods.baselines.shared_body import SharedBodySettings
from mcdi.methods.mcdi.settings import DiffusionSettings
from mcdi.methods.sampling import Sampling
from mcdi.utils.settings import make, merged

FILTERS = (8, 16, 32)  # a layer
CLOSED_FORMS = {"protonet": "class means", "r2-d2": "ridge regression"}  # of the last layer, on one body for all tasks
LONGER = 3  # times the iterations of a shared body cost about as much as those of a generator
STEPS = 3
NO_TARGETS = 1e4  # weight of the task loss beside which stored targets change nothing
ONE_STEP: dict[str, Any] = {"steps": 1, "temperature": 0.0}
SAMPLINGS: Mapping[str, Sampling | None] = {
    "1 step": Sampling(**ONE_STEP),
    f"{STEPS} steps": Sampling(steps=STEPS, temperature=0.0),
    "all steps, from noise": Sampling(),
}


def _by_filters(recipe: Recipe) -> bool:
    """Whether a recipe generates networks filter by filter."""
    return make(DiffusionSettings, recipe.settings_of("mc-di"), "generator").reads_examples


def sizes(recipe: Recipe) -> list[Variant]:
    """Generated networks beside shared ones of 8, 16 and 32 filters a layer."""
    if recipe.family.network != "conv-net" or not _by_filters(recipe):
        return []
    names = [n for n in ("mc-di", *CLOSED_FORMS) if n in recipe.methods]
    prepared = getattr(recipe.family, "filters", None)
    own: dict[int, dict[str, Any]] = {count: {} if count == prepared else {"filters": count} for count in FILTERS}
    fixed = {"mc-di": {"sampling": ONE_STEP}}  # what validation chooses; to compare others takes longer than training
    return [Variant({"method": n, "filters": c}, n, fixed.get(n, {}), family=own[c]) for c in FILTERS for n in names]


def sized(context: Context, variant: Variant, method: WeightGenerator, seed: int) -> list[Measured]:
    """Accuracy, and the number of weights."""
    weights = {"weights": context.family.downstream.space.parameters}
    return [row._replace(factors={**weights, **row.factors}) for row in measures.accuracy(context, variant, method, seed)]


def parts(recipe: Recipe) -> list[Variant]:
    """One body for all tasks under a closed form, and the same network with more and more of it generated."""
    if not _by_filters(recipe):
        return []
    count = LONGER * make(SharedBodySettings, recipe.settings_of("protonet"), "protonet").training.iterations
    shared = {n: f"nothing: {closed_form}" for n, closed_form in CLOSED_FORMS.items()}
    longer = f"{shared['protonet']}, {LONGER} x the iterations"
    return [
        *(Variant({"generated": label}, n) for n, label in shared.items()),
        Variant({"generated": longer}, "protonet", {"training": {"iterations": count}}),
        Variant({"generated": "rows of the classifier"}, "mc-di", {"generated": "classes"}, family={"head": "generated"}),
        Variant({"generated": "biases and norms (FiLM)"}, "mc-di", {"generated": "vectors"}),
        Variant({"generated": "all"}, "mc-di", {"generated": "all"}),
    ]


def trained_chains(recipe: Recipe) -> list[Variant]:
    """Every objective with each way of training its chain, at a quarter of the recipe's iterations and half of their tasks."""
    if not _by_filters(recipe):
        return []
    full = make(DiffusionSettings, recipe.settings_of("mc-di"), "generator")
    stored, fresh = max(1, full.training.tasks // 2), max(1, full.fresh_tasks // 2)
    # The sampler is fixed, as all are measured: validation would choose among them for every variant.
    common = {
        "sampling": ONE_STEP,
        "training": {"iterations": max(1, full.training.iterations // 4), "tasks": stored},
        "fresh_tasks": fresh,
        "functional_steps": 1,
        "response": False,
    }
    chain, response = {"functional_steps": STEPS}, {"functional_steps": STEPS, "response": True}
    targets = {"functional": 0.0, "training": {"tasks": stored + fresh}}  # without a task loss more targets cost as much
    learnt = {"start": "reptile"}
    pair = ("mv-di", "mc-di")
    every = ("hypernetwork", "mv-di", "tw-di", "mc-di")
    ways: list[tuple[str, tuple[str, ...], dict[str, Any], dict[str, Any]]] = [
        ("task loss, 1 step", every, {}, {}),
        ("task loss, 1 step, no targets", ("hypernetwork",), {"functional": NO_TARGETS}, {}),
        (f"task loss, 1 to {STEPS} steps", pair, chain, {}),
        (f"task loss, 1 to {STEPS} steps, response", every[1:], response, {}),
        (f"task loss, 1 to {STEPS} steps, response, learnt start", pair, response, learnt),
        ("targets only", every, targets, {}),
        ("targets only, learnt start", every, targets, learnt),
    ]
    return [
        Variant({"method": name, "trained by": way}, name, merged(common, settings), {"start": "drawn"} | preparation)
        for way, names, settings, preparation in ways
        for name in names
    ]


def chained(context: Context, variant: Variant, method: WeightGenerator, seed: int) -> list[Measured]:
    """Accuracy of chains of one, of some and of all steps, from zero and from noise; of a regression, of its one step."""
    samplings = SAMPLINGS if variant.spec.in_landscape else {"1 step": None}
    return measures.accuracy(context, variant, method, seed, measures.by("sampler", samplings))
