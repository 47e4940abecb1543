"""A run: prepare, train, evaluate, in one folder.

Every step leaves its result on disk in one rename, and a step that finds its result there does nothing: the same command
resumes.

    recipe.json  backbone.safetensors  features.safetensors  trajectories/  reference/  methods/  results/  report.html
"""

import datetime
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from mcdi import __version__
from mcdi.errors import McdiError
from mcdi.experiments import evaluate
from mcdi.experiments.build import load_family, make_family
from mcdi.experiments.logs import LOG, EventFiles, TrainingLog, read_log
from mcdi.experiments.recipe import Recipe, checked
from mcdi.generator.api import Generator
from mcdi.methods import all_methods, method_spec
from mcdi.methods.base import SupportsDevice
from mcdi.methods.mcdi.selection import choose_sampler
from mcdi.methods.sampling import SupportsSampling
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.prepare import prepare
from mcdi.trajectories.store import TrajectoryStore
from mcdi.utils.files import read_json, write_json
from mcdi.utils.workers import Backend, Progress, one_thread, work_through

T = TypeVar("T")


def open_run(folder: Path, recipe: Recipe) -> None:
    """Claim `folder` for `recipe`. Raises McdiError when it holds the run of another one (methods and seeds may be added)."""
    resolved = asdict(recipe)
    path = folder / "recipe.json"
    # A folder in which nothing was made yet, say after a wrong --data, is not claimed.
    if path.exists() and len(list(folder.iterdir())) > 1:
        old = asdict(read_run(folder))
        for key in ("tasks", "validation"):
            if old["evaluation"][key] != resolved["evaluation"][key]:
                was = f"evaluation.{key} = {old['evaluation'][key]}"
                raise McdiError(f"{folder} holds a run with {was}: choose another --out, or delete it")
        for key in ("family", "preparation", "generator", "method", "name"):
            if old[key] != resolved[key]:
                raise McdiError(f"{folder} holds a run with another {key} = {old[key]!r}: choose another --out, or delete it")
    write_json(path, resolved)


def read_run(folder: Path) -> Recipe:
    """The recipe of the run in `folder`."""
    return checked(read_json(folder / "recipe.json"), str(folder / "recipe.json"))


def prepare_run(
    folder: Path, *, data: Path | None, device: str, workers: int, progress: Progress, backend: Backend = "local"
) -> TaskFamily:
    """Images, backbone, and the trajectories of training tasks and, for measuring distances only, of the test tasks."""
    recipe = read_run(folder)
    family = make_family(recipe.family, folder, data=data, device=device, progress=progress)
    for_tests = replace(recipe.preparation, tasks=recipe.evaluation.tasks)
    for name, split, settings in (("trajectories", "train", recipe.preparation), ("reference", "test", for_tests)):
        prepare(
            family,
            folder / name,
            settings,
            split=split,
            device=device,
            workers=workers,
            backend=backend,
            name=name,
            progress=progress,
        )
    return family


def train_one(folder: Path, name: str, seed: int, device: str, progress: Progress, *, tensorboard: bool = False) -> None:
    """Fit one method with one seed and save it to methods/<name>-<seed>; a later call finds it and returns."""
    recipe = read_run(folder)
    label = f"{name}-{seed}"
    train_method(
        name,
        recipe.settings_of(name),
        load_family(recipe.family, folder),
        TrajectoryStore.open(folder / "trajectories"),
        seed=seed,
        validation=recipe.evaluation.validation,
        target=folder / "methods" / label,
        device=device,
        label=label,
        progress=progress,
        events=folder / "tensorboard" / label if tensorboard else None,
    )


