"""A run: prepare, train, evaluate, in one folder. Every step leaves its result on disk in one rename, and a step that finds its
result there does nothing: the same command resumes.

    recipe.json  backbone.safetensors  features.safetensors  trajectories/  reference/  methods/  results/  report.html
"""

import datetime
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from mcdi import __version__
from mcdi.errors import McdiError
from mcdi.experiments import evaluate
from mcdi.experiments.logs import LOG, EventFiles, TrainingLog, read_log, read_losses
from mcdi.experiments.recipe import Recipe, checked
from mcdi.generator.api import Generator
from mcdi.generator.saving import write_files
from mcdi.methods import all_methods, method_spec
from mcdi.methods.base import Log, SupportsDevice
from mcdi.methods.baselines.reptile import trajectory_start
from mcdi.methods.mcdi.selection import choose_sampler
from mcdi.methods.sampling import SupportsSampling
from mcdi.tasks.family import TaskFamily
from mcdi.tasks.registry import SOURCES, FamilySettings
from mcdi.trajectories.prepare import prepare
from mcdi.trajectories.store import Trajectories, TrajectoryStore
from mcdi.utils.files import only_writer, read_json, read_tensors, write_json, write_tensors
from mcdi.utils.workers import Backend, Progress, one_thread, silent, work_through

T = TypeVar("T")


def open_run(folder: Path, recipe: Recipe) -> None:
    """Claim `folder` for `recipe`. Raises McdiError when it holds the run of another one (methods and seeds may be added)."""
    resolved = asdict(recipe)
    path = folder / "recipe.json"
    with only_writer(folder):
        # A folder in which nothing was made yet, say after a wrong --data, is not claimed.
        if path.exists() and any(not p.name.startswith(".") and p != path for p in folder.iterdir()):
            old = asdict(read_run(folder))
            pairs = {f"evaluation.{n}": (old["evaluation"][n], resolved["evaluation"][n]) for n in ("tasks", "validation")}
            pairs |= {f"another {n}": (old[n], resolved[n]) for n in ("family", "preparation", "generator", "method", "name")}
            for name, (was, asked) in pairs.items():
                if was != asked:
                    raise McdiError(f"{folder} holds a run with {name} = {was!r}: choose another --out, or delete it")
        write_json(path, resolved)


def read_run(folder: Path) -> Recipe:
    """The recipe of the run in `folder`."""
    return checked(read_json(folder / "recipe.json"), str(folder / "recipe.json"))


def make_family(settings: FamilySettings, folder: Path, *, data: Path | None, device: str, progress: Progress) -> TaskFamily:
    """The family of a recipe and its logs, made in `folder` once. Raises McdiError for `data` that its source cannot use."""
    spec, logs = SOURCES.get(settings.data), dict[str, TrainingLog]()
    if data is not None and not spec.reads_data:
        raise McdiError(f"data = {settings.data!r} is generated and reads no --data: leave it out, or choose another recipe")

    def logged(name: str, done: int, total: int, figures: dict[str, float]) -> None:
        if "loss" in figures:
            logs.setdefault(name, TrainingLog(folder / "logs" / f"{name}.jsonl"))(done, total, figures)
        progress(name, done, total, figures)

    return spec.build(settings, folder, data=data, device=device, progress=logged)


def load_family(settings: FamilySettings, folder: Path) -> TaskFamily:
    """The family that `make_family` built in `folder`."""
    return SOURCES.get(settings.data).load(settings, folder)


class Context:
    """A run that `open_run` began, and what its steps read. A variant has another recipe, and maybe another `store`."""

    def __init__(self, folder: Path, recipe: Recipe | None = None, store: Path | None = None) -> None:
        self.folder, self.recipe, self.store = folder, recipe or read_run(folder), store or folder / "trajectories"

    @cached_property
    def family(self) -> TaskFamily:
        return load_family(self.recipe.family, self.folder)

    @property
    def tasks(self) -> int:
        return self.recipe.evaluation.tasks

    @cached_property
    def reference(self) -> Trajectories:
        """Those of the test tasks, which no method sees: distances are measured to their ends, theta_M."""
        return TrajectoryStore.open(self.folder / "reference").read()

    def landscape(self, methods: Mapping[str, SupportsSampling]) -> dict[str, Any]:
        """The chains of methods over the loss of the first test task, see `evaluate.landscape`."""
        theta0 = learnt_start(self)
        if theta0 is None:
            theta0 = self.family.downstream.theta0(self.recipe.preparation.theta0_seed, self.reference.mask.shape[1])
        return evaluate.landscape(methods, self.family, self.reference.targets[0], theta0)


