"""Studies of whole networks: what of a network every task has of its own, at which size that pays, and along which chains."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mcdi.experiments.recipe import Recipe
from mcdi.experiments.run import Context
from mcdi.experiments.studies import measures
from mcdi.experiments.studies.variants import Measured, Variant
from mcdi.methods import WeightGenerator, method_spec
from mcdi.methods.baselines.shared_body import SharedBodySettings
from mcdi.methods.mcdi.settings import DiffusionSettings
from mcdi.methods.sampling import Sampling
from mcdi.utils.settings import make, merged

FILTERS = (8, 16, 32)  # a layer
NOTHING = {"protonet": "class means", "r2-d2": "ridge regression"}  # is generated: one body for all tasks, a closed form on top
LONGER = 3  # times the iterations of a shared body cost about as much as those of a generator
STEPS = 3
ALONE = 1e4  # weight of the task loss, beside which stored targets count for nothing
ONE_STEP: dict[str, Any] = {"sampling": {"steps": 1, "temperature": 0.0}}  # validation need not choose: all are measured
SAMPLINGS: Mapping[str, Sampling | None] = {
    "1 step": Sampling(steps=1, temperature=0.0),
    f"{STEPS} steps": Sampling(steps=STEPS, temperature=0.0),
    f"{STEPS} steps, from noise": Sampling(steps=STEPS),
    "all steps, from noise": Sampling(),
}


def _by_filters(recipe: Recipe) -> bool:
    """Whether a recipe generates networks filter by filter."""
    return make(DiffusionSettings, recipe.settings_of("mc-di"), "generator").reads_examples


def sizes(recipe: Recipe) -> list[Variant]:
    """Generated networks beside shared ones of 8, 16 and 32 filters a layer."""
    if recipe.family.network != "conv-net" or not _by_filters(recipe):
        return []
    names = [n for n in ("mc-di", *NOTHING) if n in recipe.methods]
    prepared = getattr(recipe.family, "filters", None)
    own: dict[int, dict[str, Any]] = {count: {} if count == prepared else {"filters": count} for count in FILTERS}
    return [Variant({"method": n, "filters": count}, n, family=own[count]) for count in FILTERS for n in names]


def sized(context: Context, variant: Variant, method: WeightGenerator, seed: int) -> list[Measured]:
    """Accuracy, and the number of weights."""
    weights = {"weights": context.family.downstream.space.parameters}
    return [row._replace(factors={**weights, **row.factors}) for row in measures.accuracy(context, variant, method, seed)]


def parts(recipe: Recipe) -> list[Variant]:
    """The same body for all tasks with more and more of it generated, up to all of it."""
    if not _by_filters(recipe):
        return []
    count = LONGER * make(SharedBodySettings, recipe.settings_of("protonet"), "protonet").training.iterations
    shared = {n: f"nothing: {closed_form}" for n, closed_form in NOTHING.items()}
    longer = f"{shared['protonet']}, {LONGER} x the iterations"
    return [
        *(Variant({"generated": label}, n) for n, label in shared.items()),
        Variant({"generated": longer}, "protonet", {"training": {"iterations": count}}),
        Variant({"generated": "rows of the classifier"}, "mc-di", {"generated": "classes"}, family={"head": "generated"}),
        Variant({"generated": "biases and norms (FiLM)"}, "mc-di", {"generated": "vectors"}),
        Variant({"generated": "all"}, "mc-di"),
    ]


def trained_chains(recipe: Recipe) -> list[Variant]:
    """Every objective with each way of training its chain, at a quarter of the recipe's iterations."""
    if not _by_filters(recipe):
        return []
    short = make(DiffusionSettings, recipe.settings_of("mc-di"), "generator").training.iterations // 4
    common = {**ONE_STEP, "training": {"iterations": max(1, short)}}
    seen = {"functional_steps": STEPS, "response": True}
    stored = {"functional": 0.0, "training": {"tasks": 32}}  # without the task loss many more stored targets cost as much
    learnt = {"start": "reptile"}
    ways: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
        "task loss after 1 step": ({}, {}),
        f"task loss after 1 to {STEPS} steps": ({"functional_steps": STEPS}, {}),
        "as above, every step sees what its network does": (seen, {}),
        "as above, stored targets from a learnt start": (seen, learnt),
        "stored targets only": (stored, {}),
        "stored targets only, from a learnt start": (stored, learnt),
    }
    alone = Variant({"method": "mc-di", "trained by": "task loss alone"}, "mc-di", merged(common, {"functional": ALONE}))
    out = [alone, replace(alone, method="hypernetwork", factors={**alone.factors, "method": "hypernetwork"})]
    for name in ("hypernetwork", "mv-di", "tw-di", "mc-di"):
        chain = method_spec(name).in_landscape
        for way, (settings, preparation) in ways.items():
            if chain or "functional_steps" not in settings:
                out.append(Variant({"method": name, "trained by": way}, name, merged(common, settings), preparation))
    return out


def chained(context: Context, variant: Variant, method: WeightGenerator, seed: int) -> list[Measured]:
    """Accuracy of chains of one, of some and of all steps, from zero and from noise; of a regression, of its one step."""
    samplings = SAMPLINGS if variant.spec.in_landscape else {"1 step": None}
    return measures.accuracy(context, variant, method, seed, measures.by("sampler", samplings))
