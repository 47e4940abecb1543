"""Distance of a chain to every local target under each noise rule, for an oracle that knows the targets.

    python benchmarks/noise_rules.py

Prints the root mean square distance to theta_{i d} at every e_i (cosine schedule, T = 20, k = 3; independent targets of
unit variance): the table in docs/method.md.
"""

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mcdi import core

RULES = {
    "segment, DDPM": {},
    "segment, DDIM": {"eta": 0.0},
    "segment, no noise": {"noise": 0.0},
    "global, no noise": {"chain": "global", "noise": 0.0},
    "global, DDPM": {"chain": "global"},
    "global, DDIM": {"chain": "global", "eta": 0.0},
}


def main() -> None:
    schedule = core.make_schedule("cosine", T=20, k=3)
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(3, 4096, 1, 8, generator=generator)
    start = torch.randn(4096, 1, 8, generator=generator)

    def oracle(x: Tensor, t: int) -> Tensor:
        """The ideal f of the chain whose segment t lies in: sqrt((1 - abar) / (1 - abar^i)) eps."""
        i = schedule.segment(t + 1)
        bar, local = schedule.factor(x, t), schedule.factor(x, t, i)
        return (1 - bar) ** 0.5 / (1 - local) * (x - local**0.5 * targets[i - 1])

    table = Table(title="distance to the local target (rms, seed 0)")
    for column in ("rule", *(f"e_{i} = {schedule.ends[i]}" for i in (1, 2, 3))):
        table.add_column(column, justify="right")
    for name, options in RULES.items():
        visited = dict(core.sample(oracle, start, schedule, generator=generator, **options))  # type: ignore[arg-type]
        distances = [float((visited[int(schedule.ends[i])] - targets[i - 1]).square().mean().sqrt()) for i in (1, 2, 3)]
        table.add_row(name, *(f"{d:.2g}" for d in distances))
    Console().print(table)


if __name__ == "__main__":
    main()
