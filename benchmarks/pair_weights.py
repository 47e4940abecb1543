"""How far trained LoRA pairs of a sentence encoder are best taken, on a set that they were not trained on; and what the mean
of the states in front of the adapted layers adds.

    python benchmarks/pair_weights.py --data FOLDER [--sets clinc150 hwu64] [--tasks 300]

For each of two sets: the pairs are trained on its training classes as recipe `intents` trains them, and added to the frozen
encoder with weights of 0 (the frozen encoder) to 1 (all of what training added). Class means are then measured on the training
and validation classes of the other set, all at once, of the mean of the last states and with that of the trunk beside it. No
test class of any set is read, so that both weights of the recipe may be chosen here.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mcdi.experiments.recipe import read_recipe
from mcdi.experiments.run import provenance
from mcdi.experiments.statistics import interval
from mcdi.networks.backbones.language import MEAN, POOLED, Encoder, mean_of, unpadded
from mcdi.networks.linear_head import LinearHead
from mcdi.networks.sentence_head import sentence_features
from mcdi.networks.support import class_means, prototype_rows
from mcdi.tasks.episodes import FewShot
from mcdi.tasks.text.intents import Classes, IntentSettings, pretrain_sentences, read_intents
from mcdi.tasks.text.pairs import read_states, scaled_pairs

WEIGHTS, TRUNK, SHOTS, QUERIES, READ = (0.0, 0.25, 0.5, 0.75, 1.0), (0.0, 0.5, 1.0), (1, 5), 15, 128


def states_of(encoder: Encoder, classes: Classes) -> tuple[Tensor, int]:
    """The states of the same number of sentences of every class, and this number."""
    count = min(map(len, classes.values()))
    return read_states(encoder, [(text,) for texts in classes.values() for text in texts[:count]], lambda done: None), count


@torch.no_grad()
def means_of(encoder: Encoder, states: Tensor, count: int) -> Tensor:
    """Of the last layer's states, and of the states in front of the tail, by class: (C, M, 2, H)."""
    parts = []
    for part in states.split(READ):
        x = unpadded(part.float())
        trunk = mean_of(x[:, POOLED:, :-1], x[:, POOLED:, -1:])
        parts.append(torch.stack([encoder.tail.pooled(x)[:, MEAN], trunk], 1))
    return torch.cat(parts).unflatten(0, (-1, count))


def accuracies(features: Tensor, tasks: int) -> list[str]:
    """Of class means over all classes, in %, at every number of shots."""
    way, cells = len(features), []
    net = LinearHead(features.shape[-1], way)
    family = FewShot("intents", net, {"test": features}, way=way, shots=SHOTS, queries=QUERIES)
    for shots in SHOTS:
        right = []
        for seed in range(tasks):
            batch = family.sample("test", [seed], shots=shots)
            rows = prototype_rows(class_means(batch.support.x, batch.support.y, way)[0])
            right.append((net.predict(rows, batch.query.x).argmax(-1) == batch.query.y).float().mean())
        found = interval(torch.stack(right))
        cells.append(f"{100 * found['mean']:.1f} ± {100 * found['ci95']:.1f}")
    return cells


def rows_of(settings: dict[str, IntentSettings], data: Path, trained: str, other: str, tasks: int) -> list[Sequence[str]]:
    """The rows of the table for pairs that are trained on one set and measured on another."""
    own = settings[trained]
    encoder = Encoder(own.lora, own.way)
    (states, count), splits = states_of(encoder, read_intents(own, data)["train"]), read_intents(settings[other], data)
    unseen = states_of(encoder, splits["train"] | splits["val"])
    classes = [torch.arange(len(states)).view(-1, count)]
    options = {"steps": own.backbone_steps, "way": own.backbone_way, "seed": own.seed, "device": "cpu"}
    for step, loss in enumerate(pretrain_sentences(encoder, states, classes, **options)):  # type: ignore[arg-type]
        if step % 20 == 0:
            print(f"{trained}: step {step} of {own.backbone_steps}, loss {loss:.3f}", flush=True)
    whole = {n: p.detach().clone() for n, p in encoder.pairs.items()}
    rows = []
    for weight in WEIGHTS:
        encoder.set_pairs(whole)
        encoder.set_pairs(scaled_pairs(encoder, weight))
        centre, means = means_of(encoder, states, count).flatten(0, 1).mean(0), means_of(encoder, *unseen)
        for trunk in TRUNK:
            features = sentence_features(means, centre.flatten() if trunk else centre[0], trunk)
            rows.append([trained, other, f"{weight:g}", f"{trunk:g}", *accuracies(features, tasks)])
            print(*rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs=2, default=["clinc150", "hwu64"])
    parser.add_argument("--tasks", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = read_recipe("intents").family
    assert isinstance(recipe, IntentSettings)
    settings = {name: replace(recipe, sets=(name,), examples=40) for name in arguments.sets}
    cells = ("trained on", "measured on", "weight", "trunk", *(f"{n} a class (%)" for n in SHOTS))
    table = Table(*cells, title="class means, all classes")
    for trained, other in (arguments.sets, arguments.sets[::-1]):
        for row in rows_of(settings, arguments.data, trained, other, arguments.tasks):
            table.add_row(*row)
    Console(width=120).print(table, str(provenance()))


if __name__ == "__main__":
    main()
