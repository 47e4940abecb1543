"""The study `transfer`, the paper's first table: generators of one collection of images, or of sentences, make heads for other
data sets without a gradient step, from a few examples, for five of their classes and for all of them, by one model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.experiments.run import Context
from mcdi.experiments.studies.variants import Measured, Variant
from mcdi.methods import WeightGenerator
from mcdi.tasks.episodes import FewShot
from mcdi.tasks.registry import SOURCES
from mcdi.types import Examples
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
    """Embed targets with the run's backbone, once. Raises McdiError for a source without targets, or for a taken name."""
    settings = context.recipe.family
    embed = SOURCES.get(settings.data).embed_target
    if embed is None:
        raise McdiError(
            f"data = {settings.data!r} has no heads for other data sets: choose a recipe such as natural or intents"
        )
    for name, path in targets.items():
        target, source = _path(context, name), str(path.resolve())
        if not target.exists():
            progress(f"target {name}", 0, 1, {})
            features, classes, names = embed(settings, context.family.downstream, path)
            more = {} if names is None else {"names": names}
            write_tensors(target, {"features": features, **more}, {"classes": classes, "source": source})
            progress(f"target {name}", 1, 1, {"classes": float(len(classes))})
        elif (embedded := read_tensors(target)[1]["source"]) != source:
            raise McdiError(f"the target {name} of this run is {embedded}: give {path} another name")


def with_names(support: Examples, names: Tensor) -> Examples:
    """Support sets in which the name of every class (B, way, F) is one more example of it."""
    labels = torch.arange(names.shape[1]).expand(names.shape[:2])
    return Examples(torch.cat([support.x, names], 1), torch.cat([support.y, labels], 1))


@torch.no_grad()
def transferred(context: Context, variant: Variant, method: WeightGenerator, seed: int) -> list[Measured]:
    """Accuracy on tasks of as many classes as in training, and of all that the target has; a slow method gets few tasks."""
    if "target" not in variant.factors:
        raise McdiError("this study is the command `mcdi transfer`, which takes --target NAME=PATH")
    name, settings = str(variant.factors["target"]), context.recipe.family
    tensors = read_tensors(_path(context, name))[0]
    features, names = tensors["features"], tensors.get("names")
    net, rows = context.family.downstream, []
    extra = EXTRA_SHOTS * max(settings.shots)
    all_shots = (*settings.shots, extra) if extra + settings.queries <= features.shape[1] else settings.shots
    tasks = range(min(context.tasks, FIRST if variant.spec.slow else context.tasks))
    for label, way in (("as trained", min(settings.way, len(features))), ("all classes", len(features))):
        family = FewShot(name, net, {"test": features}, way=way, shots=all_shots, queries=settings.queries)
        size = max(1, QUERIES // way // settings.queries)
        for shots in all_shots:
            for used in (None,) if names is None else (None, names):
                scores = []
                for first in tasks[::size]:
                    seeds = tasks[first : first + size]
                    batch = family.sample("test", seeds, shots=shots)
                    support = batch.support if used is None else with_names(batch.support, used[family.classes("test", seeds)])
                    weights = method.generate(net, support, batch.mask, seed=seed)
                    scores.append(net.score(weights, batch.query, batch.mask))
                more = {} if names is None else {"label names": "unused" if used is None else "one more example"}
                rows.append(Measured({"classes": label, "way": way, "shots": shots, **more}, {}, torch.cat(scores)))
    return rows
