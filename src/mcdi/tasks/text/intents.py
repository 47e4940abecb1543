"""The source "intents": sets of sentences with many classes, whose N-way K-shot tasks are made as those of images are."""

import csv
import io
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mcdi.errors import McdiError, explained
from mcdi.networks.backbones.language import MEAN, Encoder, LoraSettings, check_base, unpadded
from mcdi.networks.backbones.vision import prototypical_loss
from mcdi.networks.base import Network
from mcdi.networks.heads import Condition
from mcdi.networks.registry import NETWORKS
from mcdi.networks.sentence_head import sentence_features
from mcdi.tasks.episodes import FewShot, split_classes
from mcdi.tasks.registry import FamilySettings, FamilySpec, Target, register_source
from mcdi.tasks.text.labelled import Splits, read_sets
from mcdi.tasks.text.pairs import SHARPNESS, read_states, scaled_pairs, train_pairs
from mcdi.tasks.text.rows import label_sentence
from mcdi.types import SPLITS
from mcdi.utils.files import read_tensors, read_text, write_tensors
from mcdi.utils.random import step_generator
from mcdi.utils.training import BACKBONE, FEATURES, checkpoint_of, run_training
from mcdi.utils.workers import Progress

DIVISION = "class_splits.tsv"  # in the folder of a set: columns fold, split, label
NAMES = {"train": "train", "validation": "val", "val": "val", "test": "test"}  # of splits in it
SHOTS, QUERIES = 4, 4  # at most, of a class in a step of training

Classes = dict[str, list[str]]  # {"set/label": sentences}


@dataclass(frozen=True)
class IntentSettings(FamilySettings):
    """Sentences of many classes, and a frozen sentence encoder in front of a linear head.

    Attributes:
        condition: see networks.heads.Head.
        sets: those that tasks are made of, every task of one of them; `mcdi transfer` measures others.
        fold: which published division of the classes, where a set has several (`class_splits.tsv`).
        examples: sentences of a class, at most; every class of a split has as many as the smallest.
        backbone_steps, backbone_way: steps in which the encoder's LoRA pairs are trained on training classes, and classes of a
            step. 0: the encoder stays as it is.
        backbone_weight: 0..1; the encoder's weights are the frozen ones plus this times what training added. In between it is
            more accurate than at both ends, on other sets too (2109.01903; docs/results/intents.md).
        trunk_weight: of the states in front of the adapted layers, whose mean stands beside that of the last states; 0: only
            the latter.
        lora: the encoder, and where its pairs are.
    """

    data: str = "intents"
    network: str = "sentence-head"
    condition: Condition = "means"
    sets: tuple[str, ...] = ("clinc150", "hwu64")
    fold: int = 1
    examples: int = 100
    backbone_steps: int = 0
    backbone_way: int = 24
    backbone_weight: float = 0.5
    trunk_weight: float = 0.0
    lora: LoraSettings = LoraSettings(generate="rows")

    def check(self) -> None:
        super().check()
        if not self.sets:
            raise McdiError("family.sets is empty: name the sets that tasks are made of")
        if not 0 < self.backbone_weight <= 1:
            raise McdiError(f"backbone_weight = {self.backbone_weight} must be in (0, 1]; to train nothing, set 0 steps")
        if not 0 <= self.trunk_weight <= 1:
            raise McdiError(f"trunk_weight = {self.trunk_weight} must be in [0, 1]; 0 leaves the trunk out")
        if self.examples < max(self.shots) + self.queries:
            needed = f"{max(self.shots)} shots and {self.queries} queries"
            raise McdiError(f"examples = {self.examples} cannot give {needed}: raise examples")

    def quick(self) -> Self:
        return replace(self, examples=max(self.shots) + self.queries, backbone_steps=min(2, self.backbone_steps))


def sentences_of(parts: Splits, examples: int, seed: int) -> Classes:
    """{label: `examples` sentences at most, drawn at random} of a set. A sentence that occurs again is left out. Raises
    McdiError for pairs of sentences."""
    first, seen = next(iter(parts.values())), set[str]()
    if first.pairs:
        raise McdiError(
            f"the set {first.name} has pairs of sentences; intents are single ones: leave it out, or use data = 'text'"
        )
    out: Classes = {label: [] for label in first.classes}
    for part in parts.values():
        for (text,), number in zip(part.texts, part.labels, strict=True):
            if text not in seen:
                seen.add(text)
                out[part.classes[number]].append(text)
    drawn = {label: random.Random(f"{seed} {first.name} {label}") for label, texts in out.items() if texts}
    return {label: r.sample(out[label], min(examples, len(out[label]))) for label, r in drawn.items()}


