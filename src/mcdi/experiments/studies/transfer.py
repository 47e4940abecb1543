"""The study `transfer`, the paper's first table: generators of one collection of images make heads for other data sets without
a gradient step, from a few labelled images, for five of their classes and for all of them, by one model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from mcdi.errors import McdiError
from mcdi.experiments.run import Context
from mcdi.experiments.studies.variants import Measured, Variant
from mcdi.methods import WeightGenerator
from mcdi.tasks.episodes import FewShot
from mcdi.tasks.images.public import public_images
from mcdi.utils.files import read_tensors, write_tensors
from mcdi.utils.workers import Progress

QUERIES = 40_000  # at once
EXTRA_SHOTS = 2  # times the largest number in training, where a target has enough examples
FIRST = 200  # tasks of a slow method: tasks have many more classes than in a comparison


def named_targets(given: Sequence[str]) -> dict[str, Path]:
    """{name: path} of "NAME=PATH". Raises McdiError for anything else, and for a name that comes twice."""
    targets: dict[str, Path] = {}
    for text in given:
        name, _, path = text.partition("=")
        if not (name and path) or set(name) & set("/\\."):
            raise McdiError(f"--target {text!r} must be NAME=PATH, as in cifar10=data/cifar-10-batches-bin")
        if name in targets:
            raise McdiError(f"two targets are called {name}: give each a name of its own")
        targets[name] = Path(path)
    if not targets:
        raise McdiError("no data set to generate heads for: mcdi transfer --target NAME=PATH, once or more")
    return targets


def _path(context: Context, name: str) -> Path:
    return context.folder / "targets" / f"{name}.safetensors"


def add_targets(context: Context, targets: Mapping[str, Path], progress: Progress) -> None:
    """Embed targets with the run's backbone, once. Raises McdiError without one of colour images, or for a taken name."""
    network = context.family.downstream
    if network.embedder is None or network.embedder.shape[0] != 3:
        raise McdiError(f"{context.recipe.name} has no backbone of colour images: choose a recipe such as natural")
    for name, path in targets.items():
        target, source = _path(context, name), str(path.resolve())
        if not target.exists():
            progress(f"target {name}", 0, 1, {})
            images = public_images(path, size=network.embedder.side)
            write_tensors(target, {"features": network.embed(images.pixels)}, {"classes": images.names, "source": source})
            progress(f"target {name}", 1, 1, {"classes": float(len(images.names))})
        elif (embedded := read_tensors(target)[1]["source"]) != source:
            raise McdiError(f"the target {name} of this run is {embedded}: give {path} another name")


@torch.no_grad()
def transferred(context: Context, variant: Variant, method: WeightGenerator, seed: int) -> list[Measured]:
    """Accuracy on tasks of as many classes as in training, and of all that the target has; a slow method gets few tasks."""
    if "target" not in variant.factors:
        raise McdiError("this study is the command `mcdi transfer`, which takes --target NAME=PATH")
    name, settings = str(variant.factors["target"]), context.recipe.family
    features = read_tensors(_path(context, name))[0]["features"]
    net, rows = context.family.downstream, []
    extra = EXTRA_SHOTS * max(settings.shots)
    all_shots = (*settings.shots, extra) if extra + settings.queries <= features.shape[1] else settings.shots
    tasks = range(min(context.tasks, FIRST if variant.spec.slow else context.tasks))
    for label, way in (("as trained", min(settings.way, len(features))), ("all classes", len(features))):
        family = FewShot(name, net, {"test": features}, way=way, shots=all_shots, queries=settings.queries)
        size = max(1, QUERIES // way // settings.queries)
        for shots in all_shots:
            scores = []
            for first in tasks[::size]:
                batch = family.sample("test", tasks[first : first + size], shots=shots)
                weights = method.generate(net, batch.support, batch.mask, seed=seed)
                scores.append(net.score(weights, batch.query, batch.mask))
            rows.append(Measured({"classes": label, "way": way, "shots": shots}, {}, torch.cat(scores)))
    return rows
