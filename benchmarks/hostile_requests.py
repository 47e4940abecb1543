"""Hostile requests to `mcdi serve`: broken, enormous, half-sent and wrong ones, beside valid ones.

    python benchmarks/hostile_requests.py [--requests 10000] [--clients 8] [--seed 0]

The server is a separate process on loopback, with the ready-made model `symbols` and a model of vectors. Every client draws
requests of every kind below and sends them through sockets of its own. The table has a row a kind: how many were answered with
which status, how many were closed without an answer, and the slowest. The script ends with code 1 if there was a status 5xx
other than 503 and 504, a request without an end, a server that is not healthy afterwards, a line in its log, or memory that
grows from a quarter of the requests to the last by more than --growth MiB.
"""

import argparse
import base64
import gzip
import io
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from mcdi.errors import McdiError
from mcdi.experiments.run import provenance
from mcdi.generator.api import Generator
from mcdi.methods import make_method
from mcdi.networks.linear_head import LinearHead

ROUTES = ("/v1/generate", "/v1/predict", "/v1/chain", "/v1/landscape")
PATIENCE = 60.0  # seconds until a request counts as one without an end
IDLE = 2.0  # seconds that the server waits for a client
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, 1e308, float("nan"), float("inf"), "", "a", "1", "\0", "é" * 50),
    *([], [[]], [None], {}, {"a": 1}, [1] * 50, ["a"] * 3, [[1.0] * 6] * 2, "x" * 5000),
)
Bytes = Callable[[random.Random], bytes]


def picture(rng: random.Random, side: int = 28) -> str:
    pixels = np.frombuffer(rng.randbytes(side * side), np.uint8).reshape(side, side)
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    return base64.b64encode(file.getvalue()).decode()


def body(rng: random.Random) -> dict[str, Any]:
    """A valid task, of drawings or of vectors, with options."""
    ways = rng.randint(2, 5)
    labels: list[Any] = [i % ways for i in range(2 * ways)]
    if rng.random() < 0.5:
        inputs: dict[str, Any] = {"features": [[rng.gauss(0, 1) for _ in range(6)] for _ in labels]}
    else:
        inputs = {"images": [picture(rng) for _ in labels]}
    drawn = {"model": "symbols" if "images" in inputs else "vectors", "support": inputs, "labels": labels}
    return drawn | ({"seed": rng.randrange(2**40)} if rng.random() < 0.5 else {})


def request(route: str, content: bytes, *lines: str, method: str = "POST", host: str = "localhost") -> bytes:
    head = [f"{method} {route} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", "Connection: close", *lines]
    framed = any(line.startswith(("Content-Length", "Transfer-Encoding")) for line in lines)
    length = [] if framed else [f"Content-Length: {len(content)}"]
    return "\r\n".join([*head, *length, "", ""]).encode("latin-1") + content


def sent(rng: random.Random, content: Any, *lines: str) -> bytes:
    return request(rng.choice(ROUTES), content if isinstance(content, bytes) else json.dumps(content).encode(), *lines)


def valid(rng: random.Random) -> bytes:
    task = body(rng)
    if rng.random() < 0.5:
        return request("/v1/generate", json.dumps(task).encode())
    return request("/v1/predict", json.dumps(task | {"queries": task["support"]}).encode())


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes changed, left out, repeated or added at one to eight places."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(out) + 1)
        change = rng.randrange(4)
        if change == 0 and at < len(out):
            out[at] = rng.randrange(256)
        elif change == 1:
            del out[at : at + rng.randint(1, 20)]
        elif change == 2:
            out[at:at] = out[at : at + rng.randint(1, 20)]
        else:
            out[at:at] = rng.randbytes(rng.randint(1, 20))
    return bytes(out)


def wrong_value(rng: random.Random) -> bytes:
    """A value of one field, at any depth, replaced; or a field left out or added."""
    task = body(rng)
    at: Any = task
    key: Any = rng.choice(list(at))
    while isinstance(at[key], dict | list) and rng.random() < 0.6:
        at = at[key]
        key = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
    if isinstance(at, dict) and rng.random() < 0.3:
        at[rng.choice(["steps", "samples", "grid", "format", "temperature", "handle", "queries", "x"])] = rng.choice(VALUES)
    elif rng.random() < 0.1:
        del at[key]
    else:
        at[key] = rng.choice(VALUES)
    return sent(rng, task)


def wrong_image(rng: random.Random) -> bytes:
    task = body(rng) | {"model": "symbols"}
    good = base64.b64decode(picture(rng, rng.choice([1, 28, 300])))
    files = [damaged(rng, good), good[: rng.randrange(len(good))], rng.randbytes(rng.randrange(500)), b"<svg/>", b"GIF89a", b""]
    task["support"] = {"images": [base64.b64encode(rng.choice(files)).decode() for _ in task["labels"]]}
    return sent(rng, task)


def wrong_head(rng: random.Random) -> bytes:
    whole = sent(rng, body(rng))
    end = whole.index(b"\r\n\r\n") + 4
    return damaged(rng, whole[:end]) + whole[end:]


def two_lengths(rng: random.Random) -> bytes:
    content = json.dumps(body(rng)).encode()
    lengths = [f"Content-Length: {rng.choice([0, 5, len(content)])}", "Transfer-Encoding: chunked"]
    rng.shuffle(lengths)
    return request(rng.choice(ROUTES), b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content), *lengths)


def wrong_gzip(rng: random.Random) -> bytes:
    packed = gzip.compress(json.dumps(body(rng)).encode())
    bomb = gzip.compress(bytes(rng.choice([2**20, 2**25])), 1)
    return sent(rng, rng.choice([packed, damaged(rng, packed), packed[:-4], bomb]), "Content-Encoding: gzip")


