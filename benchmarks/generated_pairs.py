"""LoRA pairs of a task's own, generated from its sentences, beside pairs that all tasks share, under the same head.

    python benchmarks/generated_pairs.py --data FOLDER [--out runs/generated-pairs] [--iterations 600]

MiniLM's last layer gets pairs of rank 4. Both kinds are trained on tasks of CLINC150's and HWU64's training classes, fresh
ones in every iteration, through the loss of class means (cosines) of the adapted features, so the head is in closed form for
both. Shared pairs are trained directly. Generated ones are written by a transformer, as a difference to learnt shared pairs;
its tokens are rank-one pieces and the single sentences of the support set. With "factors" it writes one number a piece, by
which the learnt piece is multiplied. Measured on the validation classes of both sets.

Prints accuracy (95 % interval over tasks), the paired difference of generated to shared pairs, and milliseconds a task.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mcdi.experiments.recipe import read_recipe
from mcdi.experiments.run import provenance
from mcdi.experiments.statistics import interval
from mcdi.methods.mcdi.filters import FilterTransformer
from mcdi.networks.backbones.language import MEAN, Encoder, LoraSettings, unpadded
from mcdi.tasks.text.intents import Classes, IntentSettings, read_intents
from mcdi.tasks.text.pairs import SHARPNESS, read_states
from mcdi.utils.files import read_tensors, write_tensors

LORA = LoraSettings(layers=1, rank=4, alpha=8, targets=("query", "key", "value", "dense"), generate="both")
SETS = ("clinc150", "hwu64")
KINDS = ("shared", "generated", "factors")
SENTENCES = 40  # of a class, at most
WAYS, SHOTS, QUERIES = (5, 24), (1, 5), 4  # of a training task
BATCH = 2  # tasks of an iteration
RATES = (1e-3, 2e-4)  # of learnt shared pairs, and of the transformer, which diverges at higher ones
CELLS = ((5, 1, 15), (5, 5, 15), (5, 16, 15), (0, 1, 5), (0, 5, 5))  # classes (0: all), shots, queries a class
WEIGHTS = ((0.5, 0.0), (1.0, 0.0), (0.5, 0.5), (1.0, 0.5), (1.0, 1.0))  # of the pairs, of a task's own difference


class Pieces:
    """LoRA pairs as rank-one pieces: a row of A beside the column of B that it meets, padded to one length."""

    def __init__(self, encoder: Encoder) -> None:
        shapes = {n: tuple(p.shape) for n, p in encoder.pairs.items()}
        self.names = [(a, a.replace("lora_A", "lora_B")) for a in shapes if "lora_A" in a]
        self.sizes = [(shapes[a][1], shapes[b][0]) for a, b in self.names]
        self.size = max(map(sum, self.sizes))

    @property
    def blocks(self) -> list[tuple[int, int]]:
        return [(LORA.rank, sum(sizes)) for sizes in self.sizes]

    def pack(self, pairs: dict[str, Tensor]) -> Tensor:
        rows = [torch.cat([pairs[a], pairs[b].T], 1) for a, b in self.names]
        return torch.cat([F.pad(r, (0, self.size - r.shape[1])) for r in rows])

    def unpack(self, rows: Tensor, weight: float = 1.0) -> dict[str, Tensor]:
        out = {}
        for (a, b), (inputs, outputs), part in zip(self.names, self.sizes, rows.split(LORA.rank), strict=True):
            out[a], out[b] = part[:, :inputs], weight * part[:, inputs : inputs + outputs].T
        return out


class Episode(NamedTuple):
    """Row numbers of the sentences of a task, by class: (way, shots), (way, queries)."""

    support: Tensor
    query: Tensor


def episode(classes: Tensor, way: int, shots: int, queries: int, generator: torch.Generator) -> Episode:
    chosen = classes[torch.randperm(len(classes), generator=generator)[:way]]
    picks = chosen.gather(1, torch.rand(chosen.shape, generator=generator).argsort(1)[:, : shots + queries])
    return Episode(picks[:, :shots], picks[:, shots:])


class Generator(nn.Module):
    """Pairs of a task from its support set, as a difference to learnt ones or as one factor for each piece of them; or the same
    pairs for every task."""

    def __init__(self, encoder: Encoder, pieces: Pieces, features: int, kind: str) -> None:
        super().__init__()
        start = pieces.pack({n: p.detach() for n, p in encoder.pairs.items()})
        self.base, self.kind, self.own = nn.Parameter(start), kind, kind != "shared"
        # The last block is a classifier's rows, which the transformer needs to know classes by; the head is in closed form.
        blocks = [*pieces.blocks, (WAYS[1], 1)]
        units = len(start) + WAYS[1]
        shape: Any = {"blocks": blocks, "shape": (features,), "way": WAYS[1]}
        self.net = FilterTransformer(pieces.size, features + WAYS[1], units, **shape) if self.own else None

    def forward(self, x: Tensor, weight: float = 1.0) -> Tensor:
        """Frozen features of a support set by class (way, shots, F) -> pieces."""
        if self.net is None:
            return self.base
        way, shots = x.shape[:2]
        labels = torch.eye(way).repeat_interleave(shots, 0)
        cond = torch.cat([x.flatten(0, 1), labels], 1)[None]
        units = len(self.base) + way
        nothing = torch.zeros(1, units, self.base.shape[1])
        out = self.net(nothing, torch.ones(1), cond, torch.ones(1, units, dtype=torch.bool))
        told = out[0, : len(self.base)]
        return self.base * (1 + weight * told[:, :1]) if self.kind == "factors" else self.base + weight * told


class Study:
    """The states of all sentences, and what a task's loss and accuracy are."""

    def __init__(self, encoder: Encoder, states: Tensor) -> None:
        self.encoder, self.states, self.pieces = encoder, states, Pieces(encoder)
        frozen = states[:, MEAN, :-1].float()
        self.frozen = F.normalize(frozen - frozen.mean(0), dim=-1) * frozen.shape[1] ** 0.5

    def features(self, pairs: dict[str, Tensor], rows: Tensor) -> Tensor:
        """Adapted means of sentences, of length 1: (...) -> (..., F)."""
        x = unpadded(self.states[rows.flatten()].float())
        tail = self.encoder.tail
        means = torch.func.functional_call(_Means(tail), {f"tail.{n}": p for n, p in pairs.items()}, (x,))
        return F.normalize(means, dim=-1).unflatten(0, rows.shape)

    def logits(self, generator: Generator, task: Episode, weight: float = 1.0, own: float = 1.0) -> Tensor:
        """Of all queries, one class after the other: (way * queries, way)."""
        rows = generator(self.frozen[task.support], own)
        pairs = self.pieces.unpack(rows, weight)
        both = self.features(pairs, torch.cat([task.support, task.query], 1))
        support, query = both.split([task.support.shape[1], task.query.shape[1]], 1)
        means = support.mean(1)
        return -SHARPNESS * torch.cdist(query.flatten(0, 1), means).square()

    def loss(self, generator: Generator, task: Episode) -> Tensor:
        logits = self.logits(generator, task)
        return F.cross_entropy(logits, _labels(task))

    @torch.no_grad()
    def accuracy(self, generator: Generator, task: Episode, weight: float, own: float) -> float:
        return float((self.logits(generator, task, weight, own).argmax(1) == _labels(task)).float().mean())


