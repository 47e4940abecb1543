"""Throughput, latency and memory of `mcdi serve` under load.

    python benchmarks/serve.py --model runs/glyphs/methods/mc-di-0

The server is a separate process on loopback; 1, 16 and 64 clients send it requests with `mcdi.serve.client`. A request is a
support set of five classes with five images each, and asks for a handle. The benchmark runs with batches, without batches, with
a queue that is too short for the clients, and then with --requests requests, reporting the memory after every 2,000 of them.
Without --model it trains a small generator on a backbone of random weights, whose times are valid and whose answers are not.
"""

import argparse
import io
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from mcdi.errors import McdiError
from mcdi.experiments.run import provenance
from mcdi.generator.api import Generator
from mcdi.methods import make_method
from mcdi.networks.backbones.embedder import Embedder, cl2n
from mcdi.networks.backbones.vision import Conv4
from mcdi.networks.linear_head import LinearHead
from mcdi.serve.client import Client
from mcdi.serve.limits import Refused
from mcdi.tasks.episodes import FewShot
from mcdi.trajectories.prepare import Preparation, trajectories

WAY, SHOTS, BLOCK = 5, 5, 2000


def small_model(folder: Path) -> Path:
    g = torch.Generator().manual_seed(0)
    features = {s: cl2n(torch.randn(20, 20, 64, generator=g), torch.zeros(64)) for s in ("train", "val", "test")}
    family = FewShot("drawings", LinearHead(64, WAY, Embedder(Conv4())), features, way=WAY, shots=(SHOTS,), queries=5)
    data = trajectories(family, "train", range(64), Preparation(tasks=64, epochs=12, k=3, lr=0.03))
    settings = {"training": {"iterations": 20, "learners": 2, "tasks": 8}, "sampling": {"steps": 2, "temperature": 0.0}}
    method = make_method("mc-di", settings).fit(family, data, seed=0)
    Generator("mc-di", method, family.downstream).save_pretrained(folder)
    return folder


@contextmanager
def server(model: Path, **options: object) -> Iterator[tuple[str, int]]:
    """The URL and process id of a server; it must end with exit code 0 after SIGTERM."""
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    command = [sys.executable, "-m", "mcdi", "serve", f"m={model}", "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    address = process.stderr.readline().split()[0]
    if not address.startswith("http"):
        raise McdiError(f"the server did not start: {address} {process.stderr.read()}")
    try:
        yield address, process.pid
    finally:
        process.terminate()
        code = process.wait()
        if code:
            raise McdiError(f"the server ended with code {code}: {process.stderr.read()}")


def memory(pid: int) -> float:
    """Resident memory of the process in MiB."""
    line = next(n for n in Path(f"/proc/{pid}/status").read_text().splitlines() if n.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def support(seed: int) -> tuple[list[bytes], list[int]]:
    rng, files = np.random.default_rng(seed), []
    for _ in range(WAY * SHOTS):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(out, "PNG")
        files.append(out.getvalue())
    return files, [i % WAY for i in range(WAY * SHOTS)]


def drive(address: str, clients: int, requests: int) -> tuple[list[float], Counter[str], float]:
    """Seconds of every request in ascending order, number of results by status, and total seconds."""
    latencies: list[float] = []
    results: Counter[str] = Counter()
    left, lock = iter(range(requests)), threading.Lock()

    def one() -> None:
        files, labels = support(random.Random(threading.get_ident()).randrange(10**6))
        with Client(address) as client:
            while True:
                with lock:
                    number = next(left, None)
                if number is None:
                    return
                start = time.perf_counter()
                try:
                    client.keep("m", {"images": files}, labels, seed=number)
                    result = "200"
                except Refused as refused:
                    result = str(refused.status)
                except McdiError:
                    result = "no answer"
                with lock:
                    latencies.append(time.perf_counter() - start)
                    results[result] += 1

    threads = [threading.Thread(target=one) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(latencies), results, time.perf_counter() - start


def row(name: str, address: str, clients: int, requests: int) -> tuple[list[str], float]:
    latencies, results, seconds = drive(address, clients, requests)
    rate = results["200"] / seconds
    median, slow = (1000 * latencies[min(len(latencies) - 1, int(q * len(latencies)))] for q in (0.5, 0.99))
    errors = sum(n for status, n in results.items() if status not in ("200", "429"))
    return [name, str(clients), f"{rate:.0f}", f"{median:.1f}", f"{slow:.1f}", str(results["429"]), str(errors)], rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of a generator that reads images")
    parser.add_argument("--requests", type=int, default=20_000, help="total, for the memory")
    parser.add_argument("--each", type=int, default=2000, help="per row of the table")
    parser.add_argument("--wait", type=float, default=2, help="milliseconds, see mcdi serve --help")
    arguments = parser.parse_args()
    table = Table(title=f"{provenance()['hardware']}, {WAY} classes, {SHOTS} images each")
    for column in ("server", "clients", "requests / s", "p50 ms", "p99 ms", "429", "errors"):
        table.add_column(column, justify="right")
    rates: dict[tuple[str, int], float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = arguments.model or small_model(Path(scratch) / "m")
        for name, options in {"batches": {"wait": arguments.wait}, "no batches": {"batch": 1, "wait": 0}}.items():
            with server(model, **options) as (address, _):
                drive(address, 4, 50)
                for clients in (1, 16, 64):
                    values, rates[name, clients] = row(name, address, clients, arguments.each)
                    table.add_row(*values)
        with server(model, queue=8) as (address, _):
            table.add_row(*row("queue of 8", address, 64, arguments.each)[0])
        with server(model, wait=arguments.wait) as (address, pid):
            levels = [("start", memory(pid))]
            for done in range(0, arguments.requests, BLOCK):
                drive(address, 16, min(BLOCK, arguments.requests - done))
                levels.append((f"{min(done + BLOCK, arguments.requests):,}", memory(pid)))
    Console().print(table)
    for clients in (1, 16, 64):
        print(f"batches / no batches, {clients} clients: {rates['batches', clients] / rates['no batches', clients]:.2f}")
    print("memory of the server, MiB: " + ", ".join(f"{name} {level:.0f}" for name, level in levels))


if __name__ == "__main__":
    main()