def learnt_start(context: Context, progress: Progress = silent) -> Tensor | None:
    """theta_0 (U, D) of trajectories from REPTILE's start, learnt once for their store; None where theta_0 is drawn."""
    preparation = context.recipe.preparation
    if preparation.start == "drawn":
        return None
    folder = context.store.with_name(f"{context.store.name}-start")
    path = folder / "start.safetensors"
    if not path.exists():
        with only_writer(folder):
            values, log = context.recipe.settings_of(preparation.start), partial(progress, preparation.start)
            start = trajectory_start(context.family, preparation, values, log=log, folder=folder)
            assert start is not None
            write_tensors(path, {"start": start})
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    return read_tensors(path)[0]["start"]


def prepare_family(folder: Path, *, data: Path | None, device: str, progress: Progress) -> TaskFamily:
    """Images and backbone of the run in `folder`, or what else its source makes."""
    with only_writer(folder):
        return make_family(read_run(folder).family, folder, data=data, device=device, progress=progress)


def prepare_run(
    folder: Path, *, data: Path | None, device: str, workers: int, progress: Progress, backend: Backend = "local"
) -> None:
    """The family, and the trajectories of training tasks and, for measuring distances only, of the test tasks."""
    recipe, family = read_run(folder), prepare_family(folder, data=data, device=device, progress=progress)
    theta0 = learnt_start(Context(folder), progress)
    fill = partial(prepare, family, device=device, workers=workers, backend=backend, theta0=theta0, progress=progress)
    fill(folder / "trajectories", recipe.preparation, split="train", name="trajectories")
    fill(folder / "reference", replace(recipe.preparation, tasks=recipe.evaluation.tasks), split="test", name="reference")


def train_method(
    context: Context, name: str, seed: int, target: Path, *, log: Log, device: str = "cpu", events: Path | None = None
) -> None:
    """Fit a method and save it with the figures of its training; a later call finds it and returns.

    Args:
        context: the run, whose recipe has the method's settings and the number of tasks that choose its sampler.
        target: folder of the saved method; log.jsonl grows there during training.
        events: folder of TensorBoard's files, which hold the same as log.jsonl.

    Raises:
        McdiError: another process trains it.
    """
    if (target / "config.json").exists():
        _remove_checkpoints(target)  # a kill may have left them
        if events is not None and not events.exists():
            EventFiles(events, read_log(target / LOG)).writer.close()
        return
    family, spec, settings = context.family, method_spec(name), context.recipe.settings_of(name)
    stored = TrajectoryStore.open(context.store) if spec.needs_trajectories else None
    method = spec.build(settings)
    if isinstance(method, SupportsDevice):
        method.to(device)
    training_log = TrainingLog(target / LOG, events)

    def report(done: int, total: int, figures: dict[str, float]) -> None:
        training_log(done, total, figures)
        log(done, total, figures)

    start = time.perf_counter()
    with only_writer(target), closing(training_log):
        if (target / "config.json").exists():  # another process has ended meanwhile
            return
        method.fit(family, stored, seed=seed, log=report, folder=target)
        training: dict[str, Any] = {"fit_seconds": round(time.perf_counter() - start, 2), "losses": read_losses(target / LOG)}
        if isinstance(method, SupportsDevice):
            method.to("cpu")
        if isinstance(method, SupportsSampling) and "sampling" not in settings:
            training["sampler"], method = choose_sampler(method, family, tasks=context.recipe.evaluation.validation)
        write_json(target / "training.json", training)
        write_files(target, name, method, Generator(name, method, family.downstream).to("cpu").network)
        _remove_checkpoints(target)


def _remove_checkpoints(target: Path) -> None:
    for path in target.glob("checkpoint*.safetensors"):
        path.unlink(missing_ok=True)