def wrong_place(rng: random.Random) -> bytes:
    paths = (
        "/",
        "/v1",
        "/v1/models/",
        "/page/../../etc/passwd",
        "/page/%00",
        "//evil.example/",
        "/metrics",
        "*",
        "/" + "a" * 3000,
    )
    method = rng.choice(["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "POST", "PATCH", "BREW"])
    return request(
        rng.choice([*paths, *ROUTES]), b"", method=method, host=rng.choice(["localhost", "evil.example", "[::1]", ""])
    )


def half(rng: random.Random) -> bytes:
    whole = sent(rng, body(rng))
    return whole[: rng.randrange(len(whole))]


GONE, SILENCE = "half a request, then gone", "half a request, then silence"
KINDS: dict[str, Bytes] = {
    "valid": valid,
    "damaged JSON": lambda rng: sent(rng, damaged(rng, json.dumps(body(rng)).encode())),
    "wrong values": wrong_value,
    "random bytes as body": lambda rng: sent(rng, rng.randbytes(rng.randrange(2000))),
    "wrong images": wrong_image,
    "damaged head": wrong_head,
    "random bytes": lambda rng: rng.randbytes(rng.randrange(1, 500)) + b"\r\n\r\n",
    "two lengths": two_lengths,
    "gzip, damaged or a bomb": wrong_gzip,
    "wrong paths, methods, hosts": wrong_place,
    "too large": lambda rng: request(rng.choice(ROUTES), b" " * rng.choice([10, 2**20 + 1]), f"Content-Length: {10**9}"),
    GONE: half,
    SILENCE: half,
}
SILENT = 0.01  # of all requests: each takes seconds


def answer(address: tuple[str, int], kind: str, data: bytes) -> str:
    """The status; "closed" without one; "no end" after PATIENCE."""
    got = b""
    try:
        with socket.create_connection(address, timeout=PATIENCE) as connection:
            connection.sendall(data)
            if kind == GONE:
                return "gone"
            while part := connection.recv(65536):
                got += part
    except TimeoutError:
        return "no end"
    except OSError:  # closed before all was sent
        pass
    return got[9:12].decode("latin-1") if got.startswith(b"HTTP/1.1 ") else "closed"


@contextmanager
def server(folder: Path) -> Iterator[tuple[tuple[str, int], "subprocess.Popen[str]"]]:
    Generator("prototypes", make_method("prototypes", {}), LinearHead(6, 3)).save_pretrained(folder)
    options = {"--port": 0, "--idle": IDLE, "--timeout": 5, "--body": 1, "--handles": 100, "--handle-mib": 4}
    arguments = [str(part) for option in options.items() for part in option]
    command = [sys.executable, "-m", "mcdi", "serve", f"vectors={folder}", "symbols", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    first = process.stderr.readline()
    if " serves" not in first:
        raise McdiError(f"the server did not start: {first} {process.stderr.read()}")
    try:
        yield ("127.0.0.1", int(first.split()[0].rsplit(":")[-1])), process
    finally:
        process.kill()
        process.communicate()


def memory(process: "subprocess.Popen[str]") -> float:
    """Resident memory in MiB."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


class Results:
    """What came back, by kind."""

    def __init__(self) -> None:
        self.statuses: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.slowest: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def add(self, kind: str, status: str, seconds: float) -> None:
        with self._lock:
            self.statuses[kind][status] += 1
            self.slowest[kind] = max(self.slowest[kind], seconds)


def attack(address: tuple[str, int], results: Results, seeds: Iterator[str]) -> None:
    """Send a request for every seed; several clients share the seeds."""
    often = [kind for kind in KINDS if kind != SILENCE]
    for seed in seeds:
        rng = random.Random(seed)
        kind = SILENCE if rng.random() < SILENT else rng.choice(often)
        data, start = KINDS[kind](rng), time.perf_counter()
        results.add(kind, answer(address, kind, data), time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--growth", type=float, default=48.0, help="MiB")
    arguments = parser.parse_args()
    results, levels = Results(), []
    with tempfile.TemporaryDirectory() as scratch, server(Path(scratch) / "vectors") as (address, process):
        for part in range(8):
            seeds = iter([f"{arguments.seed} {part} {number}" for number in range(arguments.requests // 8)])
            clients = range(arguments.clients)
            threads = [threading.Thread(target=attack, args=(address, results, seeds)) for _ in clients]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            levels.append(memory(process))
        healthy = answer(address, "", request("/healthz", b"", method="GET"))
        process.terminate()
        code, log = process.wait(60), process.stderr.read() if process.stderr else ""
    show(results, arguments.requests)
    print("memory after every eighth, MiB: " + ", ".join(f"{level:.0f}" for level in levels))
    statuses = sum(results.statuses.values(), Counter[str]())
    bad = {s: n for s, n in statuses.items() if s == "no end" or (s.startswith("5") and s not in ("503", "504"))}
    grown = levels[-1] - levels[1]
    print(
        f"health {healthy}, exit code {code}, bad answers {bad or 'none'}, growth {grown:.1f} MiB, log {log.strip() or 'empty'}"
    )
    if bad or healthy != "200" or code or log or grown > arguments.growth:
        sys.exit(1)


def show(results: Results, requests: int) -> None:
    table = Table(title=f"{provenance()['hardware']}, {requests:,} requests")
    for column in ("kind", "requests", "answers", "slowest s"):
        table.add_column(column, justify="left" if column in ("kind", "answers") else "right")
    for kind in KINDS:
        counts = results.statuses[kind]
        shown = ", ".join(f"{status}: {count}" for status, count in sorted(counts.items()))
        table.add_row(kind, str(counts.total()), shown, f"{results.slowest[kind]:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
