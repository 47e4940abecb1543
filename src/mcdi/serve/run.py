"""The server process: socket, uvicorn and signals."""

import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from mcdi.errors import McdiError
from mcdi.serve.app import create_app
from mcdi.serve.service import Service


def serve(service: Service, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then finish running requests. SIGHUP reloads models whose files have changed.

    Args:
        port: 0 takes a free port.
        ready: called with the URL once the socket listens.
    """
    listening = _socket(host, port)
    signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=service.reload, daemon=True).start())
    config = uvicorn.Config(
        create_app(service),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(2 * service.limits.timeout) + 1,
    )
    server = uvicorn.Server(config)

    def stop(number: int, frame: FrameType | None) -> None:
        """Handles a signal before uvicorn installs its handlers, and the one that uvicorn raises again at its end."""
        server.should_exit = True
        stopped.add(number)

    stopped, interrupt = set[int](), signal.getsignal(signal.SIGINT)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    address = f"[{host}]" if ":" in host else host
    ready(f"http://{address}:{listening.getsockname()[1]}")
    try:
        server.run(sockets=[listening])
    finally:
        service.close()
    if signal.SIGINT in stopped:  # a command that Ctrl-C has ended says so
        signal.signal(signal.SIGINT, interrupt)
        signal.raise_signal(signal.SIGINT)


def _socket(host: str, port: int) -> socket.socket:
    """A listening socket. Raises McdiError for an address or port that cannot be used."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # asyncio sets TCP_NODELAY only if the protocol is named; without it every answer takes 40 ms longer.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        raise McdiError(f"cannot listen at {host}, port {port} ({error.strerror or error}): choose another --port") from error
    return listener
