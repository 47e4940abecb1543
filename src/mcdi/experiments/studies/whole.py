"""Studies of whole networks: what of a network every task has of its own, at which size that pays, and along which chains."""

from collections.abc import Mapping
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
ONE_STEP: dict[str, Any] = {"sampling": {"steps": 1, "temperature": 0.0}}  # validation need not choose: all are measured
SAMPLINGS: Mapping[str, Sampling | None] = {
    "1 step": Sampling(steps=1, temperature=0.0),
    f"{STEPS} steps": Sampling(steps=STEPS, temperature=0.0),
    f"{STEPS} steps, from noise": Sampling(steps=STEPS),
    "all steps, from noise": Sampling(),
}


def _whole(recipe: Recipe, *methods: str) -> list[str]:
    """Of these methods the recipe's, if it generates networks filter by filter."""
    filters = make(DiffusionSettings, recipe.settings_of("mc-di"), "generator").reads_examples
    return [n for n in methods if n in recipe.methods] if filters else []


def sizes(recipe: Recipe) -> list[Variant]:
    """Generated networks beside shared ones of 8, 16 and 32 filters a layer."""
    if recipe.family.network != "conv-net":
        return []
    names, prepared = _whole(recipe, "mc-di", *NOTHING), getattr(recipe.family, "filters", None)
    own: dict[int, dict[str, Any]] = {count: {} if count == prepared else {"filters": count} for count in FILTERS}
    return [Variant({"method": n, "filters": count}, n, family=own[count]) for count in FILTERS for n in names]


def sized(context: Context, variant: Variant, method: WeightGenerator, seed: int) -> list[Measured]:
    """Accuracy, and the number of weights."""
    weights = {"weights": context.family.downstream.space.parameters}
    return [row._replace(factors={**weights, **row.factors}) for row in measures.accuracy(context, variant, method, seed)]


def parts(recipe: Recipe) -> list[Variant]:
    """The same body for all tasks with more and more of it generated, up to all of it."""
    names = _whole(recipe, "mc-di", *NOTHING)
    out = [Variant({"generated": f"nothing: {NOTHING[n]}"}, n) for n in names if n in NOTHING]
    if "protonet" in names:
        count = LONGER * make(SharedBodySettings, recipe.settings_of("protonet"), "protonet").training.iterations
        label = f"nothing: {NOTHING['protonet']}, {LONGER} x the iterations"
        out.append(Variant({"generated": label}, "protonet", {"training": {"iterations": count}}))
    if "mc-di" in names:
        rows = {"generated": "rows of the classifier"}
        out.append(Variant(rows, "mc-di", {"generated": "classes"}, family={"head": "generated"}))
        out.append(Variant({"generated": "biases and norms (FiLM)"}, "mc-di", {"generated": "vectors"}))
        out.append(Variant({"generated": "all"}, "mc-di"))
    return out


def trained_chains(recipe: Recipe) -> list[Variant]:
    """Every objective with each way of training its chain, at a quarter of the recipe's iterations."""
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
    out = []
    for name in _whole(recipe, "hypernetwork", "mv-di", "tw-di", "mc-di"):
        chain = method_spec(name).in_landscape
        for way, (settings, preparation) in ways.items():
            if chain or "functional_steps" not in settings:
                out.append(Variant({"method": name, "trained by": way}, name, merged(common, settings), preparation))
    return out


def chained(context: Context, variant: Variant, method: WeightGenerator, seed: int) -> list[Measured]:
    """Accuracy of chains of one, of some and of all steps, from zero and from noise; of a regression, of its one step."""
    samplings = SAMPLINGS if variant.spec.in_landscape else {"1 step": None}
    return measures.accuracy(context, variant, method, seed, measures.by("sampler", samplings))
