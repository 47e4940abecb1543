"""What is done with a trained generator: `mcdi generate`, `serve`, `export` to a file, `push` to the Hugging Face Hub."""

import logging
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mcdi.cli.options import Device, Model, console
from mcdi.errors import McdiError

OWN_CODE = "package:factory, a function that returns the module of your own that the generator is for."


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
    network: Annotated[
        Path | None,
        typer.Option(
            "--network", help="Also the whole network as a file that needs no mcdi: .onnx, .pt2, .safetensors, or .h (C99)."
        ),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="8-bit weights in a .h file.")] = False,
    query: Annotated[
        Path | None, typer.Option("--query", help="What to classify with the weights: a folder of images, or a file of text.")
    ] = None,
    label_names: Annotated[
        bool, typer.Option("--label-names", help="For text: every label's name is one more example of its class.")
    ] = False,
    form: Annotated[
        Literal["tsv", "jsonl"],
        typer.Option("--format", help="Of the lines for --query: tsv escapes tabs and line breaks; jsonl has probabilities."),
    ] = "tsv",
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
    import torch

    from mcdi.generator.adapters import save_adapter
    from mcdi.generator.answers import answer_lines
    from mcdi.generator.api import load
    from mcdi.generator.network_files import check_name, write_network
    from mcdi.networks.backbones.texts import check_same_kind, sentences_in
    from mcdi.networks.lora import LoraClassifier
    from mcdi.tasks.images.files import read_folder, read_images
    from mcdi.tasks.text.labelled import label_texts, read_texts, read_unlabelled
    from mcdi.utils.files import write_tensors
    from mcdi.utils.places import check_folder_writable, check_writable
    from mcdi.utils.workers import pick_device

    # What is wrong with the command is told before anything is written.
    if network is not None:
        check_name(network, int8=int8)
        check_writable(network)
    elif int8:
        raise McdiError("--int8 is for a C header: give --network NAME.h, or leave it out")
    if adapter is None:
        check_writable(out)
    else:
        check_folder_writable(adapter)
    generator = load(model, pick_device(device))
    made = generator.network
    if adapter is not None and not isinstance(made, LoraClassifier):
        raise McdiError(f"--adapter is for language models, and {model} generates a {made.kind}: use --out")
    if label_names and not made.reads_texts:
        raise McdiError(f"--label-names is for text, and {model} reads none: leave it out")
    x: Any
    if made.reads_texts:
        labelled = read_texts(support)
        names, of_names = list(labelled.classes), label_texts(labelled) if label_names else ()
        x, y = (*labelled.texts, *of_names), torch.tensor([*labelled.labels, *range(len(of_names))])
    else:
        x, y, names = read_folder(support, generator.image_shape)
    new: Any = None
    queries: Sequence[tuple[str, ...]] = ()
    if query is not None and made.reads_texts:
        new = queries = read_unlabelled(query)
        check_same_kind(sentences_in(x), sentences_in(queries))
    elif query is not None:
        new, files = read_images(query, generator.image_shape)
        queries = [(file,) for file in files]
    weights, confidence = generator.sample((x, y), steps=steps, temperature=temperature, samples=samples, stop=stop, seed=seed)
    if confidence < 1:
        blend = "are blended with those of ridge regression" if confidence else "are those of ridge regression"
        note = f"note: confidence {float(confidence):.0%}: these examples are unlike the training tasks, the weights {blend}"
        console.print(note, soft_wrap=True, markup=False)
    if adapter is not None and isinstance(made, LoraClassifier):
        save_adapter(made, weights, adapter, classes=names, examples=len(y))
        written = f"{adapter}: adapter"
    else:
        write_tensors(out, weights, {"classes": names})
        written = f"{out}: " + ", ".join(f"{n} {tuple(w.shape)}" for n, w in weights.items())
    console.print(f"{written} for {len(names)} classes: {', '.join(names)}", soft_wrap=True, markup=False)
    if network is not None:
        write_network(generator, weights, names, network, int8=int8)
        console.print(f"{network}: the network, {network.stat().st_size:,} bytes", soft_wrap=True, markup=False)
    if query is not None:
        for line in answer_lines(queries, generator.predict(weights, new), names, form):
            typer.echo(line)


def export(
    model: Model,
    out: Annotated[
        Path | None, typer.Argument(help="The file (default: sampler.onnx or sampler.pt2 in MODEL).", show_default=False)
    ] = None,
    kind: Annotated[str, typer.Option("--format", help="onnx, or torch: a torch.export program (.pt2).")] = "onnx",
    steps: Annotated[int | None, typer.Option(help="Denoising steps, 1..T (default: as trained).")] = None,
    temperature: Annotated[float | None, typer.Option(help="Scale of the noise; 0 = none (default: as trained).")] = None,
    module: Annotated[str | None, typer.Option(help=OWN_CODE)] = None,
) -> None:
    """One file from the features and labels of a support set to weights, checked to give what the generator gives.

    Example: [bold]mcdi export runs/glyphs/methods/mc-di-0 --format onnx[/]
    """
    from mcdi.generator import export as exporting
    from mcdi.generator.api import load
    from mcdi.generator.own_code import named_code
    from mcdi.generator.saving import MODEL, located

    folder = located(model)
    # A generator of the Hub lies in its cache, to which nothing is added.
    path = out or (folder if folder == model else Path()) / exporting.FILES.get(kind, kind)
    generator = load(folder, **named_code(module))
    difference = exporting.export(generator, path, kind, weights=folder / MODEL, steps=steps, temperature=temperature)
    typer.echo(f"{path}: differs from the generator's weights by {difference:.1e} of the largest at most")


