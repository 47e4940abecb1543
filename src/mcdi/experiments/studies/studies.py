"""Which studies are there, and what does each vary?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mcdi.experiments import evaluate
from mcdi.experiments.recipe import Recipe
from mcdi.experiments.studies import adapters, measures, transfer
from mcdi.experiments.studies.charts import Chart, draw_chains
from mcdi.experiments.studies.distillation import distilled
from mcdi.experiments.studies.uncertainty import ensembles
from mcdi.experiments.studies.variants import Cell, Context, Measure, trained
from mcdi.methods import HEADS_ALONE, METHODS, Diffusion, make_method
from mcdi.trajectories.store import TrajectoryStore
from mcdi.utils.workers import Progress

Settings = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A question, its variants and what is measured of each. against: the factor value that other rows are compared with
    task by task. quiet: timings, so one at a time. picture: one more, of what rows cannot hold, drawn to a path. own: it is
    a command of its own name."""

    about: str
    cells: Callable[[Recipe], Sequence[Cell]]
    measure: Measure
    chart: Chart
    against: tuple[str, Any] | None = ("method", "mc-di")
    quiet: bool = False
    own: bool = False
    picture: Callable[[Context, Sequence[Cell], Path, Progress], None] | None = None


def _methods(*names: str) -> Callable[[Recipe], list[Cell]]:
    return lambda recipe: [Cell({"method": n}, n) for n in names if n in recipe.methods]


CHAINS = ("mc-di", "mv-di", "tw-di")
# The paper's k study stores 12 targets, of which every k takes its own evenly; many segments need a lower floor for noise
# at their start, and all k get the same.
SEGMENTS: Settings = {"schedule": "cosine", "floor": 2e-4}


def _segments(recipe: Recipe) -> list[Cell]:
    return [Cell({"k": k}, "mc-di", {"k": k, **SEGMENTS}, {"k": 12}) for k in (1, 2, 3, 4, 6)]


def _full(recipe: Recipe) -> int:
    """Iterations of the recipe's meta-training."""
    made = make_method("mc-di", recipe.settings_of("mc-di"))
    assert isinstance(made, Diffusion)
    return made.settings.training.iterations


def _iterations(recipe: Recipe) -> list[Cell]:
    full = _full(recipe)
    shares = (0.25, 0.5, 1.0, 2.0)
    return [
        Cell({"method": n, "iterations": round(s * full)}, n, {"training": {"iterations": round(s * full)}})
        for n in ("mc-di", "mv-di")
        for s in shares
    ]


def _reptile(recipe: Recipe) -> list[Cell]:
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
        Cell({"loop": name, "tasks": n}, "mc-di", {"training": how}, {"tasks": n})
        for n in sorted({c for c in counts if c <= recipe.preparation.tasks})
        for name, how in loops.items()
    ]


def _preparation(recipe: Recipe) -> list[Cell]:
    variants: dict[str, Settings] = {
        "plain": {},
        "SAM 0.05": {"sam_rho": 0.05},
        "SAM 0.2": {"sam_rho": 0.2},
        "augmentation 0.3": {"augment": 0.3},
        "SAM 0.05, augmentation 0.3": {"sam_rho": 0.05, "augment": 0.3},
    }
    return [Cell({"preparation": n}, "mc-di", {}, {"sharpness": 8, **v}) for n, v in variants.items()]


