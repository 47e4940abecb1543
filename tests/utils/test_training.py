"""The learning-rate schedule is the one of its formula; a training resumed from a file equals an uninterrupted one."""

import math

import pytest
import torch
from torch import nn

from mcdi.errors import McdiError
from mcdi.utils.files import read_tensors, write_tensors
from mcdi.utils.training import cosine_rate, restore_training, training_state


def test_the_cosine_falls_from_the_peak():
    assert [cosine_rate(s, 4, 2.0) for s in range(4)] == pytest.approx([2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5)])


def test_warmup_and_floor():
    plain, warm = ([cosine_rate(s, 40, 1.0, warmup=w, floor=f) for s in range(40)] for w, f in ((0.0, 0.0), (0.1, 0.5)))
    factors = [(w - 0.5) / p for p, w in zip(plain, warm, strict=True)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 37])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 1)).to(
        memory_format=torch.channels_last
    )


OPTIMISERS = {
    "fused AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
}


def train(net, optimiser, steps):
    for step in steps:
        x = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        net(x).square().mean().backward()
        optimiser.step()


@pytest.mark.parametrize("make", OPTIMISERS.values(), ids=OPTIMISERS)
def test_resumed_equals_uninterrupted(tmp_path, make):
    whole = network()
    optimiser = make(whole.parameters())
    train(whole, optimiser, range(3))
    write_tensors(tmp_path / "state.safetensors", training_state(whole.state_dict(), optimiser))
    train(whole, optimiser, range(3, 6))
    resumed = network()
    optimiser = make(resumed.parameters())
    state, _ = read_tensors(tmp_path / "state.safetensors")
    restore_training(resumed.state_dict(), optimiser, state)
    before = {n: t.clone() for n, t in state.items()}
    train(resumed, optimiser, range(3, 6))
    assert all(torch.equal(t, resumed.state_dict()[n]) for n, t in whole.state_dict().items())
    assert all(torch.equal(t, state[n]) for n, t in before.items())  # the state itself is not trained on


@pytest.mark.parametrize("other", [nn.Linear(2, 3), nn.Linear(3, 2, bias=False), nn.LayerNorm(2)])
def test_another_network_s_state_raises_an_error(other):
    net = nn.Linear(3, 2)
    state = training_state(net.state_dict(), torch.optim.Adam(net.parameters()))
    with pytest.raises(McdiError, match="file is a checkpoint of another network: delete it"):
        restore_training(other.state_dict(), torch.optim.Adam(other.parameters()), state, "file")
