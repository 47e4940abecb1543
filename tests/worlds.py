"""Two small families, curves and few-shot heads, and every method fitted once on each."""

import torch

from mcdi.methods import make_method
from mcdi.methods.sampling import Sampling
from mcdi.networks.backbones.embedder import cl2n
from mcdi.networks.linear_head import LinearHead
from mcdi.tasks.curves import Sines
from mcdi.tasks.episodes import FewShot
from mcdi.trajectories.prepare import Preparation, trajectories

TRAINING = {"iterations": 40, "learners": 2, "tasks": 8, "outer_lr": 0.003}
TUNING = {"lrs": [0.03, 0.1], "steps": [5, 20], "decays": [0.0], "tasks": 20}
ONE_LEVEL = {**TRAINING, "meta": "none", "iterations": 150}
LONG = {**ONE_LEVEL, "iterations": 400, "outer_lr": 0.01}  # a curve's weights from noise take more
OF_TASKS = {**ONE_LEVEL, "inner_steps": 1, "tasks": 1, "learners": 16, "outer_lr": 0.01}  # a learner is a task
SETTINGS = {
    "adam": TUNING,
    "reptile": {"training": {**TRAINING, "inner_lr": 0.02, "inner_steps": 5, "outer_lr": 0.01}, "tuning": TUNING},
    "maml": {"training": {**OF_TASKS, "iterations": 40}, "tuning_tasks": 20},
    "meta-hypernetwork": {"training": OF_TASKS, "tuning_tasks": 20, "width": 32},
    "metadiff": {"T": 100, "steps": 20, "options": {"width": 32, "depth": 1}, "training": LONG},
    "p-diff": {"T": 100, "steps": 10, "options": {"width": 32, "depth": 1}, "width": 32, "latent": 8, "training": ONE_LEVEL},
    "d2nwg": {"T": 100, "steps": 10, "options": {"width": 32, "depth": 1}, "width": 32, "latent": 8, "training": ONE_LEVEL},
    "ocd-residual": {"T": 100, "options": {"width": 32, "depth": 1}, "training": LONG},
    "ghn-3": {"width": 16, "heads": 4, "layers": 2, "training": OF_TASKS},
    "icis": {"width": 32, "latent": 16, "training": ONE_LEVEL},
    "vae": {"width": 32, "latent": 4, "training": ONE_LEVEL},
    "prototypes": {},
    "linear-probe": {},
    "meta-baseline": {},
    "lda": {},
    "plda": {},
    "adaptive-plda": {},
    "logistic-regression": {},
}
# Forty iterations are too few for the printed loss weight, which is small at the first steps.
GENERATOR = {"weight": "x0", "options": {"width": 16, "depth": 1}, "training": TRAINING}


def settings(name, **changes):
    return SETTINGS.get(name, GENERATOR) | changes


def gaussian_features():
    g = torch.Generator().manual_seed(0)
    draws = {
        s: 1.5 * torch.randn(12, 1, 6, generator=g) + torch.randn(12, 25, 6, generator=g) for s in ("train", "val", "test")
    }
    return {s: cl2n(x, torch.zeros(6)) for s, x in draws.items()}  # of one length, as image features are


class World:
    """A family with its stored trajectories, and every method fitted once."""

    def __init__(self, family, epochs):
        self.family, self.fitted = family, {}
        self.data = trajectories(family, "train", range(60), Preparation(tasks=60, epochs=epochs, k=3, lr=0.03))
        self.batch = family.sample("test", range(40))

    def fit(self, name, **changes):
        return make_method(name, settings(name, **changes)).fit(self.family, self.data, seed=0)

    def method(self, name):
        if name not in self.fitted:
            self.fitted[name] = self.fit(name)
        return self.fitted[name]

    def weights(self, method, batch=None, seed=3, **sampling):
        batch, options = batch or self.batch, {"sampling": Sampling(**sampling)} if sampling else {}
        return method.generate(self.family.downstream, batch.support, batch.mask, seed=seed, **options)

    def score(self, weights):
        return float(self.family.downstream.score(weights, self.batch.query, self.batch.mask).mean())


def both(sines: Sines) -> dict[str, World]:
    gauss = FewShot("gauss", LinearHead(6, 3), gaussian_features(), way=3, shots=(2,), queries=8)
    return {"sines": World(sines, 150), "gauss": World(gauss, 30)}
