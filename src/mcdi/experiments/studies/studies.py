"""The table of studies: of each the variants, what is measured of them, and the chart."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mcdi.errors import McdiError
from mcdi.experiments.recipe import Recipe
from mcdi.experiments.report.plots import draw_landscape
from mcdi.experiments.run import Context
from mcdi.experiments.studies import adapters, measures, transfer, whole
from mcdi.experiments.studies.measures import distilled
from mcdi.experiments.studies.tables import Chart, draw_png
from mcdi.experiments.studies.uncertainty import ensembles
from mcdi.experiments.studies.variants import Measure, Variant, trained
from mcdi.methods import all_methods, method_spec
from mcdi.methods.mcdi.settings import DiffusionSettings
from mcdi.methods.sampling import SupportsSampling
from mcdi.utils.settings import make
from mcdi.utils.workers import Progress

Settings = dict[str, Any]
Variants = Callable[[Recipe], Sequence[Variant]]


@dataclass(frozen=True)
class Study:
    """The variants of a study, and what it measures of them; ABOUT has it in words. against: (factor, value) of the rows that
    others are compared with, task by task. timed: it holds timings, so variants are measured one at a time. command: it is a
    command of its own name. picture: draws to a path what rows cannot hold."""

    variants: Variants
    measure: Measure
    chart: Chart
    against: tuple[str, Any] | None = ("method", "mc-di")
    timed: bool = False
    command: bool = False
    picture: Callable[[Context, Sequence[Variant], Path, Progress], None] | None = None


def _methods(*names: str, also: str = "") -> Variants:
    """Of a recipe's methods those of these names, and those of whose spec the field `also` is true."""

    def variants(recipe: Recipe) -> list[Variant]:
        fitting = [n for n in recipe.methods if also and getattr(method_spec(n), also)]
        return [Variant({"method": n}, n) for n in dict.fromkeys((*names, *fitting)) if n in recipe.methods]

    return variants


def _all_methods(recipe: Recipe) -> list[Variant]:
    return [Variant({"method": n}, n) for n in recipe.methods]


# The paper's k study stores 12 targets, of which every k takes its own evenly; many segments need a lower floor for noise
# at their start, and all k get the same.
SEGMENTS: Settings = {"schedule": "cosine", "floor": 2e-4}


def _segments(recipe: Recipe) -> list[Variant]:
    return [Variant({"k": k}, "mc-di", {"k": k, **SEGMENTS}, {"k": 12}) for k in (1, 2, 3, 4, 6)]


def _full(recipe: Recipe) -> int:
    return make(DiffusionSettings, recipe.settings_of("mc-di"), "generator").training.iterations


def _iterations(recipe: Recipe) -> list[Variant]:
    pairs = itertools.product(("mc-di", "mv-di"), (round(part * _full(recipe)) for part in (0.25, 0.5, 1.0, 2.0)))
    return [Variant({"method": n, "iterations": count}, n, {"training": {"iterations": count}}) for n, count in pairs]


def _reptile(recipe: Recipe) -> list[Variant]:
    """The outer step as printed needs rates at which it moves at all: 1 is the full mean displacement."""
    loops: dict[str, Settings] = {
        "single level": {"meta": "none"},
        "eta 0.005, outer Adam": {},
        "eta 0.1, outer Adam": {"inner_lr": 0.1},
        "Adam inside, eta 0.001, outer Adam": {"inner": "adam", "inner_lr": 0.001},
        "eta 0.05, outer literal, zeta 1": {"inner_lr": 0.05, "outer": "literal", "outer_lr": 1.0},
        "as printed": {"outer": "literal", "outer_lr": 0.001},
    }
    counts = (100, recipe.preparation.tasks)
    return [
        Variant({"loop": name, "tasks": n}, "mc-di", {"training": training}, {"tasks": n})
        for n in sorted({c for c in counts if c <= recipe.preparation.tasks})
        for name, training in loops.items()
    ]


