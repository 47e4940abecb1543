"""Speed of our diffusions of weights against the code that the authors of OCD and p-diff published.

    python benchmarks/official.py [--ocd CHECKOUT] [--pdiff CHECKOUT] [--rounds 5]

You make the checkouts of github.com/ShaharLutatiPersonal/OCD and github.com/NUS-HPC-AI-Lab/Neural-Network-Diffusion; mcdi
contains none of their code. Their networks are built from their files and settings, with one thread and random weights:

  OCD     the 84 x 120 matrix of its LeNet: a U-Net on a padded image, as published and with the fewest channels it allows
  p-diff  2,048 numbers of normalisation layers: an autoencoder and a 1-D network of its latents, as published

and ours for the same weights, as shipped and, for p-diff, with about as many parameters. Prints the milliseconds of one
training step (forward, backward) of the diffusion and of one generated set of weights, medians over the rounds, and the ratios.
"""

import argparse
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mcdi import core
from mcdi.experiments.run import provenance
from mcdi.methods.mcdi.denoisers import make_denoiser
from mcdi.methods.published.vae import Autoencoder

OCD_STEPS, PDIFF_STEPS = 10, 60  # of DDIM, theirs
PDIFF_BATCH = 50
MATRIX = (84, 120)
PUBLISHED_OCD = {"nch": 128, "ch_mult": [1, 1, 2, 2, 4, 4]}
SMALL_OCD = {"nch": 32, "ch_mult": [1, 1, 1, 1]}  # its normalisation has 32 groups


class Timed(NamedTuple):
    name: str
    parameters: int
    train: Callable[[], Any]
    generate: Callable[[], Any]


def median(call: Callable[[], Any], rounds: int) -> float:
    call()
    took = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        took.append(1000 * (time.perf_counter() - start))
    return statistics.median(took)


def stepping(loss: Callable[[], Tensor], *modules: nn.Module) -> Callable[[], None]:
    def step() -> None:
        for module in modules:
            module.zero_grad()
        loss().backward()

    return step


def ddim(f: Callable[[Tensor, Tensor], Tensor], x: Tensor, steps: int, floor: float) -> Tensor:
    with torch.no_grad():
        *_, (_, last) = core.sample(
            lambda x, t: f(x, torch.full((len(x),), t)), x, core.make_schedule("linear", 1000, 1, floor), steps=steps, eta=0.0
        )
    return last


