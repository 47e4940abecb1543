"""Weight preparation: the optimiser's trajectories of all tasks of a family, written to a resumable store. A chunk of
tasks becomes one shard, a pure function of (family, split, chunk): any worker may compute it, more than once."""

import hashlib
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mcdi.errors import McdiError
from mcdi.networks import batched
from mcdi.networks.base import Network
from mcdi.networks.batched import State
from mcdi.tasks.family import TaskFamily
from mcdi.trajectories.optimise import Augment, Optimisation, Tasks, optimise
from mcdi.trajectories.sharpness import hessian_spectrum
from mcdi.trajectories.store import Trajectories, TrajectoryStore
from mcdi.utils.torch_state import plain_torch
from mcdi.utils.workers import Backend, Progress, silent, work_through

CHUNK = 500  # tasks a shard, if they fit
CACHE = 4 * 2**20  # bytes of a tile on a CPU: about the size of its caches
SMALLEST = 128  # least tasks of a tile on a CPU: with fewer the calls cost more than the arithmetic


@dataclass(frozen=True)
class Preparation(Optimisation):
    """How many trajectories are prepared, and how they are computed and stored.

    Args:
        theta0_seed: of theta_0, from which all tasks start.
        start: theta_0 is drawn, or learnt by REPTILE from training tasks that `theta0_seed` decides; a run does so first.
        chunk: tasks in a shard (None: 500, or fewer if they are large).
        memory: GiB that one worker may use; it decides how many tasks run at once.
        storage: precision of the targets on disk.
        sharpness: Lanczos steps for the largest eigenvalue of the Hessian at theta_M and number of probes for its trace,
            both stored as columns; 0 for none.
    """

    tasks: int = 4000
    theta0_seed: int = 0
    start: Literal["drawn", "reptile"] = "drawn"
    chunk: int | None = None
    memory: float = 1.0
    storage: Literal["float32", "bfloat16"] = "float32"
    sharpness: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.chunk is not None and self.chunk < 1) or self.memory <= 0 or self.sharpness < 0:
            given = f"chunk = {self.chunk} must be at least 1, memory = {self.memory} positive"
            raise McdiError(f"{given}, sharpness = {self.sharpness} not negative")


@plain_torch()
def trajectories(
    family: TaskFamily,
    split: str,
    seeds: Sequence[int],
    settings: Preparation,
    device: str = "cpu",
    *,
    augment: Augment | None = None,
    at_once: int | None = None,
    theta0: Tensor | None = None,
) -> Trajectories:
    """Trajectories of the tasks named by (split, seeds), in memory; `tasks` and `chunk` of the settings are not read.

    Args:
        augment: views of a task's examples, instead of the noise of `settings.augment`.
        at_once: how many tasks run together (None: see `tile_size`).
        theta0: (U, D), the start; None: the network's own, drawn with `theta0_seed`.

    Raises:
        McdiError: when weights are not finite, one task needs more than `settings.memory`, or a learnt start is not given.
    """
    _check_start(settings, theta0)
    run = partial(_tile, family, split, settings=settings, device=device, augment=augment, theta0=theta0)
    size = at_once or tile_size(family, split, settings, device, augment)
    return Trajectories.cat([run(seeds[n : n + size]) for n in range(0, len(seeds), size)])


def _check_start(settings: Preparation, theta0: Tensor | None) -> None:
    if settings.start != "drawn" and theta0 is None:
        raise McdiError(f"start = {settings.start!r} is learnt before: pass it as theta0, or set start = 'drawn'")


def _tile(
    family: TaskFamily,
    split: str,
    seeds: Sequence[int],
    *,
    settings: Preparation,
    device: str,
    augment: Augment | None,
    theta0: Tensor | None = None,
) -> Trajectories:
    net = family.downstream
    batch, data = family.sample(split, seeds).to(device), family.training_data(split, seeds).to(device)
    tasks = Tasks(split, seeds, data, batch.query, batch.mask)
    start = net.theta0(settings.theta0_seed, batch.mask.shape[1]) if theta0 is None else theta0
    recorded = optimise(net, start, tasks, settings, augment)
    columns = dict(family.columns(split, seeds))
    if settings.sharpness:
        columns |= _sharpness(net, recorded.targets[:, -1], tasks, settings)
    tensors = {**recorded._asdict(), "mask": batch.mask, "seeds": batch.seeds, **columns}
    return Trajectories.from_tensors({n: t.cpu() for n, t in tensors.items()})


def _sharpness(net: Network, weights: Tensor, tasks: Tasks, settings: Preparation) -> dict[str, Tensor]:
    """Largest Hessian eigenvalue and trace of the training loss at theta_M, over the trained parameters."""
    state, steps = net.space.unpack(weights), settings.sharpness
    params = {n: state[n] for n in net.space.parameter_names}
    generator = torch.Generator(weights.device).manual_seed(settings.theta0_seed)

    def loss(moved: State) -> Tensor:
        return net.losses({**state, **moved}, tasks.data, tasks.mask)

    with batched.evaluating(net.module):
        spectrum = hessian_spectrum(loss, params, iterations=steps, probes=steps, generator=generator)
    return {"sharpness": spectrum.largest, "trace": spectrum.trace}


