"""How does the service live as a process? One socket, uvicorn, and three signals."""

import logging
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from mcdi.errors import McdiError
from mcdi.serve.app import create_app
from mcdi.serve.limits import Keys, Limits
from mcdi.serve.models import Models, named
from mcdi.serve.service import Service


def serve(
    models: Sequence[str],
    *,
    host: str,
    port: int,
    device: str,
    bf16: bool,
    limits: Limits,
    keys: Path | None,
    ready: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT: what runs is finished, nothing new accepted. SIGHUP: look for new files of the models.

    ready is called with the address once the socket listens; port 0 takes a free one.
    """
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    known = Keys(keys)
    service = Service(Models(named(models), device, bf16=bf16), limits, known)
    listening = _socket(host, port)
    signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=service.reload, daemon=True).start())
    config = uvicorn.Config(
        create_app(service),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(2 * limits.timeout) + 1,
    )
    server = uvicorn.Server(config)

    def ended(number: int, frame: FrameType | None) -> None:
        """Before uvicorn has handlers of its own, it ends as soon as it starts. The signal that stopped it is raised once more
        when all is done: it was meant, and the exit code is 0."""
        server.should_exit = True

    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, ended)
    address = f"[{host}]" if ":" in host else host
    ready(f"http://{address}:{listening.getsockname()[1]}")
    try:
        server.run(sockets=[listening])
    finally:
        service.close()


def _socket(host: str, port: int) -> socket.socket:
    """Bound here, so that a port in use is a sentence. Raises McdiError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # The protocol is named: asyncio sends small parts at once (TCP_NODELAY) only where it is, else 40 ms too late.
        found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(1024)
    except OSError as error:
        raise McdiError(f"cannot listen at {host}, port {port} ({error.strerror or error}): choose another --port") from error
    return found