def size(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def their_ocd(name: str, channels: dict[str, Any]) -> Timed:
    """A network of the checkout on sys.path; the steps of the chain are ours, their cost is that of the network."""
    sys.modules.setdefault("turtle", types.ModuleType("turtle")).forward = None  # type: ignore[attr-defined]  # imported, not used
    import diffusion_ocd  # type: ignore[import-not-found]

    diffusion = SimpleNamespace(**channels, out_ch=1, dropout=0.4, dim_in=84, dim_lat_out=120, dim_output=10)
    net = diffusion_ocd.Model(SimpleNamespace(diffusion=diffusion, model=SimpleNamespace(name="mnist")))
    read, out = (torch.randn(1, 84), torch.randn(1, 120)), torch.randn(1, 10)
    x, t = torch.randn(1, 128, 128), torch.tensor([500])

    def f(x: Tensor, t: Tensor) -> Tensor:
        return net(x, read, out, t)[:, 0]

    return Timed(name, size(net), stepping(lambda: f(x, t).square().mean(), net), lambda: ddim(f, x, OCD_STEPS, 6.7e-3))


def our_ocd() -> Timed:
    rows, columns = MATRIX
    net = make_denoiser("transformer", columns, 84 + 120 + 10, rows, width=256, depth=2, ordered=True)
    x, cond, mask = torch.randn(1, rows, columns), torch.randn(1, rows, 84 + 120 + 10), torch.ones(1, rows, dtype=torch.bool)

    def f(x: Tensor, t: Tensor) -> Tensor:
        return net(x, t / 1000, cond, mask)

    t = torch.tensor([500])
    train = stepping(lambda: f(x, t).square().mean(), net)
    return Timed("mcdi", size(net), train, lambda: ddim(f, x, OCD_STEPS, 6.7e-3))


def their_pdiff() -> Timed:
    from model.diffusion import DDIMSampler  # type: ignore[import-not-found]
    from model.pdiff import OneDimVAE, PDiff  # type: ignore[import-not-found]

    PDiff.config = {
        "layer_channels": [1, 64, 128, 256, 512, 256, 128, 64, 1],
        "model_dim": 128,
        "kernel_size": 7,
        "sample_mode": DDIMSampler,
        "beta": (0.0001, 0.02),
        "T": 1000,
    }
    net, vae = PDiff(2048), OneDimVAE([64, 128, 256, 256, 32], 128, 2048).eval()
    z = torch.randn(PDIFF_BATCH, 128)

    def generate() -> Tensor:
        net.eval()
        with torch.no_grad():
            made = vae.decode(net(torch.randn(1, 128), sample=True, steps=PDIFF_STEPS))
        net.train()
        return made

    return Timed("p-diff, as published", size(net, vae), stepping(lambda: net(z), net), generate)


def our_pdiff(name: str, width: int, depth: int, coder: int) -> Timed:
    net = make_denoiser("transformer", 128, 1, 1, width=width, depth=depth, ordered=True)
    vae = Autoencoder(2048, 0, 128, coder)
    z, t = torch.randn(PDIFF_BATCH, 1, 128), torch.randint(1000, (PDIFF_BATCH,))
    cond, mask = torch.zeros(PDIFF_BATCH, 1, 1), torch.ones(PDIFF_BATCH, 1, dtype=torch.bool)

    def generate() -> Tensor:
        with torch.no_grad():
            z = ddim(lambda x, t: net(x, t / 1000, cond[:1], mask[:1]), torch.randn(1, 1, 128), PDIFF_STEPS, 4e-5)
            return vae.decode(z, z[..., :0])

    return Timed(name, size(net, vae), stepping(lambda: net(z, t / 1000, cond, mask).square().mean(), net), generate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ocd", type=Path)
    parser.add_argument("--pdiff", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    groups = []
    for checkout in (arguments.ocd, arguments.pdiff):
        if checkout is not None:
            sys.path.insert(0, str(checkout.resolve()))
    if arguments.ocd is not None:
        theirs = (their_ocd("OCD, as published", PUBLISHED_OCD), their_ocd("OCD, fewest channels", SMALL_OCD))
        groups.append(("84 x 120 weights", [our_ocd(), *theirs]))
    if arguments.pdiff is not None:
        ours = (our_pdiff("mcdi", 256, 2, 256), our_pdiff("mcdi, as many parameters", 256, 3, 512))
        groups.append(("2,048 weights", [*ours, their_pdiff()]))
    if not groups:
        parser.error("nothing to compare with: give --ocd or --pdiff, a checkout of theirs")
    made = provenance()
    table = Table(title=f"{made['hardware']}, one thread, {made['date']}, commit {made['commit']}")
    for column in ("weights", "system", "parameters", "training step (ms)", "generate (ms)", "times ours"):
        table.add_column(column, justify="left" if column in ("weights", "system") else "right")
    for weights, systems in groups:
        first: tuple[float, float] | None = None
        for system in systems:
            took = median(system.train, arguments.rounds), median(system.generate, arguments.rounds)
            first = first or took
            ratio = " / ".join(f"{a / b:.3g}" for a, b in zip(took, first, strict=True))
            table.add_row(weights, system.name, f"{system.parameters:,}", f"{took[0]:.3g}", f"{took[1]:.3g}", ratio)
    Console().print(table)


if __name__ == "__main__":
    main()
