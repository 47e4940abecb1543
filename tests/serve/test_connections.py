"""Connections that send nothing, half a request, two requests in one or garbage, that do not read, or that come at the end."""

import json
import resource
import signal
import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest
import torch
from drawing import process, started
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import listening

from mcdi.errors import McdiError
from mcdi.serve.client import Client
from mcdi.serve.connections import most_connections

BODY = json.dumps({"model": "closed", "support": {"features": [[1.0] * 64, [0.0] * 64]}, "labels": [0, 1]}).encode()
HEAD = b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(
    BODY
)
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def short(folders):
    """A server that waits 0.4 seconds for a client, and has places for 24 connections and 4 requests."""
    with listening({"closed": folders["closed"]}, idle=0.4, timeout=0.4, connections=24, queue=4) as (address, _, server):
        yield address, server


def answer(address, data, seconds=10):
    """All that comes back until the server closes the connection, or b"..." at the end if it does not."""
    with socket.create_connection(address, timeout=seconds) as connection:
        return _read(connection, data)


def _read(connection, data=b""):
    got = b""
    try:
        connection.sendall(data)
        while part := connection.recv(65536):
            got += part
    except TimeoutError:
        got += b"..."
    except OSError:  # the server closed it before it had read everything
        pass
    return got


def healthy(address):
    return answer(address, HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")).startswith(b"HTTP/1.1 200")


@contextmanager
def many(address, data):
    """Connections that have sent these bytes each."""
    opened = []
    try:
        for sent in data:
            opened.append(socket.create_connection(address, timeout=10))
            with suppress(OSError):  # it may have been closed for a newer one
                opened[-1].sendall(sent)
        yield opened
    finally:
        for connection in opened:
            connection.close()


PIECES = st.one_of(
    st.just(b""),
    st.integers(1, len(HEAD) - 1).map(lambda n: HEAD[:n]),  # half a head
    st.integers(0, len(BODY) - 1).map(lambda n: HEAD + BODY[:n]),  # half a body
    st.integers(0, len(HEAD) - 1).map(lambda n: HEALTH + HEAD[:n]),  # after a whole request
    st.just(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"),  # a body that nobody reads
)


class TestWaiting:
    @settings(max_examples=8, deadline=None)
    @given(data=st.lists(PIECES, min_size=10, max_size=40))
    def test_every_unfinished_request_ends_and_stops_nobody(self, short, data):
        address, server = short
        with many(address, data) as opened:
            assert healthy(address) and len(server.server_state.connections) <= 24 + 1
            start = time.monotonic()
            for connection in opened:
                assert not _read(connection).endswith(b"...")
            assert time.monotonic() - start < 5  # all together: the head, or the body and the rest of a refused one
        assert healthy(address)

    def test_bytes_now_and_then_do_not_keep_it_open(self, short):
        address, _ = short
        with socket.create_connection(address, timeout=10) as connection:
            start, sent = time.monotonic(), HEAD[:-4] + b"\r\nX: " + b"x" * 10_000
            connection.sendall(HEALTH)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            with pytest.raises(OSError):
                for i in range(len(sent)):
                    connection.sendall(sent[i : i + 1])
                    time.sleep(0.02)
            assert time.monotonic() - start < 4

    def test_a_client_that_does_not_read(self, short):
        address, server = short
        before = set(server.server_state.connections)
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(0.2)
            connection.connect(address)
            with suppress(OSError):
                for _ in range(2000):
                    connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
            for _ in range(100):
                if not set(server.server_state.connections) - before:
                    break
                time.sleep(0.1)
            assert not set(server.server_state.connections) - before

    def test_clients_that_do_not_read_stop_nobody(self, folders):
        """Although they have all places, and much time."""
        asked = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with listening({"closed": folders["closed"]}, connections=4) as (address, _, server), many(address, [asked * 300] * 4):
            for _ in range(300):
                made = list(server.server_state.connections)
                if len(made) == 4 and all(connection.flow.write_paused for connection in made):
                    break
                time.sleep(0.1)
            assert all(connection.flow.write_paused for connection in made) and healthy(address)

    def test_a_client_that_reads_slowly_gets_all(self, folders):
        """Several times the idle time, but more than a KiB a second."""
        with listening({"closed": folders["closed"]}, idle=0.2) as (address, _, _), socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(5)
            connection.connect(address)
            asked, got = 150, b""
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * asked)
            start = time.monotonic()
            while part := connection.recv(20_000 if time.monotonic() - start < 1 else 10**6):
                got += part
                if time.monotonic() - start < 1:
                    time.sleep(0.02)
            assert got.count(b"HTTP/1.1 200 OK") == asked

    def test_file_descriptors(self, monkeypatch):
        for soft, asked, most in ((200, 512, 100), (1024, 512, 512), (1024, 20, 20), (1, 5, 1)):
            monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
            assert most_connections(asked) == most


class TestSlowBodies:
    def test_they_take_no_place_in_the_queue(self, short):
        address, _ = short
        with many(address, [HEAD + BODY[:5]] * 12):
            assert answer(address, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").startswith(
                b"HTTP/1.1 200"
            )
            assert answer(address, HEAD + BODY).startswith(b"HTTP/1.1 200")

    def test_the_oldest_makes_room_for_others(self, folders):
        """Bodies on their way have as many bytes as those of the queue, here one of 3000."""
        with listening({"closed": folders["closed"]}, queue=1, body=3000, timeout=20) as (address, _, _):
            head = HEAD.replace(b"%d" % len(BODY), b"2900")
            with many(address, [head + b" " * 2000, head + b" " * 500]) as (old, new):
                time.sleep(0.2)
                new.sendall(b" " * 600)
                assert old.recv(4096).startswith(b"HTTP/1.1 408")
                new.settimeout(0.5)
                with pytest.raises(TimeoutError):
                    new.recv(4096)


LENGTHS = st.sampled_from([b"Content-Length: 5", b"content-length: 0", b"CONTENT-LENGTH:%d" % len(BODY)])
CODINGS = st.sampled_from([b"Transfer-Encoding: chunked", b"transfer-encoding:chunked", b"TRANSFER-ENCODING: Chunked"])


class TestFraming:
    @settings(max_examples=40, deadline=None)
    @given(
        lines=st.tuples(LENGTHS, CODINGS).flatmap(st.permutations),
        path=st.sampled_from([b"/v1/generate", b"/healthz", b"/", b"/none"]),
        between=st.lists(st.sampled_from([b"X-A: b", b"Accept: */*"]), max_size=2),
    )
    def test_two_lengths_are_refused_and_nothing_after_them_is_read(self, short, lines, path, between):
        address, _ = short
        head = b"\r\n".join([b"POST %b HTTP/1.1" % path, b"Host: localhost", lines[0], *between, lines[1], b"", b""])
        got = answer(address, head + b"0\r\n\r\n" + HEALTH)
        assert got.startswith(b"HTTP/1.1 400") and got.count(b"HTTP/1.1 ") == 1 and b"two ways" in got

    def test_transfer_encoding_of_the_first_http(self, short):
        head = b"POST /v1/generate HTTP/1.0\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert answer(short[0], head + b"2\r\n{}\r\n0\r\n\r\n").startswith(b"HTTP/1.1 400")

    @settings(max_examples=60, deadline=None)
    @given(
        st.one_of(
            st.binary(max_size=200), st.binary(max_size=20).map(lambda b: HEAD.replace(b"\r\n\r\n", b"\r\n" + b + b"\r\n\r\n"))
        )
    )
    def test_garbage_gets_a_sentence_or_nothing(self, short, data):
        address, _ = short
        got = answer(address, data + b"\r\n\r\n")
        if got:
            head, _, body = got.partition(b"\r\n\r\n")
            assert head.split()[1][:1] == b"4" and list(json.loads(body)) == ["error"]
        assert healthy(address)


def test_the_end_under_load_loses_no_request(folders):
    """Every request is answered in full, or no connection can be made; on connections that stay open and on new ones."""
    answered, refused, lost = [], [], []

    def ask(url, keep_alive):
        client = Client(url, timeout=30)
        while not refused:
            try:
                answered.append(client.keep("closed", {"features": torch.eye(64)[:2]}, [0, 1]))
            except McdiError as error:
                (refused if "Connection refused" in str(error) else lost).append(str(error))
            if not keep_alive:
                client.close()

    with started([folders["closed"]]) as (url, process):
        threads = [threading.Thread(target=ask, args=(url, i % 2 == 0)) for i in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.7)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(30)
        assert process.wait(20) == 0 and process.stderr.read() == ""
    assert len(answered) > 20 and refused and lost == []


@pytest.mark.slow
def test_fewer_file_descriptors_than_idle_connections(folders):
    with process([folders["closed"]], limits={resource.RLIMIT_NOFILE: 200}) as url:
        address = ("127.0.0.1", int(url.rsplit(":")[-1]))
        with many(address, [b""] * 230):
            assert healthy(address)
            with Client(url) as client:
                assert client.keep("closed", {"features": torch.eye(64)[:2]}, [0, 1]).handle