def tile_size(family: TaskFamily, split: str, settings: Preparation, device: str, augment: Augment | None = None) -> int:
    """How many tasks run at once: as many as fit into `settings.memory`, and into the caches of a CPU. The bytes of a
    task are measured in a short run."""
    short = replace(settings, epochs=settings.k, tasks=1)
    each = bytes_per_task(lambda n: _tile(family, split, range(n), settings=short, device=device, augment=augment))
    fitting = int(settings.memory * 2**30) * 3 // 4 // each
    if fitting < 1:
        need = f"a task of {family.name} needs {each / 2**30:.2f} GiB"
        raise McdiError(f"{need}, too much for memory = {settings.memory}: raise it, or set batch")
    return min(fitting, max(SMALLEST, CACHE // each)) if device == "cpu" else fitting


def chunk_size(family: TaskFamily, settings: Preparation) -> int:
    """Tasks in a shard: at most 500; their targets, of which up to four copies exist at once, get a quarter of the memory."""
    if settings.chunk is not None:
        return settings.chunk
    targets = 4 * settings.k * family.downstream.space.U * family.downstream.space.D
    return max(1, min(CHUNK, int(settings.memory * 2**30) // 16 // targets))


def _make_shard(
    shared: tuple[Path, Callable[..., Trajectories]], job: tuple[int, Sequence[int]], progress: Progress
) -> dict[str, Any]:
    (folder, compute), (number, seeds) = shared, job
    return TrajectoryStore.open(folder).write_shard(number, compute(seeds))


def prepare(
    family: TaskFamily,
    folder: Path,
    settings: Preparation,
    *,
    split: str = "train",
    device: str = "cpu",
    augment: Augment | None = None,
    workers: int = 1,
    backend: Backend = "local",
    theta0: Tensor | None = None,
    name: str = "trajectories",
    progress: Progress = silent,
) -> TrajectoryStore:
    """Fill the store in `folder` with the trajectories of seeds 0..tasks-1, one chunk in a shard; resumes where it stopped.

    The result does not depend on `workers`, `backend` or interruptions. Other processes may read the store meanwhile.

    Args:
        augment: views of a task's examples; with several workers a function at the top level of a module.
        backend: "local", or "ray", which needs a folder that all machines of the cluster see.
        theta0: see `trajectories`.
        name, progress: called as progress(name, tasks done, tasks, {}) after every shard.

    Raises:
        McdiError: when the folder holds other trajectories, another process writes to it, or a learnt start is not given.
    """
    _check_start(settings, theta0)
    size = chunk_size(family, settings)
    options = {n: v for n, v in asdict(settings).items() if n not in ("tasks", "memory", "start")}
    identity = {"family": family.name, "split": split, "space": family.downstream.space.config(), **options, "chunk": size}
    if augment is not None:
        identity["augment"] = f"{augment.__module__}.{augment.__qualname__}"
    if theta0 is not None:
        identity["theta0"] = hashlib.sha256(theta0.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
    store = TrajectoryStore.create(folder, identity)
    with store.writer():
        if len(store) < settings.tasks and any(shard["tasks"] < size for shard in store.shards):
            made = f"it was prepared with tasks = {len(store)}; delete it to prepare {settings.tasks}"
            raise McdiError(f"{folder} ends with an incomplete chunk: {made}")
        chunks = [range(first, min(first + size, settings.tasks)) for first in range(0, settings.tasks, size)]
        jobs = [(n, seeds) for n, seeds in enumerate(chunks) if n not in store.numbers()]
        progress(name, len(store), settings.tasks, {})
        if not jobs:
            return store
        at_once = tile_size(family, split, settings, device, augment)
        of_tasks = partial(trajectories, family, split, settings=settings, device=device, augment=augment)
        compute = partial(of_tasks, at_once=at_once, theta0=theta0)
        for _, entry in work_through(_make_shard, (folder, compute), jobs, workers=workers, backend=backend):
            store.commit(entry)
            progress(name, len(store), settings.tasks, {})
    return store


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensor storages that are alive at once while the mode is on; `peak` is the maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)

        def freed(_: Any) -> None:
            self.now -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, freed)


def bytes_per_task(run: Callable[[int], object]) -> int:
    """Bytes that one more task adds to the peak of `run(number of tasks)`, from runs with one task and with three."""
    peaks = []
    for tasks in (1, 3):
        with LiveBytes() as live:
            run(tasks)
        peaks.append(live.peak)
    return max(1, (peaks[1] - peaks[0]) // 2)
