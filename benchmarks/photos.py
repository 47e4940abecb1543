"""Milliseconds for a head of the ready-made generator `photos`, beside scikit-learn's logistic regression on the same features.

    python benchmarks/photos.py

Features of the support set are given: Gaussian classes of the length that features have there, five examples each. One thread;
medians. Also the milliseconds of the backbone for one image.
"""

import argparse

import torch
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor

import mcdi
from mcdi.experiments.evaluate import milliseconds
from mcdi.experiments.run import provenance

SHOTS = 5


def gaussian_classes(way: int, features: int) -> tuple[Tensor, Tensor]:
    """Support sets (S, F), (S,): means and noise have the same variance."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(way, 1, features, generator=g) + torch.randn(way, SHOTS, features, generator=g)
    x = torch.nn.functional.normalize(x.flatten(0, 1), dim=-1) * features**0.5
    return x, torch.arange(way).repeat_interleave(SHOTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--classes", type=int, nargs="+", default=[5, 100])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator = mcdi.load("photos")
    width = generator.network.input_size
    table = Table(title=f"{provenance()['hardware']}, one thread, commit {provenance()['commit']}")
    for column in ("classes", "photos (ms)", "logistic regression (ms)", "ratio"):
        table.add_column(column, justify="right")
    for way in arguments.classes:
        x, y = gaussian_classes(way, width)
        own = milliseconds(lambda x=x, y=y: generator.generate((x, y)), arguments.rounds)
        plain = x.numpy(), y.numpy()
        with threadpool_limits(1):
            other = milliseconds(lambda plain=plain: LogisticRegression(max_iter=1000).fit(*plain), arguments.rounds)
        table.add_row(str(way), f"{own:.1f}", f"{other:.1f}", f"{other / own:.1f}x")
    image = torch.zeros(1, *generator.image_shape, dtype=torch.uint8)
    backbone = milliseconds(lambda: generator.embed(image), arguments.rounds)
    Console().print(table, f"the backbone: {backbone:.0f} ms an image")


if __name__ == "__main__":
    main()
