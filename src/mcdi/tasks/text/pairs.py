"""LoRA pairs that all tasks share: the states of texts in front of them, and their training; both text sources use these."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mcdi.networks.backbones.language import Encoder
from mcdi.networks.backbones.vision import train_adamw
from mcdi.types import Sentences

SHARPNESS = 10.0  # squared distances are this times 2 (1 - cosine)
READ = 64  # texts at a time, between two reports of progress


def read_states(encoder: Encoder, texts: Sequence[Sentences], seen: Callable[[int], None]) -> Tensor:
    """What `Encoder.read` gives, in half precision; `seen` hears after every batch how many texts are done."""
    parts = []
    for i in range(0, len(texts), READ):
        parts.append(encoder.read(texts[i : i + READ]).half().cpu())
        seen(i + len(parts[-1]))
    return torch.cat(parts)


def train_pairs(encoder: Encoder, loss: Callable[[int], Tensor], steps: int, *, lr: float, **resume: Any) -> Iterator[float]:
    """Train the encoder's pairs in place; yields the loss of every step. resume: `start` and `checkpoint` of `train_adamw`."""
    pairs = nn.ParameterList(p.requires_grad_() for p in encoder.pairs.values())
    try:
        yield from train_adamw(pairs, loss, steps, lr=lr, weight_decay=0.01, **{"checkpoint_every": 20, **resume})
    finally:
        pairs.requires_grad_(False)


def scaled_pairs(encoder: Encoder, weight: float) -> dict[str, Tensor]:
    """The encoder's pairs in half precision, by name; they add `weight` times what they add now (2109.01903, eq. 1)."""
    return {n: (p.detach() * (weight if "lora_B" in n else 1)).half() for n, p in encoder.pairs.items()}