def _levers(recipe: Recipe) -> list[Cell]:
    changes: dict[str, tuple[Settings, Settings, Settings]] = {
        "recipe": ({}, {}, {}),
        "v prediction": ({"parameterisation": "v", "prior": False}, {}, {}),
        "eps prediction": ({"parameterisation": "eps", "prior": False}, {}, {}),
        "plain square of x0": ({"weight": "x0"}, {}, {}),
        "no functional term": ({"functional": 0.0}, {}, {}),
        "functional term 30": ({"functional": 30.0}, {}, {}),
        "no linear prior": ({"prior": False}, {}, {}),
        "residual of prototypes alone": ({"around": "prototypes"}, {}, {}),
        "window own": ({"window": "own"}, {}, {}),
        "floor 2e-4": ({"floor": 2e-4}, {}, {}),
        "constant alpha, floor 1e-6": ({"schedule": "constant", "floor": 1e-6}, {}, {}),
        "T = 50": ({"T": 50}, {}, {}),
        "flat MLP": ({"denoiser": "mlp", "options": {"width": 256, "depth": 2}}, {}, {}),
        "width 128, depth 3": ({"options": {"width": 128, "depth": 3}}, {}, {}),
        "class variances": ({}, {}, {"condition": "spread"}),
        "every example, cross-attention": ({"denoiser": "cross"}, {}, {"condition": "examples"}),
        "self-conditioning": ({"self_condition": True}, {}, {}),
        "guidance (10 % hidden)": ({"drop": 0.1}, {}, {}),
        "no EMA": ({"training": {"ema": 0.0}}, {}, {}),
        "4 x iterations": ({"training": {"iterations": 4 * _full(recipe)}}, {}, {}),
        "4 x tasks": ({}, {"tasks": 4 * recipe.preparation.tasks}, {}),
        "a quarter of the tasks": ({}, {"tasks": max(1, recipe.preparation.tasks // 4)}, {}),
    }
    if recipe.family.traits.embedding:
        del changes["residual of prototypes alone"]
    names = {f.name for f in fields(recipe.family)}  # not every source has every setting
    return [Cell({"lever": name}, "mc-di", *change) for name, change in changes.items() if names >= set(change[2])]


def _landscape(context: Context, cells: Sequence[Cell], path: Path, progress: Progress) -> None:
    """The chains of the first seed over the loss of the first test task, in the plane of their largest variance."""
    seed = context.recipe.evaluation.seeds[0]
    shown = {c.method: m for c in cells if isinstance(m := trained(context, c, seed, progress), Diffusion)}
    reference = TrajectoryStore.open(context.folder / "reference").read()
    theta0 = context.family.downstream.theta0(context.recipe.preparation.theta0_seed, reference.mask.shape[1])
    draw_chains(evaluate.landscape(shown, context.family, reference.targets[0], theta0), path)


def serving(recipe: Recipe) -> tuple[str, ...]:
    """Methods that can give a recipe's network its weights: some are for heads alone, cosines for features of one length."""
    traits = recipe.family.traits
    never: tuple[str, ...] = () if traits.closed_form else HEADS_ALONE
    return tuple(n for n in METHODS if n not in never and (traits.equal_lengths or n != "meta-baseline"))


STUDIES: dict[str, Study] = {
    "ablation": Study(
        "the component ablation beside the alternatives: prototypes, Adam, REPTILE, regression, OCD, Tw-Di, Mv-Di, Mc-Di",
        lambda recipe: [Cell({"method": n}, n) for n in recipe.methods],
        measures.accuracy,
        Chart("method"),
    ),
    "samplers": Study(
        "what the way of sampling costs: Mc-Di, Mv-Di and Tw-Di with every sampler",
        _methods(*CHAINS),
        measures.samplers,
        Chart("sampler", ("score", "mse")),
    ),
    "shares": Study(
        "how much of a generated head to keep, and what it brings to doubt tasks unlike those of training",
        _methods("hypernetwork", *CHAINS),
        measures.shares,
        Chart("share"),
        against=("share", "never doubted"),
    ),
    "steps": Study(
        "denoising steps against distance and accuracy",
        _methods(*CHAINS),
        measures.steps,
        Chart("steps", ("score", "mse"), only=("sampler", "ddim")),
    ),
    "segments": Study(
        "the number of segments k against distance and accuracy",
        _segments,
        measures.three_chains,
        Chart("k", ("score", "mse"), ("sampler",)),
        against=("k", 1),
    ),
    "compute": Study(
        "meta-training iterations against distance and accuracy, Mc-Di and Mv-Di",
        _iterations,
        measures.three_chains,
        Chart("iterations", ("score", "mse"), only=("sampler", "ddim")),
    ),
    "reptile": Study(
        "single level against bi-level, inner optimiser and outer step, with few training tasks and with many",
        _reptile,
        measures.accuracy,
        Chart("tasks", series=("loop",), log=True),
        against=("loop", "single level"),
    ),
    "preparation": Study(
        "SAM and augmentation on and off: accuracy against the seconds they cost, and sharpness",
        _preparation,
        measures.prepared,
        Chart("preparation ms a task", series=("preparation",)),
        against=("preparation", "plain"),
        quiet=True,
    ),
    "levers": Study(
        "one change at a time to the recipe of Mc-Di",
        _levers,
        measures.levered,
        Chart("lever", series=("sampler",)),
        against=("lever", "recipe"),
    ),
    "distillation": Study(
        "can one step be taught what all steps of a chain answer?",
        _methods("mc-di"),
        distilled,
        Chart("answer", ("score", "mse"), ("chain",)),
        against=("answer", "all steps"),
    ),
    "refine": Study(
        "s Adam steps on the support set from generated weights, from theta_0, from REPTILE's start and from regression",
        _methods("adam", "reptile", "hypernetwork", "mc-di"),
        measures.refined,
        Chart("steps"),
    ),
    "uncertainty": Study(
        "calibration and unknown classes: several samples against one answer",
        _methods("prototypes", "adam", "hypernetwork", "mv-di", "mc-di"),
        ensembles,
        Chart("answer", ("score", "NLL, tuned", "AUROC, entropy")),
        against=None,
    ),
    "chains": Study(
        "whether a chain passes its local targets, and its path over the loss in two dimensions",
        _methods(*CHAINS),
        measures.boundaries,
        Chart("segment", ("mse to own target", "mse to theta_M", "loss"), panel=None),
        against=None,
        picture=_landscape,
    ),
    "adapters": Study(
        "LoRA adapters for sets of text that no training has seen, from 16 shots to whole sets: accuracy, F1, seconds",
        adapters.cells,
        adapters.unseen_sets,
        Chart("shots", series=("method",), panel="set", log=True),
        quiet=True,
    ),
    "latency": Study(
        "milliseconds for the weights of 1 and of 256 tasks, beside Adam at its tuned steps",
        _methods("prototypes", "adam", "hypernetwork", "mc-di"),
        measures.latency,
        Chart("ms, batch 1", series=("method", "sampler"), log=True),
        against=None,
        quiet=True,
    ),
    "compare": Study(
        "every system under one roof: accuracy, milliseconds to adapt, seconds of training, parameters, memory",
        lambda recipe: [Cell({"method": n}, n) for n in recipe.methods],
        measures.compared,
        Chart("adaptation (ms)", log=True),
        quiet=True,
        own=True,
    ),
    "transfer": Study(
        "heads for other data sets, on which nothing was trained: `mcdi transfer`",
        lambda recipe: [Cell({"method": n}, n) for n in recipe.methods],
        transfer.transferred,
        Chart("target", only=("classes", "as trained")),
        own=True,
    ),
}
