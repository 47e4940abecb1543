"""A generator for a module and tasks of the user's own: mcdi.fit(mcdi.OwnTasks(module, x, y)).generate(support)."""

from collections.abc import Mapping
from typing import Any

import torch

from mcdi.errors import explained
from mcdi.generator.api import Generator
from mcdi.methods import method_spec
from mcdi.methods.base import Log, silent
from mcdi.methods.baselines.reptile import trajectory_start
from mcdi.methods.mcdi.selection import choose_sampler
from mcdi.methods.sampling import SupportsSampling
from mcdi.tasks.own import OwnTasks
from mcdi.trajectories.prepare import Preparation, trajectories
from mcdi.trajectories.store import Stored
from mcdi.utils.random import checked_seed
from mcdi.utils.settings import merged
from mcdi.utils.torch_state import plain_torch

VALIDATION = 200  # support sets of held-out tasks that choose a sampler
# For networks of up to a few thousand weights. The functional term decides: weights are many, what they compute is little. A
# single level, as our studies found two to be worth no more, and they take twice as long.
SMALL: dict[str, Any] = {
    "denoiser": "mlp",
    "prior": False,
    "weight": "x0",
    "functional": 1.0,
    "options": {"width": 128, "depth": 2},
    "training": {"meta": "none", "iterations": 500, "learners": 2, "tasks": 16, "outer_lr": 0.006},
}
# Where units are filters: the denoiser attends to single examples, and every step draws other ones of a task.
FILTERS: dict[str, Any] = {
    "denoiser": "filters",
    "prior": False,
    "functional": 100.0,
    "fresh_tasks": 16,
    "options": {"width": 64, "depth": 2},
    "training": {
        "meta": "none",
        "iterations": 500,
        "inner_steps": 1,
        "learners": 1,
        "tasks": 8,
        "outer_lr": 0.003,
        "warmup": 0.05,
        "clip": 1.0,
    },
}
ADAM = Preparation(epochs=60, lr=0.03)


@plain_torch()
@torch.random.fork_rng(devices=[])  # layers draw their first weights
def fit(
    tasks: OwnTasks,
    method: str = "mc-di",
    *,
    preparation: Preparation = ADAM,
    stored: Stored | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    log: Log = silent,
) -> Generator:
    """A generator trained on all tasks but those held out, which choose its sampler. Runs on the CPU.

    Args:
        tasks: the module and the examples of many tasks.
        method: its name.
        preparation: the optimiser whose trajectories are learnt from, and k of its points; its `tasks` is not read.
        stored: trajectories that exist already, for instance of `prepare(tasks, folder, preparation)`.
        settings: of the method, over `SMALL` for a diffusion, or `FILTERS` where unit = "filter": {"training": {"iterations":
            2000}} trains longer, {"training": {"meta": "reptile"}} is the paper's bi-level training.
        seed: decides the result.
        log: hears of every step.

    Raises:
        McdiError: settings that the method does not have, or a module that it cannot train on.
    """
    seed = checked_seed(seed)
    if stored is None:
        theta0 = trajectory_start(tasks, preparation, log=log)
        stored = trajectories(tasks, "train", range(len(tasks)), preparation, theta0=theta0)
    spec = method_spec(method)
    own = FILTERS if tasks.downstream.space.unit == "filter" else SMALL
    values = merged(own if spec.shared_settings else {}, settings or {})
    built, cannot = spec.build(values), f"{method} cannot train on this module"
    with explained(cannot, "choose another method, or training = {'meta': 'none'}", RuntimeError):
        trained = built.fit(tasks, stored, seed=seed, log=log)
    if isinstance(trained, SupportsSampling) and "sampling" not in values:
        trained = choose_sampler(trained, tasks, tasks=VALIDATION, seed=seed)[1]
    return Generator(method, trained, tasks.downstream)