def division_of(folder: Path, name: str, labels: Sequence[str], fold: int) -> dict[str, str]:
    """{label: split} of a set's classes, as its file DIVISION says; without one as `split_classes`. Raises McdiError for a
    division that does not fit."""
    path = folder / name / DIVISION
    if not path.exists():
        return split_classes(labels, f"the set {name} has", f"a {DIVISION}")
    text = io.StringIO(read_text(path), newline="")
    with explained(f"{path} cannot be read", "it needs the columns fold, split and label", KeyError, csv.Error):
        rows = [(r["fold"], r["split"], r["label"]) for r in csv.DictReader(text, delimiter="\t")]
    chosen = {label: split for number, split, label in rows if number == str(fold)}
    if not chosen:
        raise McdiError(f"{path} has no fold {fold}: choose {', '.join(sorted({number for number, _, _ in rows}))}")
    if wrong := sorted(set(chosen.values()) - set(NAMES)):
        raise McdiError(f"{path} has the split {wrong[0]!r}: write {', '.join(NAMES)}")
    if missing := [label for label in chosen if label not in labels]:
        raise McdiError(f"{path} has the class {missing[0]!r}, of which the set has no sentence: correct one of them")
    return {label: NAMES[split] for label, split in chosen.items()}


def read_intents(settings: IntentSettings, data: Path | None) -> dict[str, Classes]:
    """The sentences of every split by class. Raises McdiError naming what is missing."""
    if data is None:
        raise McdiError("this family reads labelled sentences: give --data, a folder with a folder or a file a set")
    found = read_sets(data)
    if missing := [name for name in settings.sets if name not in found]:
        raise McdiError(f"the set {missing[0]!r} is not in {data}, which has {', '.join(found)}: change family.sets")
    out: dict[str, Classes] = {split: {} for split in SPLITS}
    for name in settings.sets:
        classes = sentences_of(found[name], settings.examples, settings.seed)
        for label, split in division_of(data, name, list(classes), settings.fold).items():
            out[split][f"{name}/{label}"] = classes[label]
    return out


def target_sentences(settings: IntentSettings, path: Path) -> Classes:
    """The sentences of a set that heads are made for, by class: of one of those that training uses, its test classes. Raises
    McdiError naming what is wrong."""
    found = read_sets(path.parent)
    name = path.name if path.is_dir() else path.stem
    if name not in found:
        raise McdiError(f"{path} holds no labelled sentences: give a file, or a folder with train and test files")
    classes = sentences_of(found[name], settings.examples, settings.seed)
    if name not in settings.sets:
        return classes
    division = division_of(path.parent, name, list(classes), settings.fold)
    return {label: texts for label, texts in classes.items() if division.get(label) == "test"}


def pretrain_sentences(
    encoder: Encoder, states: Tensor, classes: Sequence[Tensor], *, steps: int, way: int, seed: int, device: str, **resume: Any
) -> Iterator[float]:
    """Train the encoder's LoRA pairs in place with the ProtoNet loss of cosines; yields the loss of every step, whose classes
    are all of one set.

    Args:
        states: of all sentences in front of the adapted layers (N, ...), see `Encoder.read`.
        classes: of every set its sentences by class (C, M), row numbers of `states`.
        resume: `start` and `checkpoint` of `train_adamw`.
    """
    weights = torch.tensor([float(len(c)) for c in classes])

    def episode(step: int) -> Tensor:
        generator = step_generator(seed, step)
        of = classes[int(torch.multinomial(weights, 1, generator=generator))]
        chosen = of[torch.randperm(len(of), generator=generator)[:way]]
        picks = torch.rand(chosen.shape, generator=generator).argsort(1)[:, : SHOTS + QUERIES]
        x = states[chosen.gather(1, picks).flatten()].to(device).float()
        shots = 1 + int(torch.randint(min(SHOTS, picks.shape[1] - 1), (1,), generator=generator))
        means = encoder.tail.pooled(unpadded(x))[:, MEAN]
        features = F.normalize(means, dim=-1) * SHARPNESS**0.5
        return prototypical_loss(features.unflatten(0, picks.shape), shots)

    return train_pairs(encoder, episode, steps, lr=1e-3, **resume)


