"""The source "text": sets of labelled sentences, pre-trained LoRA pairs, and the states of every text in front of them."""

import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.networks.backbones.embedder import cl2n
from mcdi.networks.backbones.language import POOLED, LoraSettings
from mcdi.networks.backbones.vision import prototypical_loss
from mcdi.networks.lora import LoraClassifier
from mcdi.networks.registry import NETWORKS
from mcdi.tasks.registry import FamilySettings, FamilySpec, register_source
from mcdi.tasks.text.labelled import read_hub, read_sets
from mcdi.tasks.text.pairs import SHARPNESS, read_states, train_pairs
from mcdi.tasks.text.phrases import phrase_sets
from mcdi.tasks.text.pools import Chosen, TextSettings, choose, pools_of
from mcdi.tasks.text.text_tasks import Pools, TextTasks
from mcdi.utils.files import read_tensors, write_tensors
from mcdi.utils.training import BACKBONE, FEATURES, checkpoint_of, run_training
from mcdi.utils.workers import Progress

TASKS = 4  # a step
SHOTS, QUERIES = 5, 8  # at most, of a class in an episode


def pretrain_lora(
    tasks: TextTasks, *, steps: int, seed: int, lr: float = 2e-3, device: str = "cpu", **resume: Any
) -> Iterator[float]:
    """Train the pairs of the network in place with the ProtoNet loss of training tasks; yields every step's loss. What
    a head reads is centred and brought to one length first: the output of a pretrained pooler hardly differs from text
    to text. resume: `start` and `checkpoint` of `train_adamw`."""
    net, shots = tasks.downstream, min(SHOTS, *tasks.shots)

    def episodes(step: int) -> Tensor:
        seeds = [seed * 1_000_003 + step * TASKS + j for j in range(TASKS)]
        batch = tasks.sample("train", seeds, draw=1 + step, shots=shots)
        x = torch.cat([part.x.unflatten(1, (tasks.way, -1))[:, :, :QUERIES] for part in (batch.support, batch.query)], 2)
        read = cl2n(net.encoder.tail.pooled(net.states(x.flatten().to(device)))[:, 0], net.centre[0].to(device))
        read = read * (SHARPNESS / net.features) ** 0.5
        return torch.stack([prototypical_loss(e, shots) for e in read.reshape(*x.shape, -1)]).mean()

    return train_pairs(net.encoder, episodes, steps, lr=lr, **resume)


@torch.no_grad()
def recompute_pooled(net: LoraClassifier, bank: Tensor, device: str = "cpu", batch: int = 128) -> Iterator[int]:
    """Recompute the pooled rows of a feature bank with the network's present pairs; yields how many texts are done."""
    for i in range(0, len(bank), batch):
        rows = torch.arange(i, min(i + batch, len(bank)))
        bank[rows, :POOLED, :-1] = net.encoder.tail.pooled(net.states(rows.to(device))).to(bank)
        yield len(rows) + i


TEXTS = "texts"  # folder of the states of sets that were read before a stop


@dataclass(frozen=True)
class TextFamilySettings(FamilySettings):
    """Tasks of text for a language model; backbone_steps: of LoRA pre-training; condition: see networks.heads.Head."""

    data: str = "text"
    network: str = "lora"
    condition: Literal["means", "examples"] = "means"
    backbone_steps: int = 400
    text: TextSettings = TextSettings()
    lora: LoraSettings = LoraSettings()

    def check(self) -> None:
        super().check()
        if self.lora.start == "drawn":
            raise McdiError("lora.start = 'drawn' is where the study adapters fine-tunes from, no recipe: leave it out")

    def quick(self) -> Self:
        return replace(self, backbone_steps=min(2, self.backbone_steps))


def _build(settings: TextFamilySettings, folder: Path, *, data: Path | None, device: str, progress: Progress) -> TextTasks:
    if not (folder / FEATURES).exists():
        _embed(settings, folder, data, device, progress)
    checkpoint_of(folder, "backbone").unlink(missing_ok=True)  # after a kill, too
    shutil.rmtree(folder / TEXTS, ignore_errors=True)
    return _load(settings, folder)


def _load(settings: TextFamilySettings, folder: Path) -> TextTasks:
    tensors, metadata = read_tensors(folder / FEATURES)
    network = _network(settings, metadata.get("base"))
    network.load_state(read_tensors(folder / BACKBONE)[0])
    return _tasks(settings, network, tensors["states"], [Chosen(**c) for c in metadata["sets"]])


def _embed(settings: TextFamilySettings, folder: Path, data: Path | None, device: str, progress: Progress) -> None:
    """Write the states of every chosen text in front of the adapted layers, half precision, and which set it is of."""
    sets = {} if data is None else read_sets(data, scales=settings.text.scales)
    sets |= read_hub(settings.text.hub)
    chosen = choose(sets or phrase_sets(settings.seed), settings.text, settings.way, settings.seed)
    network = _network(settings)
    network.to(device)
    _checked(settings, network, pools_of(chosen, torch.empty(sum(len(c.labels) for c in chosen), 0)))  # before anything is read
    bank = _states(chosen, network, folder, progress)
    tasks = _tasks(settings, network, bank, chosen)
    steps = settings.backbone_steps
    losses = partial(pretrain_lora, tasks, steps=steps, seed=settings.seed, device=device)
    run_training(losses, steps, folder, "backbone", progress)
    for done in recompute_pooled(network, bank, device):
        progress("features", done, len(bank), {})
    # The features have moved, so has their centre.
    network.set_feature_bank(bank, torch.cat([p.text_ids for p in tasks.pools["train"]]))
    write_tensors(folder / BACKBONE, network.state())
    described = [c._replace(texts=[])._asdict() for c in chosen]
    write_tensors(folder / FEATURES, {"states": bank}, {"sets": described, "base": network.base})


def _states(chosen: Sequence[Chosen], network: LoraClassifier, folder: Path, progress: Progress) -> Tensor:
    """The states of all texts, half precision; those of a set that was read before a stop are on disk, by what decides them."""
    states, total = list[Tensor](), sum(len(c.texts) for c in chosen)
    for c in chosen:
        done = sum(map(len, states))
        decides = repr((c.texts, network.base, network.encoder.settings))
        path = folder / TEXTS / f"{zlib.crc32(decides.encode()):08x}.safetensors"
        if not path.exists():

            def seen(texts: int, done: int = done) -> None:
                progress("texts", done + texts, total, {})

            write_tensors(path, {"states": read_states(network.encoder, c.texts, seen)})
        states.append(read_tensors(path)[0]["states"])
    progress("texts", total, total, {})
    return torch.cat(states)


def _network(settings: TextFamilySettings, base: int | None = None) -> Any:
    return NETWORKS.get(settings.network).network.for_family(settings, base=base)


def _tasks(settings: TextFamilySettings, network: LoraClassifier, bank: Tensor, chosen: Sequence[Chosen]) -> TextTasks:
    pools = pools_of(chosen, bank[:, POOLED - 1, :-1])
    network.set_feature_bank(bank, torch.cat([p.text_ids for p in pools["train"]]))
    return _checked(settings, network, pools)


def _checked(settings: TextFamilySettings, network: LoraClassifier, pools: Pools) -> TextTasks:
    few = settings.text.examples
    return TextTasks(network, pools, way=settings.way, shots=settings.shots, queries=settings.queries, examples=few)


register_source(FamilySpec("text", TextFamilySettings, _build, _load, kind="texts"))
