"""`mcdi serve`: generators over HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from mcdi.cli.options import Device, console
from mcdi.errors import McdiError

LOCAL = ("127.0.0.1", "::1", "localhost")


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
    body: Annotated[float, typer.Option(min=0.01, help="MiB of a request.")] = 8,
    examples: Annotated[int, typer.Option(min=2, help="Of a support set, or of queries.")] = 1000,
    classes: Annotated[int, typer.Option(min=2, help="Of a task.")] = 100,
    handles: Annotated[int, typer.Option(min=1, help="Kept for each tenant; the least recently used go first.")] = 1000,
    handle_mib: Annotated[float, typer.Option("--handle-mib", min=0.01, help="MiB of them for each tenant.")] = 256,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", help="Lines tenant:key; requests then need 'Authorization: Bearer KEY'.")
    ] = None,
) -> None:
    """Generated weights over HTTP: POST /v1/generate, /v1/predict. SIGTERM ends it, all answered; SIGHUP loads new files.

    Example: [bold]mcdi serve runs/glyphs/methods/mc-di-0[/]
    """
    from mcdi.utils.workers import pick_device

    try:
        from mcdi.serve import run
        from mcdi.serve.limits import MIB, Limits
    except ImportError as error:
        raise McdiError(f"serving needs fastapi, uvicorn and prometheus-client ({error}): pip install 'mcdi[serve]'") from error
    limits = Limits(
        queue=queue,
        batch=batch,
        wait=wait / 1000,
        timeout=timeout,
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

    where = pick_device(device)
    run.serve(models, host=host, port=port, device=where, bf16=bf16, limits=limits, keys=api_key_file, ready=ready)