class _Means(nn.Module):
    def __init__(self, tail: Any) -> None:
        super().__init__()
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        return self.tail.pooled(x)[:, MEAN]


def _labels(task: Episode) -> Tensor:
    return torch.arange(len(task.query)).repeat_interleave(task.query.shape[1])


def training(study: Study, generator: Generator, classes: list[Tensor], iterations: int, seed: int) -> Iterator[float]:
    """Train in place; yields the loss of every iteration."""
    groups = [{"params": [generator.base], "lr": RATES[0]}]
    if generator.net is not None:
        groups.append({"params": list(generator.net.parameters()), "lr": RATES[1]})
    optimiser = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [g["lr"] for g in groups], iterations, pct_start=0.1)
    weights = torch.tensor([float(len(c)) for c in classes])
    for step in range(iterations):
        draw = torch.Generator().manual_seed(1_000_003 * seed + step)
        total = 0.0
        for _ in range(BATCH):
            of = classes[int(torch.multinomial(weights, 1, generator=draw))]
            way = int(torch.randint(WAYS[0], 1 + min(WAYS[1], len(of)), (1,), generator=draw))
            shots = int(torch.randint(SHOTS[0], SHOTS[1] + 1, (1,), generator=draw))
            loss = study.loss(generator, episode(of, way, shots, QUERIES, draw)) / BATCH
            loss.backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        yield total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/generated-pairs"))
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = read_recipe("intents").family
    assert isinstance(settings, IntentSettings)
    settings = replace(settings, examples=SENTENCES)
    encoder = Encoder(LORA, WAYS[1])
    states, classes = states_of(encoder, settings, arguments.data, arguments.out)
    study = Study(encoder, states)
    train = [classes.pop(f"train {name}") for name in SETS]
    generators = {}
    for kind in arguments.kinds:
        torch.manual_seed(arguments.seed)
        generators[kind] = Generator(encoder, study.pieces, states.shape[-1] - 1, kind)
        path = arguments.out / f"{kind}-{arguments.seed}-{arguments.iterations}.safetensors"
        if path.exists():
            generators[kind].load_state_dict(read_tensors(path)[0])
            continue
        start, recent = time.monotonic(), list[float]()
        for step, loss in enumerate(training(study, generators[kind], train, arguments.iterations, arguments.seed)):
            recent.append(loss)
            if step % 50 == 49:
                seconds = time.monotonic() - start
                print(f"{kind}: {step + 1} of {arguments.iterations}, loss {sum(recent) / 50:.3f}, {seconds:.0f} s", flush=True)
                recent.clear()
        write_tensors(path, dict(generators[kind].state_dict()), {})
    measure(study, generators, classes, arguments.tasks)


