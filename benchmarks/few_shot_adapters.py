"""Accuracy and CPU seconds of generated adapters and of fine-tuned ones, from a few labelled texts of sets outside training.

    python benchmarks/few_shot_adapters.py GENERATOR ... --data FOLDER --sets cr mpqa [--shots 16] [--draws 3] [--steps 60]

GENERATOR: folders of trained generators of adapters, all of one base model, that did not see the sets (recipes like glue-lora).
Every draw takes --shots texts of each class from a set's training file and --queries of each class from its last file. LoRA
fine-tuning begins with pairs as peft draws them and a head of zeros, and takes --steps steps of Adam on all texts, at each
of --rates; the frozen layers below the pairs are run once, for all methods. Seconds are of one thread, from texts to weights.
"""

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from rich.console import Console
from rich.table import Table
from torch import Tensor

import mcdi
from mcdi.experiments.run import provenance
from mcdi.experiments.statistics import interval
from mcdi.networks.backbones.language import Encoder, unpadded
from mcdi.networks.lora import LoraClassifier
from mcdi.tasks.text.labelled import Splits, TextSet, read_sets
from mcdi.types import Sentences

Change = Callable[[list[Sentences], Tensor], Callable[[Tensor], Tensor]]  # texts and labels -> (states of queries -> logits)


def drawn(part: TextSet, count: int, draw: random.Random) -> tuple[list[Sentences], Tensor]:
    """`count` texts of every class."""
    rows = [j for c in range(len(part.classes)) for j in draw.sample([n for n, y in enumerate(part.labels) if y == c], count)]
    return [part.texts[j] for j in rows], torch.tensor([part.labels[j] for j in rows])


def generated(folder: Path) -> tuple[Change, LoraClassifier]:
    generator = mcdi.load(folder)
    net = generator.network
    if not isinstance(net, LoraClassifier):
        raise SystemExit(f"{folder} generates no adapters: give a generator that a text recipe has trained")

    def change(texts: list[Sentences], y: Tensor) -> Callable[[Tensor], Tensor]:
        weights = generator.generate((texts, y))
        return lambda states: generator.predict(weights, states)

    return change, net


def fine_tuned(net: LoraClassifier, way: int, steps: int, rate: float) -> Change:
    encoder = Encoder(net.encoder.settings, way)
    tail = encoder.tail
    trained = [p for n, p in tail.named_parameters() if "lora_" in n or n.startswith(f"model.{encoder.head}.")]
    start = [p.clone() for p in trained]

    def change(texts: list[Sentences], y: Tensor) -> Callable[[Tensor], Tensor]:
        with torch.no_grad():
            for p, first in zip(trained, start, strict=True):
                p.copy_(first)
        states = unpadded(encoder.read(texts))
        optimiser = torch.optim.Adam([p.requires_grad_() for p in trained], lr=rate)
        for _ in range(steps):
            optimiser.zero_grad()
            F.cross_entropy(tail(states), y).backward()
            optimiser.step()
        for p in trained:
            p.requires_grad_(False)
        return lambda states: tail(unpadded(states))

    return change


def measure(sets: dict[str, Splits], methods: dict[str, Change], net: LoraClassifier, options: argparse.Namespace) -> Table:
    made = provenance()
    title = f"{options.shots} texts a class, {options.draws} draws; {made['hardware']}, {made['date']}, commit {made['commit']}"
    table = Table("set", "method", "accuracy (%)", "minus the first", "CPU seconds", title=title)
    for name in options.sets:
        parts = sets[name]
        scores: dict[str, list[float]] = {}
        seconds: dict[str, list[float]] = {}
        for seed in range(options.draws):
            draw = random.Random(seed)
            texts, y = drawn(parts["train"], options.shots, draw)
            asked, answers = drawn(list(parts.values())[-1], options.queries, draw)
            states = net.read(asked)
            for label, change in methods.items():
                start = time.process_time()
                answer = change(texts, y)
                seconds.setdefault(label, []).append(time.process_time() - start)
                with torch.no_grad():
                    scores.setdefault(label, []).append(float((answer(states).argmax(-1) == answers).float().mean()))
                print(name, seed, label, f"{scores[label][-1]:.3f} {seconds[label][-1]:.1f} s", flush=True)
        first = torch.tensor(next(iter(scores.values())))
        for label, values in scores.items():
            own, other = interval(torch.tensor(values)), interval(torch.tensor(values) - first)
            cells = [f"{100 * e['mean']:{sign}.1f} ± {100 * e['ci95']:.1f}" for e, sign in ((own, ""), (other, "+"))]
            table.add_row(name, label, *cells, f"{sum(seconds[label]) / options.draws:.1f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("generators", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.001, 0.003])
    options = parser.parse_args()
    torch.set_num_threads(1)
    sets = read_sets(options.data)
    methods: dict[str, Change] = {}
    for folder in options.generators:
        methods[str(folder)], net = generated(folder)
    way, *others = {len(sets[name]["train"].classes) for name in options.sets}
    if others:
        raise SystemExit(f"{', '.join(options.sets)} have different numbers of classes: measure them one by one")
    for rate in options.rates:
        methods[f"LoRA fine-tuning, rate {rate:g}"] = fine_tuned(net, way, options.steps, rate)
    Console(width=110).print(measure(sets, methods, net, options))


if __name__ == "__main__":
    main()
