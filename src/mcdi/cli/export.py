"""`mcdi export` and `mcdi push`: a trained generator as one file that runs without mcdi, or on the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated

import typer

from mcdi.cli.options import Model


def export(
    model: Model,
    out: Annotated[
        Path | None, typer.Argument(help="The file (default: sampler.onnx or sampler.pt2 in MODEL).", show_default=False)
    ] = None,
    kind: Annotated[str, typer.Option("--format", help="onnx, or torch: a torch.export program (.pt2).")] = "onnx",
    steps: Annotated[int | None, typer.Option(help="Denoising steps, 1..T (default: as trained).")] = None,
    temperature: Annotated[float | None, typer.Option(help="Scale of the noise; 0 = none (default: as trained).")] = None,
) -> None:
    """One file from the features and labels of a support set to weights, checked to give what the generator gives.

    Example: [bold]mcdi export runs/glyphs/methods/mc-di-0 --format onnx[/]
    """
    from mcdi.generator import export as exporting
    from mcdi.generator import hub
    from mcdi.generator.api import load
    from mcdi.generator.saving import MODEL

    folder = hub.located(model)
    # A generator of the Hub lies in its cache, to which nothing is added.
    path = out or (folder if folder == model else Path()) / exporting.FILES.get(kind, kind)
    difference = exporting.export(load(folder), path, kind, weights=folder / MODEL, steps=steps, temperature=temperature)
    typer.echo(f"{path}: differs from the generator's weights by {difference:.1e} of the largest at most")


def push(
    model: Model,
    name: Annotated[str, typer.Argument(help="Its name on the Hub: user/name.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Visible to you only (default: as your account has it).")] = False,
) -> None:
    """Put a trained generator on the Hugging Face Hub: config.json, model.safetensors and a card, or the README.md in MODEL.

    Example: [bold]mcdi push runs/glyphs/methods/mc-di-0 me/letters --private[/]
    """
    from mcdi.generator import hub
    from mcdi.generator.card import model_card

    url = hub.push(model, name, card=model_card(name, model), private=private or None)
    typer.echo(f"{url}: load it with mcdi.load({name!r})")