def states_of(encoder: Encoder, settings: IntentSettings, data: Path, out: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """States of all sentences, and the row numbers of every set's classes; kept in a file."""
    path = out / "states.safetensors"
    if not path.exists():
        groups: dict[str, Classes] = {}
        for name in SETS:
            parts = read_intents(replace(settings, sets=(name,)), data)
            groups |= {f"train {name}": parts["train"], name: parts["val"]}
        texts, first, rows = [], 0, {}
        for name, of in groups.items():
            count = min(map(len, of.values()))
            texts += [(text,) for own in of.values() for text in own[:count]]
            rows[name] = torch.arange(first, len(texts)).view(-1, count)
            first = len(texts)
        states = read_states(encoder, texts, lambda done: None)
        write_tensors(path, {"states": states, **{f"rows.{n}": r for n, r in rows.items()}}, {})
    held, _ = read_tensors(path)
    return held["states"], {n.removeprefix("rows."): r for n, r in held.items() if n.startswith("rows.")}


def measure(study: Study, generators: dict[str, Generator], classes: dict[str, Tensor], tasks: int) -> None:
    made = provenance()
    table = Table(title=f"{tasks} tasks; {made['hardware']}, {made['date']}, commit {made['commit']}")
    for column in ("set", "classes", "shots", "pairs", "weight", "own", "accuracy (%)", "minus shared", "ms a task"):
        table.add_column(column, justify="right")
    for name, of in classes.items():
        for way, shots, queries in CELLS:
            if shots + queries > of.shape[1]:
                continue
            count = tasks if way else max(1, tasks // 5)
            episodes = [
                episode(of, way or len(of), shots, queries, torch.Generator().manual_seed(seed)) for seed in range(count)
            ]
            shared: dict[float, Tensor] = {}
            for kind, generator in generators.items():
                for weight, own in WEIGHTS:
                    if generator.own != bool(own):
                        continue
                    start = time.monotonic()
                    right = torch.tensor([study.accuracy(generator, task, weight, own) for task in episodes])
                    took = 1000 * (time.monotonic() - start) / count
                    if not generator.own:
                        shared[weight] = right
                    found, than = interval(right), interval(right - shared.get(weight, right))
                    cells = [f"{100 * found['mean']:.1f} ± {100 * found['ci95']:.1f}"]
                    cells.append(f"{100 * than['mean']:+.1f} ± {100 * than['ci95']:.1f}" if generator.own else "")
                    row = [name, str(way or len(of)), str(shots), kind, f"{weight:g}", f"{own:g}", *cells, f"{took:.0f}"]
                    print(*row, sep="  ", flush=True)
                    table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