def _preparation(recipe: Recipe) -> list[Variant]:
    variants: dict[str, Settings] = {
        "plain": {},
        "SAM 0.05": {"sam_rho": 0.05},
        "SAM 0.2": {"sam_rho": 0.2},
        "augmentation 0.3": {"augment": 0.3},
        "SAM 0.05, augmentation 0.3": {"sam_rho": 0.05, "augment": 0.3},
    }
    return [Variant({"preparation": n}, "mc-di", {}, {"sharpness": 8, **v}) for n, v in variants.items()]


def _settings(recipe: Recipe) -> list[Variant]:
    changes: dict[str, tuple[Settings, Settings, Settings]] = {
        "recipe": ({}, {}, {}),
        "v prediction": ({"parameterisation": "v", "prior": False}, {}, {}),
        "eps prediction": ({"parameterisation": "eps", "prior": False}, {}, {}),
        "loss weight x0": ({"weight": "x0"}, {}, {}),
        "no functional term": ({"functional": 0.0}, {}, {}),
        "functional term 30": ({"functional": 30.0}, {}, {}),
        "no linear prior": ({"prior": False}, {}, {}),
        "prior on prototypes": ({"prior_input": "prototypes"}, {}, {}),
        "floor 2e-4": ({"floor": 2e-4}, {}, {}),
        "constant alpha, floor 1e-6": ({"schedule": "constant", "floor": 1e-6}, {}, {}),
        "T = 50": ({"T": 50}, {}, {}),
        "vector MLP": ({"denoiser": "mlp", "options": {"width": 256, "depth": 2}}, {}, {}),
        "width 128, depth 3": ({"options": {"width": 128, "depth": 3}}, {}, {}),
        "class variances": ({}, {}, {"condition": "spread"}),
        "every example, cross-attention": ({"denoiser": "cross"}, {}, {"condition": "examples"}),
        "no EMA": ({"training": {"ema": 0.0}}, {}, {}),
        "4 x iterations": ({"training": {"iterations": 4 * _full(recipe)}}, {}, {}),
        "4 x tasks": ({}, {"tasks": 4 * recipe.preparation.tasks}, {}),
        "a quarter of the tasks": ({}, {"tasks": max(1, recipe.preparation.tasks // 4)}, {}),
    }
    if recipe.family.traits.embedding:
        del changes["prior on prototypes"]
    names = {f.name for f in fields(recipe.family)}  # not every source has every setting
    return [Variant({"setting": name}, "mc-di", *change) for name, change in changes.items() if names >= set(change[2])]


def _landscape(context: Context, variants: Sequence[Variant], path: Path, progress: Progress) -> None:
    """The chains of the first seed over the loss of the first test task, in the plane of their largest variance."""
    seed = context.recipe.evaluation.seeds[0]
    methods = {variant.method: trained(context, variant, seed, progress) for variant in variants}
    data = context.landscape({n: m for n, m in methods.items() if isinstance(m, SupportsSampling)})
    draw_png(path, (6.4, 6.0), lambda figure: draw_landscape(figure, data))


def fitting_methods(recipe: Recipe) -> tuple[str, ...]:
    """The methods that can generate a recipe's network: some are for linear heads, for whole networks, or for
    features of one length."""
    return tuple(spec.name for spec in all_methods().values() if spec.serves(recipe.family.traits))


ABOUT = {
    "ablation": "the component ablation and its alternatives: every method of the recipe",
    "samplers": "every sampler: score and distance of Mc-Di, Mv-Di and Tw-Di",
    "ridge-blend": (
        "the mixing weight of the generated head, and the fallback to ridge regression for out-of-distribution tasks"
    ),
    "steps": "denoising steps against distance and accuracy",
    "segments": "the number of segments k against distance and accuracy",
    "compute": "meta-training iterations against distance and accuracy, Mc-Di and Mv-Di",
    "reptile": "single level against bi-level, inner optimiser and outer step, with few training tasks and with many",
    "preparation": "SAM and augmentation on and off: accuracy against the seconds they cost, and sharpness",
    "settings": "one change at a time to the settings of Mc-Di",
    "distillation": "one step of a student that is trained to answer what all steps of a chain answer",
    "refine": "s Adam steps on the support set from generated weights, from theta_0, from REPTILE's start and from regression",
    "uncertainty": "calibration and detection of unknown classes: several samples against one answer",
    "chains": "whether a chain passes its local targets, and its path over the loss in two dimensions",
    "adapters": "LoRA adapters for sets of text outside training, from 16 shots to whole sets: accuracy, F1, seconds",
    "latency": "milliseconds for the weights of 1 and of 256 tasks, compared with Adam at its tuned steps",
    "compare": "every method: accuracy, milliseconds to adapt, seconds of training, parameters, memory",
    "parts": "which part of a network is generated: none, the classifier, biases and norms, or all of it",
    "size": "networks of 8, 16 and 32 filters a layer: generated, and one body for all tasks",
    "trained-chains": "whole networks: every objective with each way of training its chain, on an eighth of the tasks",
    "transfer": "heads for other data sets, on which nothing was trained: `mcdi transfer`",
}
STUDIES: dict[str, Study] = {
    "ablation": Study(_all_methods, measures.accuracy, Chart("method")),
    "samplers": Study(_methods(also="in_landscape"), measures.samplers, Chart("sampler", ("score", "mse"))),
    "ridge-blend": Study(
        _methods("hypernetwork", also="in_landscape"),
        measures.mixing_weights,
        Chart("mixing weight"),
        against=("mixing weight", measures.NO_FALLBACK),
    ),
    "steps": Study(_methods(also="in_landscape"), measures.steps, Chart("steps", ("score", "mse"), only=("sampler", "ddim"))),
    "segments": Study(_segments, measures.three_samplers, Chart("k", ("score", "mse"), ("sampler",)), against=("k", 1)),
    "compute": Study(_iterations, measures.three_samplers, Chart("iterations", ("score", "mse"), only=("sampler", "ddim"))),
    "reptile": Study(_reptile, measures.accuracy, Chart("tasks", series=("loop",), log=True), against=("loop", "single level")),
    "preparation": Study(
        _preparation,
        measures.prepared,
        Chart("preparation ms per task", series=("preparation",)),
        against=("preparation", "plain"),
        timed=True,
    ),
    "settings": Study(_settings, measures.ablated, Chart("setting", series=("sampler",)), against=("setting", "recipe")),
    "distillation": Study(
        _methods("mc-di"), distilled, Chart("answer", ("score", "mse"), ("chain",)), against=("answer", "all steps")
    ),
    "refine": Study(_methods("adam", "reptile", "hypernetwork", also="proposed"), measures.refined, Chart("steps")),
    "uncertainty": Study(
        _methods("prototypes", "adam", "hypernetwork", "mv-di", also="proposed"),
        ensembles,
        Chart("answer", ("score", "NLL, tuned", "AUROC, entropy")),
        against=None,
    ),
    "chains": Study(
        _methods(also="in_landscape"),
        measures.boundaries,
        Chart("segment", ("mse to own target", "mse to theta_M", "loss"), panel=None),
        against=None,
        picture=_landscape,
    ),
    "adapters": Study(adapters.variants, adapters.unseen_sets, Chart("shots", panel="set", log=True), timed=True),
    "latency": Study(
        _methods("prototypes", "adam", "hypernetwork", also="proposed"),
        measures.latency,
        Chart("ms, batch 1", series=("method", "sampler"), log=True),
        against=None,
        timed=True,
    ),
    "compare": Study(_all_methods, measures.compared, Chart("adaptation (ms)", log=True), timed=True, command=True),
    "parts": Study(whole.parts, measures.accuracy, Chart("generated"), against=("generated", "all")),
    "size": Study(whole.sizes, whole.sized, Chart("weights", log=True)),
    "trained-chains": Study(whole.trained_chains, whole.chained, Chart("trained by", panel="sampler", only=("shots", 5))),
    "transfer": Study(_all_methods, transfer.transferred, Chart("target", only=("classes", "as trained")), command=True),
}
RENAMED = {"levers": "settings", "shares": "ridge-blend"}


def find_study(name: str) -> Study:
    """The study of that name. Raises McdiError for an unknown name, or an old one."""
    if name in RENAMED:
        raise McdiError(f"the study {name!r} is called {RENAMED[name]!r} now: type that name")
    if name not in STUDIES:
        raise McdiError(f"unknown study {name!r}: choose {', '.join(STUDIES)}")
    return STUDIES[name]
