"""`mcdi generate`: weights for a task of the user's own, from images of a few classes or from labelled sentences."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mcdi.cli.options import Device, Model, console
from mcdi.errors import McdiError

if TYPE_CHECKING:
    from torch import Tensor

    from mcdi.generator.api import Generator


def generate(
    model: Model,
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
    temperature: Annotated[float | None, typer.Option(help="Scale of the noise; 0 = a deterministic chain.")] = None,
    samples: Annotated[int | None, typer.Option(help="Chains to average.")] = None,
    stop: Annotated[int | None, typer.Option(help="End at local target theta_(i d), i in 1..k.")] = None,
    seed: Annotated[int, typer.Option(help="Decides the noise.")] = 0,
    device: Device = "auto",
) -> None:
    """Weights for a task of your own, from a few images or sentences a class.

    Example: [bold]mcdi generate runs/glyphs/methods/mc-di-0 --support my-symbols/ --query photos/[/]
    """
    from mcdi.generator.api import load
    from mcdi.networks.lora import LoraClassifier
    from mcdi.utils.files import write_tensors
    from mcdi.utils.workers import pick_device

    generator = load(model, pick_device(device))
    texts = isinstance(generator.network, LoraClassifier)
    if adapter is not None and not texts:
        raise McdiError(f"--adapter is for language models, and {model} generates a {generator.network.kind}: use --out")
    x, y, names = _support(support, generator, texts)
    weights, confidence = generator.sample((x, y), steps=steps, temperature=temperature, samples=samples, stop=stop, seed=seed)
    _print_confidence(float(confidence))
    if adapter is not None:
        from mcdi.generator.adapters import save_adapter

        assert isinstance(generator.network, LoraClassifier)
        save_adapter(generator.network, weights, adapter, classes=names, examples=len(y))
        written = f"{adapter}: adapter"
    else:
        write_tensors(out, weights, {"classes": names})
        written = f"{out}: " + ", ".join(f"{n} {tuple(w.shape)}" for n, w in weights.items())
    console.print(f"{written} for {len(names)} classes: {', '.join(names)}", soft_wrap=True, markup=False)
    if query is not None:
        new, labels = _queries(query, generator, texts)
        for label, choice in zip(labels, generator.predict(weights, new).argmax(-1).tolist(), strict=True):
            typer.echo(f"{label}\t{names[choice]}")


def _print_confidence(confidence: float) -> None:
    if confidence < 1:
        blend = "are blended with those" if confidence else "are those"
        note = f"note: confidence {confidence:.0%}: these examples are unlike the training tasks, the weights {blend} of ridge"
        console.print(f"{note} regression", soft_wrap=True, markup=False)


def _support(path: Path, generator: "Generator", texts: bool) -> "tuple[Any, Tensor, list[str]]":
    """Examples, their labels, and the names of the classes."""
    if not texts:
        from mcdi.tasks.images.class_images import read_folder

        return read_folder(path, generator.image_shape)
    import torch

    from mcdi.tasks.text.labelled import read_texts

    examples = read_texts(path)
    return examples.texts, torch.tensor(examples.labels), list(examples.classes)


def _queries(path: Path, generator: "Generator", texts: bool) -> tuple[Any, list[Any]]:
    """What is classified, and what each is called in the output."""
    if not texts:
        from mcdi.tasks.images.class_images import read_images

        return read_images(path, generator.image_shape)
    from mcdi.tasks.text.labelled import read_unlabelled

    sentences = read_unlabelled(path)
    return sentences, ["\t".join(s) for s in sentences]
