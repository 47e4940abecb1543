"""LoRA pre-training: the pairs of theta_0, under which class means separate the classes of training tasks."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from mcdi.networks.backbones.language import POOLED
from mcdi.networks.backbones.vision import cl2n, prototypical_loss
from mcdi.networks.lora import LoraClassifier
from mcdi.tasks.text.text_tasks import TextTasks
from mcdi.utils.training import cosine_rate, restore_training, training_state

SHOTS, QUERIES = 5, 8  # at most, of a class in an episode
SHARPNESS = 10.0  # squared distances are this times 2 (1 - cosine)


def pretrain_lora(
    tasks: TextTasks,
    *,
    steps: int,
    seed: int,
    at_once: int = 4,
    lr: float = 2e-3,
    device: str = "cpu",
    start: tuple[int, dict[str, Tensor]] | None = None,
    checkpoint: Callable[[int, dict[str, Tensor]], object] | None = None,
    checkpoint_every: int = 20,
) -> Iterator[float]:
    """Train the pairs of the network in place with the ProtoNet loss of training tasks; yields every step's loss.

    What a head reads is centred and brought to one length first: the output of a pretrained pooler hardly differs from text to
    text. A resumed run ends with the same pairs.

    Args:
        tasks: with their network.
        at_once: tasks a step.
        start: (steps done, state) that `checkpoint` was given in a stopped run.
        checkpoint: called every `checkpoint_every` steps.
    """
    net, shots = tasks.downstream, min(SHOTS, *tasks.shots)
    tail = net.encoder.tail
    pairs = [p.requires_grad_() for p in net.pairs.values()]
    both = nn.ParameterList(pairs)
    optimiser = torch.optim.AdamW(pairs, lr=lr, weight_decay=0.01)
    if start is not None:
        restore_training(both.state_dict(), optimiser, start[1])
    try:
        for step in range(start[0] if start else 0, steps):
            optimiser.param_groups[0]["lr"] = cosine_rate(step, steps, lr, warmup=0.1, floor=1e-6)
            seeds = [seed * 1_000_003 + step * at_once + j for j in range(at_once)]
            batch = tasks.sample("train", seeds, draw=1 + step, shots=shots)
            x = torch.cat([part.x.unflatten(1, (tasks.way, -1))[:, :, :QUERIES] for part in (batch.support, batch.query)], 2)
            read = cl2n(tail.pooled(net.states(x.flatten().to(device)))[:, 0], net.centre[0].to(device))
            read = read * (SHARPNESS / net.features) ** 0.5
            loss = torch.stack([prototypical_loss(e, shots) for e in read.reshape(*x.shape, -1)]).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            yield float(loss.detach())
            if checkpoint is not None and (step + 1) % checkpoint_every == 0 and step + 1 < steps:
                checkpoint(step + 1, training_state(both.state_dict(), optimiser))
    finally:
        for p in pairs:
            p.requires_grad_(False)


@torch.no_grad()
def recompute_pooled(net: LoraClassifier, bank: Tensor, device: str = "cpu", batch: int = 128) -> Iterator[int]:
    """Recompute the pooled rows of a feature bank with the network's present pairs; yields how many texts are done."""
    for i in range(0, len(bank), batch):
        rows = torch.arange(i, min(i + batch, len(bank)))
        bank[rows, :POOLED, :-1] = net.encoder.tail.pooled(net.states(rows.to(device))).to(bank)
        yield len(rows) + i