def _evaluate(context: Context, name: str, seed: int, trained: Path, progress: Progress) -> None:
    """Measure a trained method on the run's unseen tasks: results/<name>-<seed>.json."""
    path = context.folder / "results" / f"{name}-{seed}.json"
    if path.exists():
        return
    method = Generator.from_pretrained(trained).method
    with only_writer(trained):
        if path.exists():  # another process has ended meanwhile
            return
        progress(f"{name}-{seed}: evaluation", 0, 1, {})
        targets = context.reference.targets[:, -1]
        figures = evaluate.evaluate(method, context.family, tasks=context.tasks, seed=seed, reference=targets)
        measured = {"method": name, "seed": seed, "family": context.recipe.family.data, "tasks": context.tasks}
        learnt = {"parameters": sum(t.numel() for t in method.state().values()), **read_json(trained / "training.json")}
        free = method_spec(name).gradient_free
        write_json(path, {**measured, "gradient_free": free, **learnt, **figures, "provenance": provenance()})
    progress(f"{name}-{seed}: evaluation", 1, 1, {})


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
    """What all jobs of a run, one a (method, seed), have in common: its folder, and which parts of the work are done."""

    folder: Path
    device: str = "cpu"
    train: bool = True
    score: bool = True
    tensorboard: bool = False


def _do(shared: Jobs, job: tuple[str, int], progress: Progress) -> None:
    (name, seed), folder = job, shared.folder
    label, context = f"{name}-{seed}", Context(folder)
    target = folder / "methods" / label
    if shared.train:
        events = folder / "tensorboard" / label if shared.tensorboard else None
        train_method(context, name, seed, target, log=partial(progress, label), device=shared.device, events=events)
    if shared.score:
        _evaluate(context, name, seed, target, progress)


def train_and_evaluate(shared: Jobs, jobs: list[tuple[str, int]], *, workers: int, progress: Progress) -> None:
    """Train and/or evaluate every (method, seed), `workers` at a time: results do not depend on how many."""
    for _ in work_through(_do, shared, jobs, workers=workers, progress=progress):
        pass


def finish(folder: Path, *, progress: Progress) -> None:
    """Measure what needs a quiet machine or several methods: latencies, chains over the loss, novelty."""
    context = Context(folder)
    family = context.family
    paths = sorted((folder / "results").glob("*.json"))
    generators: dict[str, SupportsSampling] = {}
    with one_thread(), only_writer(folder):
        for number, path in enumerate(paths):
            result = read_json(path)
            method = Generator.from_pretrained(folder / "methods" / path.stem).method
            if "latency_ms" not in result:
                write_json(path, {**result, "latency_ms": evaluate.latency(method, family)})
            if isinstance(method, SupportsSampling) and result["curve"]:
                generators.setdefault(result["method"], method)
            progress("latency", number + 1, len(paths), {})
        shown = {n: generators[n] for n in all_methods() if n in generators and method_spec(n).in_landscape}
        if not shown or _has_landscape(folder, shown):
            return
        best, stored = next(iter(shown.values())), TrajectoryStore.open(context.store)
        batch = family.sample("test", range(context.tasks))
        generated = best.generate(family.downstream, batch.support, batch.mask, seed=0)
        targets = stored.rows(torch.arange(min(len(stored), 2000))).targets[:, -1]
        if best.space is not None:
            distances = evaluate.novelty(generated, context.reference.targets[:, -1], targets, best.space)
            write_json(folder / "novelty.json", distances)
        write_json(folder / "landscape.json", context.landscape(shown))


def _has_landscape(folder: Path, methods: Mapping[str, SupportsSampling]) -> bool:
    """Whether `finish` has written its last file, for these methods."""
    path = folder / "landscape.json"
    return path.exists() and read_json(path)["chains"].keys() == methods.keys()


def with_seeds(recipe: Recipe, things: Sequence[T], method: Callable[[T], str | None]) -> list[tuple[T, int]]:
    """Every thing with every seed of the recipe; once if its method draws nothing at random, with two seeds if it is slow."""

    def runs(name: str | None) -> int:
        spec = None if name is None else method_spec(name)
        return 1 if spec and not spec.draws_at_random else 2 if spec and spec.slow else len(recipe.evaluation.seeds)

    return [(x, s) for n, s in enumerate(recipe.evaluation.seeds) for x in things if n < runs(method(x))]
