"""How does the family of a recipe come to be? Images, a backbone meta-trained on the training classes, and its features.

Both results are kept in the folder of the run; what is there already is not made again.
"""

import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.experiments.logs import TrainingLog
from mcdi.experiments.recipe import COLOURS, FamilySettings
from mcdi.networks.backbones.language import POOLED
from mcdi.networks.backbones.pretrained import Pretrained, fetch, is_pretrained
from mcdi.networks.backbones.vision import Backbone, Embedder, compute_features, make_backbone, train_backbone
from mcdi.networks.lora import LoraClassifier
from mcdi.networks.registry import NETWORKS
from mcdi.tasks.curves import Sines
from mcdi.tasks.episodes import FewShot
from mcdi.tasks.family import TaskFamily
from mcdi.tasks.images.class_images import ClassImages, with_rotations
from mcdi.tasks.images.domains import by_class, domain_images, groups_of
from mcdi.tasks.text.corpora import read_hub, read_sets
from mcdi.tasks.text.lora_pretraining import pretrain_lora, recompute_pooled
from mcdi.tasks.text.phrases import phrase_sets
from mcdi.tasks.text.pools import Chosen, choose, pools_of
from mcdi.tasks.text.text_tasks import TextTasks
from mcdi.utils.files import read_tensors, write_tensors
from mcdi.utils.workers import Progress

CHECKPOINT, TEXTS = "checkpoint.safetensors", "texts"  # what a stopped run goes on from
READ = 64  # texts at a time, between two words of progress


def images_of(settings: FamilySettings, data: Path | None, folder: Path) -> dict[str, ClassImages]:
    """The banks of all splits, as the family's settings want them."""
    if settings.data == "domains":
        limit, examples = settings.limit, settings.examples
        return domain_images(data, settings.domain, size=settings.side, limit=limit, examples=examples)
    if settings.data == "omniglot":
        from mcdi.tasks.images.omniglot import omniglot_images

        banks = omniglot_images(data, size=settings.side, split=settings.split, download_to=folder / "downloads")
    elif settings.data == "natural":
        from mcdi.tasks.images.photos import natural_images

        banks = natural_images(data, size=settings.side, limit=settings.limit, examples=settings.examples)
    else:
        from mcdi.tasks.images.glyphs import glyph_images

        banks = glyph_images(settings.seed, size=settings.side, limit=settings.limit)
    few = settings.limit, settings.examples
    banks = {n: ClassImages(b.images[: few[0], : few[1]], b.names[: few[0]]) for n, b in banks.items()}
    return {n: with_rotations(b) if n == "train" and settings.rotations else b for n, b in banks.items()}


def _seen(settings: FamilySettings, banks: Mapping[str, ClassImages]) -> Tensor:
    """The images that the backbone is trained on, (C, M, channels, side, side)."""
    if settings.backbone_data == "same":
        return (by_class(banks["train"]) if settings.data == "domains" else banks["train"]).pixels
    drawings = replace(settings, data="glyphs", examples=None)
    grey = images_of(drawings, None, Path())["train"].pixels
    return grey.expand(-1, -1, _channels(settings), -1, -1)


def _channels(settings: FamilySettings) -> int:
    return 3 if settings.data in COLOURS else 1


def _embedder(settings: FamilySettings, described: Mapping[str, Any] | None = None) -> Embedder:
    """With untrained networks; pretrained ones are fetched, or rebuilt without their weights of what is `described`."""
    known = described or {}
    embedding = None
    if settings.embedding:
        other = _backbone(settings, settings.embedding, settings.seed + 1, known.get("embedding"))
        embedding = Embedder(other, settings.side)
    return Embedder(_backbone(settings, settings.backbone, settings.seed, known.get("model")), settings.side, embedding)


def _backbone(settings: FamilySettings, name: str, seed: int, described: Mapping[str, Any] | None) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if is_pretrained(name) and described is None:
            return fetch(name)
        return make_backbone({"backbone": name, "channels": _channels(settings), "model": described})