def train_method(
    name: str,
    settings: Mapping[str, Any],
    family: TaskFamily,
    stored: TrajectoryStore,
    *,
    seed: int,
    validation: int,
    target: Path,
    device: str,
    label: str,
    progress: Progress,
    events: Path | None = None,
) -> None:
    """Fit a method and save it with the figures of its training; a later call finds it and returns.

    Args:
        name: of the method.
        settings: its values.
        family: the tasks.
        stored: trajectories of training tasks.
        seed: decides the result.
        validation: tasks that choose its sampler.
        target: folder of the saved method; log.jsonl grows there during training.
        device: of the training.
        label: in `progress`.
        progress: hears of every step.
        events: folder of TensorBoard's files, which hold the same as log.jsonl.
    """
    if (target / "config.json").exists():
        if events is not None and not events.exists():
            EventFiles(events, read_log(target / LOG)).close()
        return
    spec = method_spec(name)
    method = spec.build(settings)
    if isinstance(method, SupportsDevice):
        method.to(device)
    losses: list[list[float]] = []
    training_log = TrainingLog(target / LOG, events)

    def log(done: int, total: int, figures: dict[str, float]) -> None:
        if "loss" in figures and (done % max(1, total // 100) == 0):
            losses.append([done, round(figures["loss"], 5)])
        training_log(done, total, figures)
        progress(label, done, total, figures)

    start = time.perf_counter()
    with training_log:
        method.fit(family, stored if spec.needs_trajectories else None, seed=seed, log=log, folder=target)
    training: dict[str, Any] = {"fit_seconds": round(time.perf_counter() - start, 2), "losses": losses}
    if isinstance(method, SupportsDevice):
        method.to("cpu")
    if isinstance(method, SupportsSampling) and "sampling" not in settings:
        training["sampler"], method = choose_sampler(method, family, tasks=validation)
    write_json(target / "training.json", training)
    Generator(name, method, family.downstream).to("cpu").save_pretrained(target)
    for path in target.glob("checkpoint*.safetensors"):
        path.unlink()


def evaluate_one(folder: Path, name: str, seed: int, progress: Progress) -> None:
    """Measure the trained method on the run's unseen tasks: results/<name>-<seed>.json."""
    label = f"{name}-{seed}"
    path = folder / "results" / f"{label}.json"
    if path.exists():
        return
    recipe = read_run(folder)
    family = load_family(recipe.family, folder)
    reference = TrajectoryStore.open(folder / "reference").read()
    trained = folder / "methods" / label
    method = Generator.from_pretrained(trained).method
    progress(f"{label}: evaluation", 0, 1, {})
    figures = evaluate.evaluate(method, family, tasks=recipe.evaluation.tasks, seed=seed, reference=reference.targets[:, -1])
    training = read_json(trained / "training.json")
    result = {
        "method": name,
        "seed": seed,
        "family": recipe.family.data,
        "tasks": recipe.evaluation.tasks,
        "gradient_free": method_spec(name).gradient_free,
        "parameters": sum(t.numel() for t in method.state().values()),
        **training,
        **figures,
        "provenance": provenance(),
    }
    write_json(path, result)
    progress(f"{label}: evaluation", 1, 1, {})


def provenance() -> dict[str, Any]:
    """What a reader needs to judge or repeat a figure."""
    hardware = f"{os.cpu_count()} CPU cores, {platform.machine()}"
    if torch.cuda.is_available():
        hardware += f", {torch.cuda.get_device_name()}"
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None  # installed from a wheel, or no git
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return {"version": __version__, "commit": commit, "torch": torch.__version__, "hardware": hardware, "date": today}


class Jobs(NamedTuple):
    """What all jobs of a run, one a (method, seed), have in common."""

    folder: Path
    device: str
    train: bool
    score: bool
    tensorboard: bool


def _do(settings: Jobs, job: tuple[str, int], progress: Progress) -> None:
    if settings.train:
        train_one(settings.folder, *job, settings.device, progress, tensorboard=settings.tensorboard)
    if settings.score:
        evaluate_one(settings.folder, *job, progress)


def train_and_evaluate(
    folder: Path,
    jobs: list[tuple[str, int]],
    *,
    workers: int,
    device: str,
    progress: Progress,
    train: bool = True,
    score: bool = True,
    tensorboard: bool = False,
) -> None:
    """Train and/or evaluate every (method, seed), `workers` at a time: results do not depend on how many."""
    settings = Jobs(folder, device, train, score, tensorboard)
    for _ in work_through(_do, settings, jobs, workers=workers, progress=progress):
        pass


def finish(folder: Path, *, progress: Progress) -> None:
    """Measure what needs a quiet machine or several methods: latencies, chains over the loss, novelty."""
    recipe = read_run(folder)
    family = load_family(recipe.family, folder)
    trained, reference = TrajectoryStore.open(folder / "trajectories"), TrajectoryStore.open(folder / "reference").read()
    paths = sorted((folder / "results").glob("*.json"))
    generators: dict[str, SupportsSampling] = {}
    with one_thread():
        for number, path in enumerate(paths):
            result = read_json(path)
            method = Generator.from_pretrained(folder / "methods" / path.stem).method
            if "latency_ms" not in result:
                write_json(path, {**result, "latency_ms": evaluate.latency(method, family)})
            if isinstance(method, SupportsSampling) and result["curve"]:
                generators.setdefault(result["method"], method)
            progress("latency", number + 1, len(paths), {})
        shown = {n: generators[n] for n in all_methods() if n in generators and method_spec(n).in_landscape}
        if not shown:
            return
        theta0 = family.downstream.theta0(recipe.preparation.theta0_seed, reference.mask.shape[1])
        write_json(folder / "landscape.json", evaluate.landscape(shown, family, reference.targets[0], theta0))
        best = next(iter(shown.values()))
        batch = family.sample("test", range(recipe.evaluation.tasks))
        generated = best.generate(family.downstream, batch.support, batch.mask, seed=0)
        targets = trained.rows(torch.arange(min(len(trained), 2000))).targets[:, -1]
        if best.space is not None:
            write_json(folder / "novelty.json", evaluate.novelty(generated, reference.targets[:, -1], targets, best.space))


def jobs_of(recipe: Recipe) -> list[tuple[str, int]]:
    """Every (method, seed): methods that draw nothing at random run once."""
    return with_seeds(recipe, recipe.methods, str)


def with_seeds(recipe: Recipe, things: Sequence[T], method: Callable[[T], str | None]) -> list[tuple[T, int]]:
    """Every thing with every seed of the recipe; once if its method draws nothing at random, with two seeds if it is slow."""

    def runs(name: str | None) -> int:
        spec = None if name is None else method_spec(name)
        return 1 if spec and not spec.draws_at_random else 2 if spec and spec.slow else len(recipe.evaluation.seeds)

    return [(x, s) for n, s in enumerate(recipe.evaluation.seeds) for x in things if n < runs(method(x))]


def run(
    folder: Path,
    recipe: Recipe,
    *,
    data: Path | None,
    device: str,
    workers: int,
    progress: Progress,
    tensorboard: bool = False,
) -> None:
    """Prepare, train, evaluate; the report is the caller's."""
    open_run(folder, recipe)
    prepare_run(folder, data=data, device=device, workers=workers, progress=progress)
    jobs = jobs_of(recipe)
    train_and_evaluate(folder, jobs, workers=workers, device=device, progress=progress, tensorboard=tensorboard)
    finish(folder, progress=progress)
