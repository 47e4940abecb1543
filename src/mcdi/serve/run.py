"""The server process: socket, uvicorn and signals."""

import math
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from mcdi.errors import McdiError
from mcdi.serve.app import create_app
from mcdi.serve.classifier_file import TIMEOUT
from mcdi.serve.connections import WAITING, Connection, Server, most_connections
from mcdi.serve.deployment import Deployment
from mcdi.serve.service import Service


def serve(
    service: Service,
    host: str,
    port: int,
    ready: Callable[[str], None],
    deployment: Deployment = Deployment(),  # noqa: B008 - it is frozen
) -> None:
    """Serve until SIGTERM or SIGINT, then finish running requests. SIGHUP reads API keys and changed models anew.

    Args:
        port: 0 takes a free port.
        ready: called with the URL once the socket listens.
    """
    listening = _socket(host, port)
    signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=service.reload, daemon=True).start())
    server = make_server(service, deployment)

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


def make_server(service: Service, deployment: Deployment) -> Server:
    """Uvicorn's server with the limits of a service."""
    limits, most = service.limits, most_connections(service.limits.connections)
    config = uvicorn.Config(
        create_app(service, deployment),
        http=Connection.limited(limits.idle, most),
        ws="none",
        log_level="error",  # a warning for every broken request would fill the log
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing depends on them
        backlog=max(8, most // 8),  # connections that are accepted before one can be closed
        timeout_keep_alive=math.ceil(limits.idle) + 1,  # `Connection` is earlier
        timeout_graceful_shutdown=math.ceil(3 * limits.timeout + TIMEOUT),
    )
    return Server(config)


def _socket(host: str, port: int) -> socket.socket:
    """A listening socket. Raises McdiError for an address or port that cannot be used."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # asyncio sets TCP_NODELAY only if the protocol is named; without it every answer takes 40 ms longer.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(WAITING)
    except OSError as error:
        raise McdiError(f"cannot listen at {host}, port {port} ({error.strerror or error}): choose another --port") from error
    return listener