def _few_shot(
    settings: FamilySettings, embedder: Embedder, banks: Mapping[str, Tensor], groups: Mapping[str, list[int]] | None = None
) -> FewShot:
    """Tasks over banks of features, or of images, of which then only the numbers of classes and examples are checked."""
    extra: dict[str, Any] = {}
    if settings.condition != "means":
        if settings.network != "linear-head":
            raise McdiError(f"condition = {settings.condition!r} is for network = 'linear-head', not {settings.network!r}")
        extra = {"condition": settings.condition, "examples": max(settings.shots)}
    if settings.centred:
        if settings.network != "linear-head":
            raise McdiError(f"centred features are for network = 'linear-head', not {settings.network!r}")
        extra["centred"] = True
    network = NETWORKS[settings.network](embedder.backbone.features, settings.way, embedder, **extra)  # type: ignore[call-arg, arg-type]
    counts: dict[str, Any] = {"way": settings.way, "shots": settings.shots, "queries": settings.queries}
    return FewShot(settings.data, network, banks, groups=groups, **counts)


def make_family(settings: FamilySettings, folder: Path, *, data: Path | None, device: str, progress: Progress) -> TaskFamily:
    """The family of a recipe: images, a backbone meta-trained on training classes, perhaps a second network for the task
    embedding, and the features of every image."""
    if data is not None and settings.data in ("glyphs", "sines"):
        source = "drawn from fonts" if settings.data == "glyphs" else "drawn at random"
        raise McdiError(f"{settings.data} are {source} and read no --data: leave it out, or run the omniglot or natural recipe")
    if settings.data != "sines" and not (folder / "features.safetensors").exists():
        embed = _embed_texts if settings.data == "text" else _embed_banks
        embed(settings, folder, data, device, progress)
    return load_family(settings, folder)


def _embed_banks(settings: FamilySettings, folder: Path, data: Path | None, device: str, progress: Progress) -> None:
    progress("images", 0, 1, {})
    banks = images_of(settings, data, folder)
    images = {n: b.pixels for n, b in banks.items()}
    progress("images", 1, 1, {"classes": float(sum(len(b.names) for b in banks.values()))})
    embedder = _embedder(settings)
    # A task is of one domain: its styles would tell its classes apart.
    groups = {n: groups_of(b) for n, b in banks.items()} if settings.data == "domains" else None
    network, seen = _few_shot(settings, embedder, images, groups).downstream, _seen(settings, banks)
    readers = {"backbone": embedder} | ({} if embedder.embedding is None else {"embedding": embedder.embedding})
    for number, (name, reader) in enumerate(readers.items()):
        how = replace(settings, seed=settings.seed + number)
        _train(reader.backbone.to(device), seen, how, folder, name, progress)
        reader.fit(compute_features(reader.backbone.cpu(), images["train"]))
    described = {"model" if n == "backbone" else n: reader.config().get("model") for n, reader in readers.items()}
    write_tensors(folder / "backbone.safetensors", embedder.state_dict(), described)
    for name in readers:
        (folder / f"{name}.{CHECKPOINT}").unlink(missing_ok=True)
    banks_embedded = {}
    for n, x in images.items():
        banks_embedded[n] = network.embed(x)
        progress("features", len(banks_embedded), len(images), {})
    write_tensors(folder / "features.safetensors", banks_embedded, {"groups": groups})


def _train(backbone: Backbone, seen: Tensor, settings: FamilySettings, folder: Path, name: str, progress: Progress) -> None:
    """Train a backbone in place; one that comes trained stays as it is."""
    steps = 0 if isinstance(backbone, Pretrained) else settings.backbone_steps
    start, save = _resumed(folder, name)
    losses = train_backbone(
        backbone,
        seen,
        steps=steps,
        seed=settings.seed,
        objective=settings.backbone_loss,
        way=settings.backbone_way,
        start=start,
        checkpoint=save,
    )
    _follow(losses, start[0] if start else 0, steps, folder, progress, name)


def _resumed(
    folder: Path, name: str = "backbone"
) -> tuple[tuple[int, dict[str, Tensor]] | None, Callable[[int, dict[str, Tensor]], object]]:
    """Steps done and state of a backbone's training that was stopped, if there is one, and how to keep them."""
    path, start = folder / f"{name}.{CHECKPOINT}", None
    if path.exists():
        state, metadata = read_tensors(path)
        start = (int(metadata["step"]), state)
    return start, lambda step, state: write_tensors(path, state, {"step": step})


