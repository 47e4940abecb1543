"""Every task's trajectory equals that of a plain PyTorch loop, for every kind of network and option."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mcdi.errors import McdiError
from mcdi.networks import batched
from mcdi.networks.base import Network
from mcdi.networks.linear_head import LinearHead
from mcdi.networks.per_task import PerTask
from mcdi.trajectories.optimise import Optimisation, Tasks, dropout_keys, epoch_batches, optimise, view_generators
from mcdi.trajectories.prepare import LiveBytes, bytes_per_task
from mcdi.types import Examples

N, S = 3, 13  # 13 is no multiple of the 3 classes: a bias whose gradient is exactly 0 would be moved by rounding errors


class LowRank(nn.Module):
    """A frozen layer with a low-rank pair, as LoRA has it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.lora_a, self.lora_b = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.zeros(outputs, 2))

    def forward(self, x):
        return self.base(x) + x @ self.lora_a.T @ self.lora_b.T


class Hinge(LinearHead):
    def criterion(self, out, y):
        return F.multi_margin_loss(out.flatten(0, 1), y.flatten(), reduction="none").reshape(y.shape).mean(1)


def mlp(*extra):
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), *extra, nn.Linear(6, 3))


def conv():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),  # batch norm takes a bias away: its gradient is 0, and Adam would magnify the rounding
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


NETWORKS = {
    "head": lambda: LinearHead(4, 3),
    "another loss": lambda: Hinge(4, 3),
    "mlp": lambda: Network(mlp()),
    "dropout": lambda: Network(mlp(nn.Dropout(0.4), nn.Linear(6, 6), nn.Dropout(0.2))),
    "norms only": lambda: Network(
        nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)), select="^1", start="module"
    ),
    "low-rank pairs": lambda: Network(nn.Sequential(LowRank(4, 6), nn.Tanh(), LowRank(6, 3)), select="lora_", start="module"),
    "batch norm": lambda: Network(nn.Sequential(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))),
    "convolutions": lambda: Network(conv()),
    "frozen front": lambda: Network(
        nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3)), select="^4"
    ),
}
SETTINGS = {
    "weight decay": {"weight_decay": 0.1},
    "cosine": {"schedule": "cosine", "batch": 5, "weight_decay": 0.2},
    "sam": {"sam_rho": 0.1, "batch": 7},
    "noise": {"sam_rho": 0.5, "augment": 0.1},
}


def make(name):
    torch.manual_seed(0)
    net = NETWORKS[name]()
    g = torch.Generator().manual_seed(1)
    shape = (1, 8, 8) if name == "convolutions" else (4,)
    x, y = torch.randn(N, S, *shape, generator=g), torch.randint(0, 3, (N, S), generator=g)
    mask = torch.ones(N, 3 if net.space.unit == "row" else 1, dtype=torch.bool)
    return net, Tasks("train", [5, 9, 2], Examples(x, y), Examples(x[:, :4], y[:, :4]), mask)


def single(tasks, n):
    one = slice(n, n + 1)
    data, query = (Examples(e.x[one], e.y[one]) for e in (tasks.data, tasks.query))
    return Tasks(tasks.split, tasks.seeds[n : n + 1], data, query, tasks.mask[one])


def plain(net, theta0, tasks, settings, n):
    """One task with its own module and optimiser. -> (epochs, D) weights."""
    task, module = single(tasks, n), copy.deepcopy(net.module)
    start = {m: t[0] for m, t in net.space.unpack(theta0[None]).items()}
    module.load_state_dict(start, strict=False)
    with batched.training(module, list(net.space.spec)):
        params = dict(module.named_parameters())
        mine = [params[m].requires_grad_() for m in net.space.parameter_names]
        groups = [
            {"params": [p for p in mine if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in mine if p.ndim == 1], "weight_decay": 0.0},
        ]
        groups = [g for g in groups if g["params"]]
        optimiser = torch.optim.Adam(groups, lr=settings.lr)
        (generator,) = view_generators(task)
        steps = settings.epochs * len(list(epoch_batches(task, settings.batch, 1)))
        step, points = 0, []

        def backward(x, y, passed):
            optimiser.zero_grad()
            with PerTask(dropout_keys(task, passed)[0]):
                out = module(x)
            net.criterion(out[None], y[None]).sum().backward()

        for epoch in range(1, settings.epochs + 1):
            for batch in epoch_batches(task, settings.batch, epoch):
                x, y = batch.x[0], batch.y[0]
                if settings.augment:
                    x = x + settings.augment * torch.randn(x.shape, generator=generator)
                backward(x, y, 2 * step)
                if settings.sam_rho:
                    statistics = {m: b.clone() for m, b in module.named_buffers()}
                    norm = torch.cat([p.grad.flatten() for p in mine]).norm().clamp(min=1e-12)
                    moves = [settings.sam_rho * p.grad / norm for p in mine]
                    with torch.no_grad():
                        for p, e in zip(mine, moves, strict=True):
                            p += e
                    backward(x, y, 2 * step + 1)
                    with torch.no_grad():
                        for p, e in zip(mine, moves, strict=True):
                            p -= e
                        for m, b in module.named_buffers():
                            b.copy_(statistics[m])
                for group in optimiser.param_groups:
                    fraction = 0.5 + 0.5 * math.cos(math.pi * step / steps) if settings.schedule == "cosine" else 1.0
                    group["lr"] = settings.lr * fraction
                optimiser.step()
                step += 1
            state = {m: t.detach()[None].clone() for m, t in module.state_dict().items() if m in net.space.spec}
            points.append(net.space.pack(state)[0])
    return torch.stack(points)


