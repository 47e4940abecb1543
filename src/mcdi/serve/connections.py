"""Connections to the server: uvicorn's HTTP/1.1, with limits for clients that send nothing, or do not read their answers."""

import asyncio
import fcntl
import json
import resource
import socket
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

SLOWEST = 1024  # bytes of an answer that a client must read in a second
WAITING = 1024  # connections that the operating system holds until they are accepted
GRACE = 0.25  # seconds for requests that are on their way when the server ends
NO_HTTP = "this is no valid HTTP/1.1 request, or its head is longer than 16 KiB: send HTTP/1.1"


def most_connections(asked: int) -> int:
    """As many as asked for, but at most half of the file descriptors that this process may open: models need some, too."""
    return max(1, min(asked, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))


class Connection(H11Protocol):
    """A connection that is closed when its client takes longer than `idle` seconds to send the head of a request, from the
    start or from the last answer, or stops reading. Beyond `most` connections the one closes that has waited longest for its
    client, so that new ones are always served. Bodies have a time of their own, see `bodies.py`."""

    idle, most = 30.0, 512

    @classmethod
    def limited(cls, idle: float, most: int) -> type["Connection"]:
        return type("Limited", (cls,), {"idle": idle, "most": most})

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0  # when the client's turn began
        self._unread = 0  # bytes of answers that it had not read then
        self._ending = False

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _awaits_client(self) -> bool:
        return not self._answering or self.flow.write_paused or self.conn.their_state is h11.SEND_BODY

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()
        if len(self.connections) > self.most:
            ours = [c for c in self.connections if isinstance(c, Connection) and not c.transport.is_closing()]
            if len(ours) > self.most:
                waiting = [c for c in ours if c._awaits_client]
                min(waiting, key=lambda c: c._since, default=self).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # uvicorn answers 400 to a broken request although another answer has begun
            self.transport.abort()

    def handle_events(self) -> None:
        super().handle_events()
        if self._answering:
            self.cycle.keep_alive &= not self._ending
            if self._timer is not None and not self.flow.write_paused:  # a head has arrived
                self._since = self.loop.time()
                self._stop_timer()

    def on_response_complete(self) -> None:
        self._start_timer()  # first: uvicorn goes on with the next request, if that has arrived
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._answering:
            self._stop_timer()

    def send_400_response(self, msg: str) -> None:
        body = json.dumps({"error": NO_HTTP}).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        for event in (h11.Response(status_code=400, headers=headers, reason=b"Bad Request"), h11.Data(data=body)):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def shutdown(self) -> None:
        """At the end of the server: a request that is on its way is still answered."""
        self._ending = True
        if self._answering:
            self.cycle.keep_alive = False
        elif self._bytes_unread():
            self.transport.close()  # once the client has read its answer
        else:
            self._start_timer(GRACE)

    def _start_timer(self, seconds: float | None = None) -> None:
        self._stop_timer()
        self._since, self._unread = self.loop.time(), self._bytes_unread()
        self._timer = self.loop.call_later(self.idle if seconds is None else seconds, self._time_is_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _bytes_unread(self) -> int:
        """Of the answers: in this process and, where it says so, in the operating system."""
        left, connection = self.transport.get_write_buffer_size(), self.transport.get_extra_info("socket")
        with suppress(OSError):
            left += int.from_bytes(fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        return left

    def _time_is_up(self) -> None:
        read = self._unread - self._bytes_unread()
        if self._unread and read >= min(self._unread, SLOWEST * self.idle):
            self._start_timer()  # it reads a long answer
        else:
            self.transport.abort()


class Server(uvicorn.Server):
    """Uvicorn's server. At its end it answers all connections that have been made, also those it had not accepted yet."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:  # how many wait there is another number than how many are accepted at once
            listener.listen(WAITING)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        made = [connection for listener in sockets or [] for connection in _waiting(listener)]
        for server in self.servers:
            server.close()  # at once: whoever comes from now on is told so
        for connection in made:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        options: Any = {"config": self.config, "server_state": self.server_state, "app_state": self.lifespan.state}
        return self.config.http_protocol_class(**options)


def _waiting(listener: socket.socket) -> Iterator[socket.socket]:
    with suppress(OSError):  # there are no more
        while True:
            connection = listener.accept()[0]
            connection.setblocking(False)
            yield connection
