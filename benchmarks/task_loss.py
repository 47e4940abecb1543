"""The task loss of generated whole networks and its gradient: all networks of a batch at once, and one by one.

    python benchmarks/task_loss.py [--tasks 32]

Conv-4 of 8 filters on 14 x 14 pixels, 25 images a task, one thread, in turn; medians.
"""

import argparse
import statistics
import time
from unittest.mock import patch

import torch

from mcdi.experiments.run import provenance
from mcdi.networks import grouped
from mcdi.networks.conv_net import ConvNet
from mcdi.types import Examples

WAY, EXAMPLES, PIXELS = 5, 25, 14


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    net, g = ConvNet(0, WAY), torch.Generator().manual_seed(0)
    x = torch.randn(arguments.tasks, EXAMPLES, PIXELS**2, generator=g)
    data = Examples(x, torch.randint(WAY, (arguments.tasks, EXAMPLES), generator=g))
    weights = net.theta0(0, net.space.units(WAY)).expand(arguments.tasks, -1, -1).clone().requires_grad_()
    mask = torch.ones(weights.shape[:2], dtype=torch.bool)
    times: dict[int, list[float]] = {grouped.GROUPED_UP_TO: [], 0: []}
    for _ in range(arguments.rounds + 1):
        for largest, own in times.items():
            with patch.object(grouped, "GROUPED_UP_TO", largest):
                start = time.perf_counter()
                net.loss(weights, data, mask).sum().backward()
                own.append(1000 * (time.perf_counter() - start))
    at_once, alone = (statistics.median(own[1:]) for own in times.values())
    shown = f"{at_once:.0f} ms as grouped convolutions, {alone:.0f} ms one by one, {alone / at_once:.1f} times"
    print(f"{arguments.tasks} networks: {shown} (commit {provenance()['commit']}, {provenance()['hardware']})")


if __name__ == "__main__":
    main()
