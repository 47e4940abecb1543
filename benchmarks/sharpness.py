"""Effect of SAM in the weight preparation on the sharpness lambda of Theorem 2 and on held-out scores.

    python benchmarks/sharpness.py [--tasks 64] [--seeds 0 1 2]

Prints, for sine curves, linear heads and a pixel network on glyphs (no download), the results of preparation at several
radii rho of SAM: losses, largest eigenvalue and trace of the Hessian of the training loss at theta_M, loss and score on
held-out examples, and that loss with Gaussian noise on theta_M as large as a generator's error of mse
0.1. The last two columns are relative to rho = 0, task by task (geometric mean). One row of the heads is a control: no
SAM, but less weight decay. A task's figures are averaged over `--seeds`, which name the starts theta_0; intervals are
over tasks. These are the tables in docs/method.md.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mcdi.experiments.run import provenance
from mcdi.experiments.statistics import interval
from mcdi.networks.backbones.embedder import cl2n
from mcdi.networks.base import Network
from mcdi.networks.linear_head import LinearHead
from mcdi.networks.pixels import PixelNet
from mcdi.tasks.curves import Sines
from mcdi.tasks.episodes import FewShot
from mcdi.tasks.family import TaskFamily
from mcdi.tasks.images.glyphs import glyph_images
from mcdi.trajectories.prepare import Preparation, trajectories
from mcdi.trajectories.sharpness import hessian_spectrum
from mcdi.types import Examples

RADII = (0.0, 0.02, 0.05, 0.1, 0.2)
MSE, DRAWS = 0.1, 8  # of the noise on theta_M, in units of the variance of theta_M over tasks
COLUMNS = (
    "train loss",
    "lambda",
    "trace",
    "held-out loss",
    f"at mse {MSE}",
    "score (%)",
    "lambda/2, ratio",
    f"mse {MSE}, ratio",
)


@dataclass(frozen=True)
class Case:
    """A family, the preparation of every row, and held-out examples of the same tasks."""

    title: str
    family: TaskFamily
    rows: dict[str, Preparation]
    held_out: Examples


class Row(NamedTuple):
    """Results of preparation, task by task: each (N,)."""

    train_loss: Tensor
    largest: Tensor
    trace: Tensor
    test_loss: Tensor
    disturbed: Tensor
    score: Tensor  # in percent


def radii(settings: Preparation) -> dict[str, Preparation]:
    return {str(rho): replace(settings, sam_rho=rho) for rho in RADII}


def cases(seeds: Sequence[int]) -> list[Case]:
    """Epochs, rates and decay are those of the families' recipes."""
    sines = Sines()
    images = glyph_images(seed=0, limit=120)["train"].images
    pixels = F.avg_pool2d(images.float() / 255, 2).flatten(2)
    features = cl2n(pixels, pixels.mean((0, 1)))  # pixels in place of a backbone's features

    def glyphs(title: str, net: Network, examples: Tensor, rows: dict[str, Preparation]) -> Case:
        # Half of the drawings are held out from preparation.
        given, kept = ({"train": part} for part in examples.chunk(2, 1))
        family, other = (FewShot("glyphs", net, drawings, way=5, shots=[1], queries=5) for drawings in (given, kept))
        return Case(title, family, rows, other.training_data("train", seeds))

    heads = radii(Preparation(weight_decay=0.1)) | {"0, decay 0.06": Preparation(weight_decay=0.06)}
    return [
        Case("sines", sines, radii(Preparation(epochs=150, lr=0.03)), sines.sample("train", seeds).query),
        glyphs("glyphs, linear heads on pixels", LinearHead(196, 5), features, heads),
        glyphs("glyphs, pixel network", PixelNet(0, 5), pixels, radii(Preparation(lr=0.01))),
    ]


def measure(case: Case, settings: Preparation, seeds: Sequence[int]) -> Row:
    net = case.family.downstream
    prepared = trajectories(case.family, "train", seeds, settings)
    weights, mask, data = prepared.targets[:, -1], prepared.mask, case.family.training_data("train", seeds)
    spectrum = hessian_spectrum(lambda p: net.loss(p["weights"], data, mask), {"weights": weights})
    noise = torch.Generator().manual_seed(0)  # the same at every rho
    spread = MSE**0.5 * weights.std(0)
    with torch.no_grad():
        train, test = (net.loss(weights, examples, mask) for examples in (data, case.held_out))
        moved = [weights + spread * torch.randn(weights.shape, generator=noise) for _ in range(DRAWS)]
        disturbed = torch.stack([net.loss(w, case.held_out, mask) for w in moved]).mean(0)
        return Row(train, *spectrum, test, disturbed, 100 * net.score(weights, case.held_out, mask))


def shown(values: Tensor, digits: int = 3) -> str:
    figures = interval(values)
    return f"{figures['mean']:.{digits}g} ± {figures['ci95']:.2g}"


def relative(values: Tensor, reference: Tensor) -> str:
    """Geometric mean of the ratio, task by task, and its 95 % interval."""
    ratio = interval((values / reference).log())
    low, middle, high = (float(torch.tensor(ratio["mean"] + sign * ratio["ci95"]).exp()) for sign in (-1, 0, 1))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    if arguments.tasks < 2:
        parser.error("--tasks must be at least 2: intervals and noise are in units of the spread over tasks")
    torch.set_num_threads(1)
    tasks, made = range(arguments.tasks), provenance()
    for case in cases(tasks):
        title = f"{case.title}: {len(tasks)} tasks, theta_0 seeds {arguments.seeds}; {made['commit']}, {made['hardware']}"
        table = Table(title=title)
        for column in ("rho", *COLUMNS):
            table.add_column(column, justify="right")
        first = None
        for name, settings in case.rows.items():
            runs = [measure(case, replace(settings, theta0_seed=start), tasks) for start in arguments.seeds]
            row = Row(*(torch.stack(parts).mean(0) for parts in zip(*runs, strict=True)))
            first = row if first is None else first
            ratios = relative(row.largest, first.largest), relative(row.disturbed, first.disturbed)
            table.add_row(name, *(shown(values) for values in row[:-1]), shown(row.score, 4), *ratios)
        Console(width=180).print(table)


if __name__ == "__main__":
    main()