def push(
    model: Model,
    name: Annotated[str, typer.Argument(help="Its name on the Hub: user/name.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Visible to you only (default: as your account has it).")] = False,
) -> None:
    """Put a trained generator on the Hugging Face Hub: config.json, model.safetensors and a card, or the README.md in MODEL.

    Example: [bold]mcdi push runs/glyphs/methods/mc-di-0 me/letters --private[/]
    """
    from mcdi.generator import saving

    url = saving.push(model, name, card=saving.model_card(name, model), private=private or None)
    typer.echo(f"{url}: load it with mcdi.load({name!r})")


def serve(
    models: Annotated[
        list[str], typer.Argument(help="Folders of trained generators, e.g. runs/glyphs/methods/mc-di-0, or NAME=FOLDER.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 = all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = a free one.")] = 8000,
    device: Device = "auto",
    bf16: Annotated[bool, typer.Option("--bf16", help="Backbones in bfloat16, for hardware that has it.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Largest batch of chains.")] = 32,
    wait: Annotated[float, typer.Option(min=0, help="Milliseconds to wait for others to batch; 0 = none.")] = 2,
    queue: Annotated[int, typer.Option(min=1, help="Requests at once; further ones are answered with 429.")] = 128,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds of a request.")] = 30,
    idle: Annotated[float, typer.Option(min=0.1, help="Seconds that a connection may wait for its client.")] = 30,
    connections: Annotated[
        int, typer.Option(min=1, help="Open at once, within half of the file descriptors; the longest idle closes first.")
    ] = 512,
    body: Annotated[float, typer.Option(min=0.01, help="MiB of a request.")] = 8,
    examples: Annotated[int, typer.Option(min=2, help="Of a support set, or of queries.")] = 1000,
    classes: Annotated[int, typer.Option(min=2, help="Of a task.")] = 100,
    handles: Annotated[int, typer.Option(min=1, help="Kept for each tenant; the least recently used go first.")] = 1000,
    handle_mib: Annotated[float, typer.Option("--handle-mib", min=0.01, help="MiB of them for each tenant.")] = 256,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", help="Lines tenant:key; requests then need 'Authorization: Bearer KEY'.")
    ] = None,
    root_path: Annotated[str, typer.Option(help="Path that a proxy puts in front, e.g. /mcdi.")] = "",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Another name in the header Host to answer without keys; * matches anything (repeatable)."),
    ] = None,
    cors: Annotated[
        list[str] | None, typer.Option(help="Origin of other pages that may call, https://example.org or * (repeatable).")
    ] = None,
    module: Annotated[
        list[str] | None, typer.Option(help=f"{OWN_CODE} With several models NAME=package:factory (repeatable).")
    ] = None,
) -> None:
    """Generated weights over HTTP: POST /v1/generate, /v1/predict. SIGTERM ends it, all answered; SIGHUP loads new files.

    Example: [bold]mcdi serve runs/glyphs/methods/mc-di-0[/]
    """
    early = threading.Event()
    signal.signal(signal.SIGHUP, lambda *_: early.set())  # by default it would end a server that is still loading

    from mcdi.utils.settings import check_number
    from mcdi.utils.workers import pick_device

    try:
        from mcdi.serve.deployment import LOCAL, Deployment
        from mcdi.serve.limits import MIB, Keys, Limits
        from mcdi.serve.models import Models, parse_code, parse_models
        from mcdi.serve.run import serve as run_server
        from mcdi.serve.service import Service
    except ImportError as error:
        raise McdiError(f"serving needs fastapi, uvicorn and prometheus-client ({error}): pip install 'mcdi[serve]'") from error
    check_number(float, wait=wait, timeout=timeout, body=body, handle_mib=handle_mib)
    limits = Limits(
        queue=queue,
        batch=batch,
        wait=wait / 1000,
        timeout=timeout,
        idle=idle,
        connections=connections,
        body=int(body * MIB),
        examples=examples,
        classes=classes,
        handles=handles,
        handle_bytes=int(handle_mib * MIB),
    )

    def ready(address: str) -> None:
        if host not in LOCAL and api_key_file is None:
            console.print("note: no --api-key-file is given: anybody who reaches this address can use it", soft_wrap=True)
        console.print(f"{address} serves; GET /v1/models lists the models", soft_wrap=True, markup=False, highlight=False)
        if early.is_set():
            signal.raise_signal(signal.SIGHUP)

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    keys, folders = Keys(api_key_file), parse_models(models)
    deployment = Deployment.of(root_path, cors or [], allow_host or [], host, keys=keys.needed)
    loaded = Models(folders, pick_device(device), bf16=bf16, code=parse_code(module or [], folders))
    run_server(Service(loaded, limits, keys), host, port, ready, deployment)
