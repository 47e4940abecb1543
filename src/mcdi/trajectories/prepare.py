"""Weight preparation: the optimiser's trajectories of all tasks of a family, into a store that loses none.

A chunk of tasks is a shard, and a pure function of (family, split, chunk): any worker may make it, and make it again.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.networks import batched
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.batches import Augment, Tasks
from mcdi.trajectories.memory import bytes_per_task
from mcdi.trajectories.optimise import Optimisation, optimise
from mcdi.trajectories.sharpness import hessian_spectrum
from mcdi.trajectories.store import Trajectories, TrajectoryStore
from mcdi.utils.workers import Backend, Progress, silent, work_through

CHUNK = 500  # tasks a shard, if they fit
CACHED = 4 * 2**20  # bytes of a tile on a CPU: about what its caches hold
SMALLEST = 128  # tasks of a tile all the same: under it the calls cost more than the arithmetic


@dataclass(frozen=True)
class Preparation(Optimisation):
    """Which trajectories are made and kept: `tasks` of them, all from the theta_0 of `theta0_seed`.

    chunk: tasks a shard (None: 500, or fewer if they are large). memory: GiB that one worker may use; it decides how many
    tasks run at once. storage: precision of the targets on disk. sharpness: Lanczos steps for the largest eigenvalue of
    the Hessian at theta_M, and as many probes for its trace, kept as columns (0 = off).
    """

    tasks: int = 4000
    theta0_seed: int = 0
    chunk: int | None = None
    memory: float = 1.0
    storage: Literal["float32", "bfloat16"] = "float32"
    sharpness: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.chunk is not None and self.chunk < 1) or self.memory <= 0 or self.sharpness < 0:
            raise McdiError(
                f"chunk = {self.chunk} must be at least 1, memory = {self.memory} positive, sharpness = {self.sharpness} "
                "not negative"
            )


def trajectories(
    family: TaskFamily,
    split: str,
    seeds: Sequence[int],
    how: Preparation,
    device: str = "cpu",
    *,
    augment: Augment | None = None,
    at_once: int | None = None,
) -> Trajectories:
    """Trajectories of the tasks named by (split, seeds); targets at round(i M / k), i = 1..k, where spacing is "steps".

    at_once: how many tasks run together (None: see `tile_size`). Raises McdiError when weights stop being finite, or when
    one task alone needs more than `how.memory`.
    """
    seeds = list(seeds)
    run = partial(_tile, family, split, how=how, device=device, augment=augment)
    size = at_once or tile_size(family, split, how, device, augment)
    parts = [run(seeds[n : n + size]) for n in range(0, len(seeds), size)]
    return Trajectories.cat(parts)


def _tile(
    family: TaskFamily, split: str, seeds: Sequence[int], *, how: Preparation, device: str, augment: Augment | None
) -> Trajectories:
    net = family.downstream
    batch, data = family.sample(split, seeds).to(device), family.training_data(split, seeds).to(device)
    tasks = Tasks(split, seeds, data, batch.query, batch.mask)
    theta0 = net.theta0(how.theta0_seed, batch.mask.shape[1])
    found = optimise(net, theta0, tasks, how, augment)
    columns = dict(family.columns(split, seeds))
    if how.sharpness:
        columns |= _sharpness(family, found.targets[:, -1], tasks, how)
    tensors = {**found._asdict(), "mask": batch.mask, "seeds": batch.seeds, **columns}
    return Trajectories.of({n: t.cpu() for n, t in tensors.items()})


def _sharpness(family: TaskFamily, weights: Tensor, tasks: Tasks, how: Preparation) -> dict[str, Tensor]:
    """Largest Hessian eigenvalue and trace of the training loss at theta_M, over what the optimiser moves."""
    net = family.downstream
    state = net.space.unpack(weights)
    params = {n: state[n] for n in net.space.parameter_names}
    with batched.evaluating(net.module):
        found = hessian_spectrum(
            lambda moved: net.losses({**state, **moved}, tasks.data, tasks.mask),
            params,
            iterations=how.sharpness,
            probes=how.sharpness,
            generator=torch.Generator(weights.device).manual_seed(how.theta0_seed),
        )
    return {"sharpness": found.largest, "trace": found.trace}


def tile_size(family: TaskFamily, split: str, how: Preparation, device: str, augment: Augment | None = None) -> int:
    """How many tasks run at once: as many as fit into `how.memory`, on a CPU no more than its caches like.

    The bytes of a task are counted in a short run: the most that is alive at once, and what is recorded of the way.
    """
    short = {"epochs": how.k, "patience": 0, "spacing": "steps", "tasks": 1}
    brief = Preparation(**{**asdict(how), **short})
    each = bytes_per_task(lambda n: _tile(family, split, range(n), how=brief, device=device, augment=augment))
    weights = 4 * family.downstream.space.U * family.downstream.space.D
    whole = each + weights * (how.epochs + 1 + how.k if how.dense else 0)
    room = int(how.memory * 2**30) * 3 // 4 // whole
    if room < 1:
        raise McdiError(
            f"a task of {family.name} needs {whole / 2**30:.2f} GiB, too much for memory = {how.memory}: raise it, or set batch"
        )
    return min(room, max(SMALLEST, CACHED // each)) if device == "cpu" else room


def chunk_size(family: TaskFamily, how: Preparation) -> int:
    """Tasks a shard: 500, or fewer: their targets, which exist up to four times while a shard is made, get a quarter."""
    if how.chunk is not None:
        return how.chunk
    targets = 4 * how.k * family.downstream.space.U * family.downstream.space.D
    return max(1, min(CHUNK, int(how.memory * 2**30) // 16 // targets))


class Job(NamedTuple):
    number: int
    first: int
    end: int


class Shared(NamedTuple):
    """What every worker has."""

    family: TaskFamily
    folder: Path
    split: str
    how: Preparation
    device: str
    augment: Augment | None
    at_once: int


def _make_shard(shared: Shared, job: Job, progress: Progress) -> dict[str, Any]:
    seeds = range(job.first, job.end)
    family, _, split, how, device, augment, at_once = shared
    data = trajectories(family, split, seeds, how, device, augment=augment, at_once=at_once)
    return TrajectoryStore.open(shared.folder).write_shard(job.number, data)


def prepare(
    family: TaskFamily,
    folder: Path,
    how: Preparation,
    *,
    split: str = "train",
    device: str = "cpu",
    augment: Augment | None = None,
    workers: int = 1,
    backend: Backend = "local",
    name: str = "trajectories",
    progress: Progress = silent,
) -> TrajectoryStore:
    """Fill the store in `folder` with the trajectories of seeds 0..tasks-1, a chunk a shard; resumes where it stopped.

    The result does not depend on `workers` or `backend` ("ray" needs a folder that all its machines see), nor on how
    often it was stopped. `augment` must be a function of a module if there are several workers. Readers may open the
    store meanwhile. Raises McdiError when the folder holds other trajectories, or another process writes there.
    """
    size = chunk_size(family, how)
    settings = {n: v for n, v in asdict(how).items() if n not in ("tasks", "memory")}
    identity = {"family": family.name, "split": split, "space": family.downstream.space.config(), **settings, "chunk": size}
    if augment is not None:
        identity["augment"] = f"{augment.__module__}.{augment.__qualname__}"
    store = TrajectoryStore.create(folder, identity)
    with store.writer():
        if len(store) < how.tasks and any(shard["tasks"] < size for shard in store.shards):
            raise McdiError(
                f"{folder} ends with a part of a chunk: it was prepared with {len(store)} tasks; delete it to get {how.tasks}"
            )
        jobs = [
            Job(n, first, min(first + size, how.tasks))
            for n, first in enumerate(range(0, how.tasks, size))
            if n not in store.numbers()
        ]
        progress(name, len(store), how.tasks, {})
        if not jobs:
            return store
        shared = Shared(family, folder, split, how, device, augment, tile_size(family, split, how, device, augment))
        for _, entry in work_through(_make_shard, shared, jobs, workers=workers, backend=backend):
            store.commit(entry)
            progress(name, len(store), how.tasks, {})
    return store