def _build(settings: IntentSettings, folder: Path, *, data: Path | None, device: str, progress: Progress) -> FewShot:
    if not (folder / FEATURES).exists():
        _embed(settings, folder, data, device, progress)
    checkpoint_of(folder, "backbone").unlink(missing_ok=True)  # after a kill, too
    return _load(settings, folder)


def _load(settings: IntentSettings, folder: Path) -> FewShot:
    state, described = read_tensors(folder / BACKBONE)
    features, metadata = read_tensors(folder / FEATURES)
    family = _tasks(settings, features, metadata["groups"], described["base"])
    family.downstream.load_state(state)
    return family


def _tasks(settings: IntentSettings, features: Mapping[str, Tensor], groups: Mapping[str, list[int]], base: int) -> FewShot:
    parts = {"features": features["train"].shape[-1], "base": base}
    network = NETWORKS.get(settings.network).network.for_family(settings, **parts)
    counts: dict[str, Any] = {"way": settings.way, "shots": settings.shots, "queries": settings.queries}
    return FewShot(settings.data, network, features, groups=groups, **counts)


def _embed(settings: IntentSettings, folder: Path, data: Path | None, device: str, progress: Progress) -> None:
    """Train the pairs; write them, the centre, and the features of every sentence."""
    splits = read_intents(settings, data)
    if empty := [split for split, classes in splits.items() if not classes]:
        raise McdiError(f"the {empty[0]} split has no class: change family.fold or family.sets")
    groups = {split: _numbers(classes) for split, classes in splits.items()}
    counts = {split: min(map(len, classes.values())) for split, classes in splits.items()}
    _tasks(settings, {n: torch.empty(len(c), counts[n], 1) for n, c in splits.items()}, groups, 0)  # checks the numbers
    encoder = Encoder(settings.lora, settings.way)
    encoder.to(device)
    base = check_base(encoder, None)
    if settings.backbone_steps:
        _train(settings, encoder, splits["train"], folder, device, progress)
    trained = scaled_pairs(encoder, settings.backbone_weight) if settings.backbone_steps else {}
    encoder.set_pairs(trained)  # as their file holds them
    means, total, done = dict[str, Tensor](), sum(map(len, splits.values())), 0
    for split, classes in splits.items():
        rows = []
        for texts in classes.values():
            rows.append(encoder.means([(text,) for text in texts[: counts[split]]]).cpu())
            progress("classes through the encoder", done := done + 1, total, {})
        means[split] = torch.stack(rows)
    both = means["train"].flatten(0, 1).mean(0)
    centre = both.flatten() if settings.trunk_weight else both[0]
    write_tensors(folder / BACKBONE, {"centre": centre, **{f"pair.{n}": p for n, p in trained.items()}}, {"base": base})
    features = {n: sentence_features(x, centre, settings.trunk_weight) for n, x in means.items()}
    write_tensors(folder / FEATURES, features, {"groups": groups})


def _numbers(classes: Mapping[str, Any]) -> list[int]:
    """The number of every class's set."""
    sets = list(dict.fromkeys(name.partition("/")[0] for name in classes))
    return [sets.index(name.partition("/")[0]) for name in classes]


def _train(settings: IntentSettings, encoder: Encoder, classes: Classes, folder: Path, device: str, progress: Progress) -> None:
    texts = [(text,) for of in classes.values() for text in of]
    states = read_states(encoder, texts, lambda done: progress("sentences of training classes", done, len(texts), {}))
    first, sets = 0, dict[int, list[Tensor]]()
    for number, of in zip(_numbers(classes), classes.values(), strict=True):
        sets.setdefault(number, []).append(torch.arange(first, first + len(of)))
        first += len(of)
    rows = [torch.stack([r[: min(map(len, of))] for r in of]) for of in sets.values()]
    options: dict[str, Any] = {"way": settings.backbone_way, "seed": settings.seed, "device": device}
    losses = partial(pretrain_sentences, encoder, states, rows, steps=settings.backbone_steps, **options)
    run_training(losses, settings.backbone_steps, folder, "backbone", progress)


def _embed_target(settings: IntentSettings, network: Network, path: Path) -> Target:
    sentences = target_sentences(settings, path)
    count = min(map(len, sentences.values()))
    features = torch.stack([network.read(texts[:count]) for texts in sentences.values()])
    return Target(features, list(sentences), network.read([label_sentence(label) for label in sentences]))


register_source(FamilySpec("intents", IntentSettings, _build, _load, kind="sentences", embed_target=_embed_target))
