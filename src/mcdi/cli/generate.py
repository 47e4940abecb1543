"""What does a user type for weights of a task of their own? Images of a few classes, or labelled sentences."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.generator.api import Generator, load
from mcdi.networks.lora import LoraClassifier
from mcdi.utils.files import write_tensors
from mcdi.utils.workers import pick_device

console = Console(stderr=True)


def generate(
    model: Annotated[Path, typer.Argument(help="Folder of a trained generator, e.g. runs/glyphs/methods/mc-di-0.")],
    support: Annotated[
        Path,
        typer.Option("--support", help="Folder with one sub-folder of images a class; or labelled text: .tsv, .csv, .jsonl."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Where the weights go, as safetensors.")] = Path("weights.safetensors"),
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="For language models: a peft adapter folder, instead of --out.")
    ] = None,
    query: Annotated[
        Path | None, typer.Option("--query", help="What to classify with the weights: a folder of images, or a file of text.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps, 1..T.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Scale of the noise; 0 = a chain without noise, from the mean.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Chains to average.")] = None,
    stop: Annotated[int | None, typer.Option(help="End at local target theta_(i d), i in 1..k.")] = None,
    seed: Annotated[int, typer.Option(help="Decides the noise.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Weights for a task of your own, from a few images or sentences a class.

    Example: [bold]mcdi generate runs/glyphs/methods/mc-di-0 --support my-symbols/ --query photos/[/]
    """
    generator = load(model, pick_device(device))
    texts = isinstance(generator.network, LoraClassifier)
    if adapter is not None and not texts:
        raise McdiError(f"--adapter is for language models, and {model} generates a {generator.network.kind}: use --out")
    x, y, names = _texts(support) if texts else _images(support, generator)
    weights, confidence = generator.sample((x, y), steps=steps, temperature=temperature, samples=samples, stop=stop, seed=seed)
    _note_confidence(float(confidence))
    if adapter is not None:
        from mcdi.generator.adapters import save_adapter

        assert isinstance(generator.network, LoraClassifier)
        save_adapter(generator.network, weights, adapter, classes=names, examples=len(y))
        console.print(f"{adapter}: adapter for {len(names)} classes: {', '.join(names)}", soft_wrap=True, markup=False)
    else:
        write_tensors(out, weights, {"classes": names})
        shapes = ", ".join(f"{n} {tuple(w.shape)}" for n, w in weights.items())
        console.print(f"{out}: {shapes} for {len(names)} classes: {', '.join(names)}", soft_wrap=True, markup=False)
    if query is not None:
        new, labels = _text_queries(query) if texts else _image_queries(query, generator)
        for label, choice in zip(labels, generator.predict(weights, new).argmax(-1).tolist(), strict=True):
            typer.echo(f"{label}\t{names[choice]}")


def _note_confidence(confidence: float) -> None:
    if confidence < 1:
        note = (
            f"note: these examples are unlike the tasks of training: the generated head is used by {100 * confidence:.0f} %, "
            "ridge regression on the examples makes up the rest"
        )
        console.print(note, soft_wrap=True, markup=False)


def _images(folder: Path, generator: Generator) -> tuple[Tensor, Tensor, list[str]]:
    from mcdi.tasks.images.class_images import read_folder

    return read_folder(folder, generator.image_shape)


def _image_queries(folder: Path, generator: Generator) -> tuple[Tensor, list[Any]]:
    from mcdi.tasks.images.class_images import read_images

    return read_images(folder, generator.image_shape)


def _texts(path: Path) -> tuple[Any, Tensor, list[str]]:
    import torch

    from mcdi.tasks.text.labelled import read_texts

    found = read_texts(path)
    return found.texts, torch.tensor(found.labels), list(found.classes)


def _text_queries(path: Path) -> tuple[Any, list[str]]:
    from mcdi.tasks.text.labelled import read_unlabelled

    texts = read_unlabelled(path)
    return texts, ["\t".join(t) for t in texts]