def _follow(losses: Iterable[float], done: int, steps: int, folder: Path, progress: Progress, name: str = "backbone") -> None:
    """Train to the end, by taking the losses of the steps after `done`, and say so."""
    log = TrainingLog(folder / "logs" / f"{name}.jsonl")
    for step, loss in enumerate(losses, done + 1):
        log(step, steps, {"loss": loss})
        progress(name, step, steps, {"loss": loss})


def _states(chosen: Sequence[Chosen], network: LoraClassifier, folder: Path, progress: Progress) -> Tensor:
    """The states of all texts, half precision; those of a set that was read before a stop are on disk, by what decides them."""
    states: list[Tensor] = []
    done, total = 0, sum(len(c.texts) for c in chosen)
    for c in chosen:
        decides = repr((c.texts, network.base, network.encoder.settings))
        path = folder / TEXTS / f"{zlib.crc32(decides.encode()):08x}.safetensors"
        if not path.exists():
            parts = []
            for i in range(0, len(c.texts), READ):
                parts.append(network.read(c.texts[i : i + READ]).half().cpu())
                progress("texts", done + i + len(parts[-1]), total, {})
            write_tensors(path, {"states": torch.cat(parts)})
        states.append(read_tensors(path)[0]["states"])
        done += len(c.texts)
    progress("texts", total, total, {})
    return torch.cat(states)


def _embed_texts(settings: FamilySettings, folder: Path, data: Path | None, device: str, progress: Progress) -> None:
    """The states of every chosen text in front of the adapted layers, half precision, and which set it is of."""
    sets = {} if data is None else read_sets(data)
    sets |= read_hub(settings.text.hub)
    sets = sets or phrase_sets(settings.seed)
    chosen = choose(sets, settings.text, settings.way, settings.seed)
    network = _text_network(settings)
    network.to(device)
    bank = _states(chosen, network, folder, progress)
    tasks = _text_tasks(settings, network, bank, chosen)
    start, save = _resumed(folder)
    losses = pretrain_lora(
        tasks, steps=settings.backbone_steps, seed=settings.seed, device=device, start=start, checkpoint=save
    )
    _follow(losses, start[0] if start else 0, settings.backbone_steps, folder, progress)
    for done in recompute_pooled(network, bank, device):
        progress("features", done, len(bank), {})
    # The features have moved, so has their centre.
    network.set_feature_bank(bank, torch.cat([p.text_ids for p in tasks.pools["train"]]))
    write_tensors(folder / "backbone.safetensors", network.state())
    described = [c._replace(texts=[])._asdict() for c in chosen]
    write_tensors(folder / "features.safetensors", {"states": bank}, {"sets": described, "base": network.base})
    (folder / f"backbone.{CHECKPOINT}").unlink(missing_ok=True)
    shutil.rmtree(folder / TEXTS, ignore_errors=True)


def _text_network(settings: FamilySettings, base: int | None = None) -> LoraClassifier:
    return LoraClassifier(settings.lora, settings.way, base, settings.condition, max(settings.shots))


def _text_tasks(settings: FamilySettings, network: LoraClassifier, bank: Tensor, chosen: Sequence[Chosen]) -> TextTasks:
    pools = pools_of(chosen, bank[:, POOLED - 1, :-1])
    network.set_feature_bank(bank, torch.cat([p.text_ids for p in pools["train"]]))
    few = settings.text.examples
    return TextTasks(network, pools, way=settings.way, shots=settings.shots, queries=settings.queries, examples=few)


def load_family(settings: FamilySettings, folder: Path) -> TaskFamily:
    """The family of a run whose backbone and features are on disk already."""
    if settings.data == "text":
        tensors, metadata = read_tensors(folder / "features.safetensors")
        chosen = [Chosen(**c) for c in metadata["sets"]]
        network = _text_network(settings, metadata.get("base"))
        network.load_state(read_tensors(folder / "backbone.safetensors")[0])
        return _text_tasks(settings, network, tensors["states"], chosen)
    if settings.data == "sines":
        return Sines(shots=settings.shots[0], queries=settings.queries)
    state, said = read_tensors(folder / "backbone.safetensors")
    embedder = _embedder(settings, said)
    try:
        embedder.load_state_dict(state)
    except RuntimeError as error:
        raise McdiError(
            f"{folder / 'backbone.safetensors'} is the backbone of another version: delete {folder} and run again"
        ) from error
    banks, metadata = read_tensors(folder / "features.safetensors")
    return _few_shot(settings, embedder, banks, metadata.get("groups"))
