"""Time and memory of LoRA trajectories against peft in a loop, and of a generated adapter against a fine-tuned one.

    python benchmarks/adapters.py [--data FOLDER] [--tasks 16] [--epochs 6]
    python benchmarks/adapters.py --model runs/text-lora/methods/mc-di-0 [--shots 16] [--steps 60]

Both train the same pairs and the same head on the same texts, batch after batch, from the same start: peft in the common
way (token ids, batches padded to their longest text, no dropout), and `trajectories` on states of the frozen trunk, which are
computed once. Prints seconds a task, with and without the trunk, and the peak memory of tensors without the parameters of the
model. One thread. Sets: the embedded phrases, or --data.

With --model: from labelled sentences (the embedded opinions, --shots a class) to an adapter folder, with that generator and
with --steps full-batch steps of Adam with peft on the same model, the same pairs and rows.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from rich.console import Console
from rich.table import Table

from mcdi.experiments.recipe import read_recipe
from mcdi.experiments.run import make_family, provenance
from mcdi.generator.adapters import save_adapter
from mcdi.generator.api import load
from mcdi.networks.backbones.language import Encoder
from mcdi.networks.lora import LoraClassifier
from mcdi.tasks.text.labelled import read_sets
from mcdi.tasks.text.phrases import phrase_sets
from mcdi.tasks.text.pools import choose
from mcdi.tasks.text.source import TextFamilySettings
from mcdi.tasks.text.text_tasks import TextTasks
from mcdi.trajectories.optimise import Optimisation
from mcdi.trajectories.prepare import LiveBytes, Preparation, tile_size, trajectories
from mcdi.types import Sentences


def plain(encoder: Encoder, texts: list[Sentences], y: torch.Tensor, settings: Optimisation, save: Path | None = None) -> None:
    """One task: Adam on the pairs and the head of a peft model, which is reset afterwards."""
    model = encoder.whole
    trained = [p.requires_grad_() for n, p in model.named_parameters() if "lora_" in n or "modules_to_save" in n]
    kept = [p.detach().clone() for p in trained]
    optimiser = torch.optim.Adam(trained, lr=settings.lr)
    size = settings.batch or len(texts)
    for epoch in range(settings.epochs):
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(epoch)).tolist()
        for i in range(0, len(texts), size):
            rows = order[i : i + size]
            tokens = encoder.tokens([texts[j] for j in rows])
            optimiser.zero_grad()
            F.cross_entropy(model(**tokens).logits, y[rows]).backward()
            optimiser.step()
    if save is not None:
        model.save_pretrained(str(save))
    with torch.no_grad():
        for p, start in zip(trained, kept, strict=True):
            p.copy_(start)
            p.requires_grad_(False)


def with_adapters(recipe: TextFamilySettings, data: Path | None) -> TextFamilySettings:
    recipe = replace(recipe, lora=replace(recipe.lora, generate="both"))
    if data is None:
        return recipe
    names = sorted(read_sets(data))
    return replace(recipe, text=replace(recipe.text, test=(names[0],), validation=(names[1],)))


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def mebibytes_of(call: Callable[[], object]) -> float:
    with LiveBytes() as live:
        call()
    return live.peak / 2**20


def measure(family: TextTasks, texts: list[Sentences], settings: Preparation) -> dict[str, tuple[float, float]]:
    """{system: (seconds a task, MiB at the peak of one)}."""
    encoder, data = family.downstream.encoder, family.training_data("train", range(settings.tasks))

    def loop(settings: Preparation, tasks: int) -> None:
        for x, y in zip(data.x[:tasks], data.y[:tasks], strict=True):
            plain(encoder, [texts[j] for j in x.tolist()], y, settings)

    def trunk() -> None:
        for x in data.x:
            encoder.read([texts[j] for j in x.unique().tolist()])

    loop_seconds = seconds_of(lambda: loop(settings, settings.tasks)) / settings.tasks
    trunk_seconds = seconds_of(trunk) / settings.tasks
    size = tile_size(family, "train", settings, "cpu")  # computed once for a whole store
    batched = seconds_of(lambda: trajectories(family, "train", range(settings.tasks), settings, at_once=size)) / settings.tasks
    short = replace(settings, epochs=settings.k)
    loop_memory = mebibytes_of(lambda: loop(short, 1))
    batched_memory = mebibytes_of(lambda: trajectories(family, "train", range(1), short, at_once=1))
    return {
        "peft, one task after another": (loop_seconds, loop_memory),
        "batched, with the trunk": (batched + trunk_seconds, batched_memory),
        "batched, states computed before": (batched, batched_memory),
    }


def ready(model: Path, shots: int, steps: int) -> dict[str, float]:
    """{system: seconds from labelled sentences to an adapter folder}; the model is loaded before."""
    generator = load(model)
    net = generator.network
    if not isinstance(net, LoraClassifier):
        raise SystemExit(f"{model} generates no adapters: give a generator that a text recipe has trained")
    labelled = phrase_sets(0)["opinion"]["train"]
    rows = [j for c in range(len(labelled.classes)) for j in [n for n, y in enumerate(labelled.labels) if y == c][:shots]]
    texts, y = [labelled.texts[j] for j in rows], torch.tensor([labelled.labels[j] for j in rows])

    def generated() -> None:
        weights = generator.generate((texts, y))
        save_adapter(net, weights, Path(folder) / "generated", classes=labelled.classes, examples=len(y))

    def tuned(epochs: int = steps) -> None:
        plain(net.encoder, texts, y, Optimisation(epochs=epochs, k=1, lr=0.001), Path(folder) / "tuned")

    with tempfile.TemporaryDirectory() as folder:
        generated()  # warm-up
        tuned(1)
        return {"generated": seconds_of(generated), f"peft, {steps} steps": seconds_of(tuned)}


def show_ready(model: Path, shots: int, steps: int) -> None:
    results = ready(model, shots, steps)
    table = Table(title=f"{provenance()['hardware']}, one thread; {shots} sentences a class to an adapter folder")
    for column in ("system", "s", "times as long as generation"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for name, seconds in results.items():
        table.add_row(name, f"{seconds:.2f}", f"{seconds / results['generated']:.1f}x")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.model is not None:
        show_ready(arguments.model, arguments.shots, arguments.steps)
        return
    recipe = read_recipe("text-lora")
    family_settings = with_adapters(recipe.family, arguments.data)
    settings = Preparation(tasks=arguments.tasks, epochs=arguments.epochs, batch=16, lr=0.003, chunk=arguments.tasks)
    with tempfile.TemporaryDirectory() as folder:
        family = make_family(family_settings, Path(folder), data=arguments.data, device="cpu", progress=lambda *_: None)
    assert isinstance(family, TextTasks)
    sets = phrase_sets(family_settings.seed) if arguments.data is None else read_sets(arguments.data)
    texts = [t for c in choose(sets, family_settings.text, family_settings.way, family_settings.seed) for t in c.texts]
    results = measure(family, texts, settings)
    size = f"{2 * family.examples} texts a task, {settings.epochs} epochs, batch {settings.batch}"
    table = Table(title=f"{provenance()['hardware']}, one thread; {size}, {family.downstream.space.parameters} weights")
    for column in ("system", "s a task", "peft / this", "MiB at the peak of a task"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for name, (seconds, peak) in results.items():
        table.add_row(name, f"{seconds:.2f}", f"{results['peft, one task after another'][0] / seconds:.2f}x", f"{peak:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