@pytest.mark.parametrize("option", SETTINGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_trajectory_equals_that_of_a_plain_loop(name, option):
    net, tasks = make(name)
    settings = Optimisation(epochs=6, k=3, lr=0.02, **SETTINGS[option])
    theta0 = net.theta0(0, tasks.mask.shape[1])
    before = {m: t.clone() for m, t in net.module.state_dict().items()}
    recorded = optimise(net, theta0, tasks, settings)
    assert recorded.epochs.tolist() == [[2, 4, 6]] * N
    for n in range(N):
        points = plain(net, theta0, tasks, settings, n)
        torch.testing.assert_close(recorded.targets[n], points[[1, 3, 5]], atol=2e-4, rtol=1e-3)
        one = optimise(net, theta0, single(tasks, n), settings)  # a task does not depend on the others
        torch.testing.assert_close(one.targets[0], recorded.targets[n], atol=1e-5, rtol=1e-4)
    if settings.augment == 0:  # what is recorded is the loss of these weights in evaluation mode
        torch.testing.assert_close(recorded.losses[:, 1], net.loss(recorded.targets[:, 1], tasks.data, tasks.mask))
        torch.testing.assert_close(recorded.scores[:, 2], net.score(recorded.targets[:, 2], tasks.query, tasks.mask))
    after = net.module.state_dict()
    assert all(torch.equal(t, after[m]) for m, t in before.items()) and not any(m.training for m in net.module.modules())


def test_the_closed_form_of_a_head_is_its_gradient():
    net = LinearHead(5, 4)
    g = torch.Generator().manual_seed(0)
    data = Examples(torch.randn(3, 9, 5, generator=g), torch.randint(0, 3, (3, 9), generator=g))
    mask = torch.tensor([[True] * 4, [True, True, True, False], [True] * 4])
    state = {"weight": torch.randn(3, 4, 5, generator=g), "bias": torch.randn(3, 4, generator=g)}
    for name, closed in net.gradients(state, data, mask).items():
        torch.testing.assert_close(closed, Network.gradients(net, state, data, mask)[name])


class TestDropout:
    def test_masks_are_the_task_s_own(self):
        x, keys = torch.ones(4, 1000), torch.tensor([1, 2, 1, 3])
        module = nn.Sequential(nn.Dropout(0.25), nn.Linear(1000, 1000))
        with torch.no_grad():
            module[1].weight.copy_(torch.eye(1000)), module[1].bias.zero_()
        state = {"1.bias": torch.zeros(4, 1000)}
        with batched.training(module, ["1.bias"]):
            out = batched.apply(module, state, x[:, None], keys)[:, 0]
        assert torch.equal(out[0], out[2]) and not torch.equal(out[0], out[1])
        assert out.unique().tolist() == [0.0, pytest.approx(4 / 3)]
        assert 0.2 < float((out[3] == 0).float().mean()) < 0.3
        agree = float(((out[0] == 0) == (out[1] == 0)).float().mean())
        assert 0.55 < agree < 0.7  # independent: 0.75^2 + 0.25^2 = 0.625

    def test_two_layers_drop_differently_and_evaluation_drops_nothing(self):
        x, key = torch.ones(1, 1, 500), torch.tensor([7])
        module = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5))
        module.train()
        out = batched.apply(module, {"none": torch.zeros(1)}, x, key)
        assert 0.15 < float((out > 0).float().mean()) < 0.35
        assert torch.equal(batched.apply(module.eval(), {"none": torch.zeros(1)}, x, key), x)

    def test_other_random_layers_raise_an_error(self):
        class Noisy(nn.Module):
            def forward(self, x):
                return x + torch.randn_like(x)

        x, state = torch.ones(2, 3, 4), {"none": torch.zeros(2)}
        with pytest.raises(McdiError, match="only nn.Dropout may draw"):
            batched.apply(Noisy(), state, x)
        for layer in (nn.Dropout1d(0.3), nn.AlphaDropout(0.3)):
            with pytest.raises(McdiError, match="use nn.Dropout"):
                batched.apply(layer.train(), state, x, torch.tensor([1, 2]))

    def test_dropout_inside_attention_is_a_task_s_own(self):
        x, state = torch.randn(1, 3, 5, 4).expand(3, -1, -1, -1), {"none": torch.zeros(3)}
        attention, keys = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True).train(), torch.tensor([1, 2, 1])
        out = batched.apply(attention, state, x, keys)
        assert torch.equal(out[0], out[2]) and not torch.allclose(out[0], out[1], atol=0.01)
        alone = batched.apply(attention, {"none": state["none"][:1]}, x[:1], keys[1:2])
        assert torch.allclose(alone[0], out[1], atol=1e-5)

    def test_a_cumulative_batch_norm_raises_an_error(self):
        with pytest.raises(McdiError, match="momentum"), batched.training(nn.BatchNorm1d(3, momentum=None), []):
            pass


