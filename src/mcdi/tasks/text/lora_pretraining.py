"""LoRA pre-training: the pairs of theta_0, under which class means separate the classes of training tasks."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mcdi.networks.backbones.language import POOLED
from mcdi.networks.backbones.vision import cl2n, prototypical_loss, train_adamw
from mcdi.networks.lora import LoraClassifier
from mcdi.tasks.text.text_tasks import TextTasks

TASKS = 4  # a step
SHOTS, QUERIES = 5, 8  # at most, of a class in an episode
SHARPNESS = 10.0  # squared distances are this times 2 (1 - cosine)


def pretrain_lora(
    tasks: TextTasks, *, steps: int, seed: int, lr: float = 2e-3, device: str = "cpu", **resume: Any
) -> Iterator[float]:
    """Train the pairs of the network in place with the ProtoNet loss of training tasks; yields every step's loss.

    What a head reads is centred and brought to one length first: the output of a pretrained pooler hardly differs from text to
    text. resume: `start` and `checkpoint` of `train_adamw`.
    """
    net, shots = tasks.downstream, min(SHOTS, *tasks.shots)

    def episodes(step: int) -> Tensor:
        seeds = [seed * 1_000_003 + step * TASKS + j for j in range(TASKS)]
        batch = tasks.sample("train", seeds, draw=1 + step, shots=shots)
        x = torch.cat([part.x.unflatten(1, (tasks.way, -1))[:, :, :QUERIES] for part in (batch.support, batch.query)], 2)
        read = cl2n(net.encoder.tail.pooled(net.states(x.flatten().to(device)))[:, 0], net.centre[0].to(device))
        read = read * (SHARPNESS / net.features) ** 0.5
        return torch.stack([prototypical_loss(e, shots) for e in read.reshape(*x.shape, -1)]).mean()

    pairs = nn.ParameterList(p.requires_grad_() for p in net.pairs.values())
    try:
        yield from train_adamw(pairs, episodes, steps, lr=lr, weight_decay=0.01, **{"checkpoint_every": 20, **resume})
    finally:
        pairs.requires_grad_(False)


@torch.no_grad()
def recompute_pooled(net: LoraClassifier, bank: Tensor, device: str = "cpu", batch: int = 128) -> Iterator[int]:
    """Recompute the pooled rows of a feature bank with the network's present pairs; yields how many texts are done."""
    for i in range(0, len(bank), batch):
        rows = torch.arange(i, min(i + batch, len(bank)))
        bank[rows, :POOLED, :-1] = net.encoder.tail.pooled(net.states(rows.to(device))).to(bank)
        yield len(rows) + i