class TestBatches:
    def test_an_epoch_shows_every_example_once_in_an_order_of_the_task_s_own(self):
        _, tasks = make("head")
        parts = list(epoch_batches(tasks, 5, 1))
        assert [p.y.shape[1] for p in parts] == [5, 5, 3]
        whole = torch.cat([p.x for p in parts], 1)
        for n in range(N):
            assert sorted(map(tuple, whole[n].tolist())) == sorted(map(tuple, tasks.data.x[n].tolist()))
        again = torch.cat([p.x for p in epoch_batches(tasks, 5, 2)], 1)
        assert not torch.equal(whole, again)
        assert torch.equal(next(epoch_batches(single(tasks, 1), 5, 1)).x[0], parts[0].x[1])

    def test_views_of_a_function(self):
        net, tasks = make("head")
        settings = Optimisation(epochs=3, k=1, lr=0.02)
        theta0 = net.theta0(0, 3)

        def augment(x, generator):
            return x + 0.1 * torch.randn(x.shape, generator=generator)

        targets = optimise(net, theta0, tasks, settings, augment).targets
        torch.testing.assert_close(targets[1:2], optimise(net, theta0, single(tasks, 1), settings, augment).targets)
        assert not torch.allclose(targets, optimise(net, theta0, tasks, settings).targets)


def test_frozen_layers_are_computed_once(monkeypatch):
    net, tasks = make("frozen front")
    calls = []
    front = net.module[0]
    monkeypatch.setattr(front, "forward", lambda x, f=front.forward: (calls.append(len(x)), f(x))[1])
    optimise(net, net.theta0(0, 1), tasks, Optimisation(epochs=9, k=3, lr=0.02))
    assert sum(calls) <= N * (S + 4) + 3 * N * 4  # once for data and query, and once more a target for its score


def test_the_counted_bytes_are_the_tensors_that_live_at_once():
    with LiveBytes() as live:
        a = torch.zeros(1000)
        b = a + 1
        view = b[:10]
        del a
        c = b * 2
    assert live.peak == 8000 and live.now == 8000 and len(view) + len(c) == 1010
    assert bytes_per_task(lambda n: torch.ones(n, 1000).sin().sum()) == 8000


def test_invalid_settings_raise_errors():
    net, tasks = make("head")
    for wrong, message in (
        ({"k": 20, "epochs": 9}, "k = 20"),
        ({"lr": 0.0}, "must be positive"),
        ({"batch": 0}, "at least 1"),
    ):
        with pytest.raises(McdiError, match=message):
            Optimisation(**wrong)
    with pytest.raises(McdiError, match="not finite"):
        optimise(net, net.theta0(0, 3), tasks, Optimisation(epochs=3, lr=2e38))


def test_dropout_is_new_at_every_pass_and_a_task_s_own():
    _, tasks = make("head")
    keys = torch.stack([dropout_keys(tasks, passed) for passed in range(4)])
    assert len(keys.unique()) == keys.numel() and torch.equal(dropout_keys(single(tasks, 2), 3), keys[3, 2:])
