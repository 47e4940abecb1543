"""Every task's trajectory is the one that a plain PyTorch loop makes of it, whatever the network and the options."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mcdi.errors import McdiError
from mcdi.networks import batched
from mcdi.networks.base import Network
from mcdi.networks.linear_head import LinearHead
from mcdi.trajectories.batches import Tasks, dropout_keys, epoch_batches, generators, global_random, hold_out
from mcdi.trajectories.memory import LiveBytes, bytes_per_task
from mcdi.trajectories.optimise import Optimisation, Point, _choose, _stopping, optimise
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
    "norms alone": lambda: Network(
        nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)), select="^1", start="module"
    ),
    "low-rank pairs": lambda: Network(nn.Sequential(LowRank(4, 6), nn.Tanh(), LowRank(6, 3)), select="lora_", start="module"),
    "batch norm": lambda: Network(nn.Sequential(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))),
    "convolutions": lambda: Network(conv()),
    "frozen front": lambda: Network(
        nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3)), select="^4"
    ),
}
HOWS = {
    "adam": {"weight_decay": 0.1},
    "adamw": {"optimiser": "adamw", "weight_decay": 0.2, "schedule": "cosine", "warmup": 2},
    "sgd": {"optimiser": "sgd", "momentum": 0.8, "schedule": "linear", "batch": 5},
    "sam": {"sam_rho": 0.1, "batch": 7},
    "adaptive sam": {"sam_rho": 0.5, "sam_adaptive": True, "augment": 0.1},
}


def make(name):
    torch.manual_seed(0)
    net = NETWORKS[name]()
    g = torch.Generator().manual_seed(1)
    shape = (1, 8, 8) if name == "convolutions" else (4,)
    x, y = torch.randn(N, S, *shape, generator=g), torch.randint(0, 3, (N, S), generator=g)
    mask = torch.ones(N, 3 if net.space.unit == "row" else 1, dtype=torch.bool)
    return net, Tasks("train", [5, 9, 2], Examples(x, y), Examples(x[:, :4], y[:, :4]), mask)


def alone(tasks, n):
    one = slice(n, n + 1)
    data, query = (Examples(e.x[one], e.y[one]) for e in (tasks.data, tasks.query))
    return Tasks(tasks.split, tasks.seeds[n : n + 1], data, query, tasks.mask[one])


def plain(net, theta0, tasks, how, n):
    """One task the ordinary way: a module of its own, an optimiser of its own, backward and step. -> (epochs, D) weights."""
    task, module = alone(tasks, n), copy.deepcopy(net.module)
    start = {m: t[0] for m, t in net.space.unpack(theta0[None]).items()}
    module.load_state_dict(start, strict=False)
    with batched.training(module, list(net.space.spec)):
        params = dict(module.named_parameters())
        mine = [params[m].requires_grad_() for m in net.space.parameter_names]
        groups = [
            {"params": [p for p in mine if p.ndim > 1], "weight_decay": how.weight_decay},
            {"params": [p for p in mine if p.ndim == 1], "weight_decay": 0.0},
        ]
        groups = [g for g in groups if g["params"]]
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        optimiser = (
            torch.optim.SGD(groups, lr=how.lr, momentum=how.momentum)
            if how.optimiser == "sgd"
            else kinds[how.optimiser](groups, lr=how.lr)
        )
        (generator,) = generators(task)
        steps = how.epochs * len(list(epoch_batches(task, how.batch, 1)))
        warm = how.warmup * steps // how.epochs
        shape = {
            "constant": lambda s: 1.0,
            "linear": lambda s: 1 - s / steps,
            "cosine": lambda s: 0.5 + 0.5 * torch.cos(torch.tensor(torch.pi * s / steps)).item(),
        }[how.schedule]
        step, way = 0, []

        def backward(x, y, passed):
            optimiser.zero_grad()
            with batched.SeededDropout(dropout_keys(task, passed)[0]):
                out = module(x)
            net.criterion(out[None], y[None]).sum().backward()

        for epoch in range(1, how.epochs + 1):
            for batch in epoch_batches(task, how.batch, epoch):
                x, y = batch.x[0], batch.y[0]
                if how.augment:
                    x = x + how.augment * torch.randn(x.shape, generator=generator)
                backward(x, y, 2 * step)
                if how.sam_rho:
                    statistics = {m: b.clone() for m, b in module.named_buffers()}
                    scale = [p.detach().abs() if how.sam_adaptive else torch.ones_like(p) for p in mine]
                    norm = torch.cat([(t * p.grad).flatten() for t, p in zip(scale, mine, strict=True)]).norm().clamp(min=1e-12)
                    moves = [how.sam_rho * t**2 * p.grad / norm for t, p in zip(scale, mine, strict=True)]
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
                    group["lr"] = how.lr * shape(step) * (min((step + 1) / warm, 1) if warm else 1)
                optimiser.step()
                step += 1
            state = {m: t.detach()[None].clone() for m, t in module.state_dict().items() if m in net.space.spec}
            way.append(net.space.pack(state)[0])
    return torch.stack(way)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_trajectory_is_what_a_plain_loop_makes(name, how):
    net, tasks = make(name)
    how = Optimisation(epochs=6, k=3, lr=0.02, **HOWS[how])
    theta0 = net.theta0(0, tasks.mask.shape[1])
    before = {m: t.clone() for m, t in net.module.state_dict().items()}
    found = optimise(net, theta0, tasks, how)
    assert found.epochs.tolist() == [[2, 4, 6]] * N
    for n in range(N):
        way = plain(net, theta0, tasks, how, n)
        torch.testing.assert_close(found.targets[n], way[[1, 3, 5]], atol=2e-4, rtol=1e-3)
        one = optimise(net, theta0, alone(tasks, n), how)  # a task does not feel its neighbours
        torch.testing.assert_close(one.targets[0], found.targets[n], atol=1e-5, rtol=1e-4)
    if how.augment == 0:  # what is recorded is the loss of these weights in evaluation mode
        torch.testing.assert_close(found.losses[:, 1], net.loss(found.targets[:, 1], tasks.data, tasks.mask))
        torch.testing.assert_close(found.scores[:, 2], net.score(found.targets[:, 2], tasks.query, tasks.mask))
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

    def test_other_randomness_is_refused(self):
        class Noisy(nn.Module):
            def forward(self, x):
                return x + torch.randn_like(x)

        x, state = torch.ones(2, 3, 4), {"none": torch.zeros(2)}
        with pytest.raises(McdiError, match="only nn.Dropout may draw"):
            batched.apply(Noisy(), state, x)
        for layer in (nn.Dropout1d(0.3), nn.AlphaDropout(0.3)):
            with pytest.raises(McdiError, match="use nn.Dropout"):
                batched.apply(layer.train(), state, x, torch.tensor([1, 2]))
        attention = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True).train()
        for some in (slice(0, 2), slice(0, 1)):
            with pytest.raises(McdiError, match="only nn.Dropout may draw"):
                batched.apply(attention, {"none": state["none"][some]}, x[some], torch.tensor([1, 2])[some])

    def test_a_cumulative_batch_norm_is_refused(self):
        with pytest.raises(McdiError, match="momentum"), batched.training(nn.BatchNorm1d(3, momentum=None), []):
            pass


class TestTargets:
    def test_even_in_loss(self):
        net, tasks = make("mlp")
        how = Optimisation(epochs=40, k=4, lr=0.05, spacing="loss")
        found = optimise(net, net.theta0(0, 1), tasks, how)
        dense = optimise(net, net.theta0(0, 1), tasks, Optimisation(epochs=40, k=40, lr=0.05))
        first = net.loss(net.theta0(0, 1).expand(N, -1, -1), tasks.data, tasks.mask)
        for n in range(N):
            losses = [float(first[n]), *dense.losses[n].tolist()]
            for i in range(1, 4):
                level = losses[0] - i / 4 * (losses[0] - min(losses))
                assert found.epochs[n, i - 1] == next(e for e, v in enumerate(losses) if v <= level + 1e-7)
            assert found.epochs[n, 3] == 40
            torch.testing.assert_close(found.targets[n], dense.targets[n, found.epochs[n] - 1])

    def test_early_stop_ends_at_the_best_held_out_epoch_of_each_task(self):
        net, tasks = make("mlp")
        rule = torch.randn(N, 4, 3, generator=torch.Generator().manual_seed(2))  # something that can be learnt
        tasks = tasks._replace(data=tasks.data._replace(y=(tasks.data.x @ rule).argmax(-1)))
        how = Optimisation(epochs=60, k=3, lr=0.1, holdout=0.25, patience=4)
        found = optimise(net, net.theta0(0, 1), tasks, how)
        kept, held = hold_out(tasks, 0.25)
        dense = optimise(net, net.theta0(0, 1), kept, Optimisation(epochs=60, k=60, lr=0.1))
        losses = torch.stack([net.loss(w, held, tasks.mask) for w in dense.targets.unbind(1)], 1)
        assert len({*found.epochs[:, -1].tolist()}) > 1  # else this tests too little
        for n in range(N):
            best, since, end = float("inf"), 0, 0
            for epoch, value in enumerate(losses[n].tolist(), 1):
                best, since, end = (value, 0, epoch) if value < best else (best, since + 1, end)
                if since == 4:
                    break
            assert int(found.epochs[n, -1]) == max(end, 3)
            assert found.epochs[n].tolist() == [round(i * max(end, 3) / 3) for i in (1, 2, 3)]
            torch.testing.assert_close(found.targets[n], dense.targets[n, found.epochs[n] - 1])
            one = optimise(net, net.theta0(0, 1), alone(tasks, n), how)
            assert torch.equal(one.epochs[0], found.epochs[n])

    def test_held_out_examples_are_never_trained_on(self):
        _, tasks = make("head")
        kept, held = hold_out(tasks, 0.25)
        assert held.x.shape[1] == 3 and kept.data.x.shape[1] == 10
        for n in range(N):
            rows = lambda e: {tuple(x.tolist()) for x in e.x[n]}
            assert rows(held) | rows(kept.data) == rows(tasks.data) and not rows(held) & rows(kept.data)

    @settings(deadline=None)
    @given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=12), st.integers(1, 4))
    def test_stopping_is_the_rule_in_plain_python(self, losses, patience):
        where, stopped = _stopping(torch.tensor([losses]), patience)
        best, ended = 0, False
        for r, value in enumerate(losses):
            if value < losses[best]:
                best = r
            elif r - best >= patience:
                ended = True
                break
        assert int(where) == best and bool(stopped) == ended


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
        assert torch.equal(next(epoch_batches(alone(tasks, 1), 5, 1)).x[0], parts[0].x[1])

    def test_transforms_that_draw_from_the_global_generator(self):
        net, tasks = make("head")
        how = Optimisation(epochs=3, k=1, lr=0.02)
        augment = global_random(lambda x: x + 0.1 * torch.randn_like(x))
        torch.manual_seed(1)
        expected = torch.rand(1)
        torch.manual_seed(1)
        a = optimise(net, net.theta0(0, 3), tasks, how, augment).targets
        assert torch.equal(torch.rand(1), expected)  # the caller's random state is untouched
        assert torch.equal(a, optimise(net, net.theta0(0, 3), tasks, how, augment).targets)
        torch.testing.assert_close(a[1:2], optimise(net, net.theta0(0, 3), alone(tasks, 1), how, augment).targets)
        assert not torch.allclose(a, optimise(net, net.theta0(0, 3), tasks, how).targets)


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


def test_what_cannot_be_is_refused():
    net, tasks = make("head")
    for wrong, message in (
        ({"k": 20, "epochs": 9}, "k = 20"),
        ({"lr": 0.0}, "must be positive"),
        ({"batch": 0}, "at least 1"),
        ({"holdout": 1.0}, r"in \[0, 1\)"),
        ({"patience": 3}, "set holdout"),
        ({"optimiser": "lion"}, "choose adam, adamw, sgd"),
        ({"schedule": "steps"}, "choose constant, linear, cosine"),
        ({"spacing": "time"}, "choose steps, loss"),
    ):
        with pytest.raises(McdiError, match=message):
            Optimisation(**wrong)
    for wrong, message in (
        ({"lr": 2e38}, "not finite"),
        ({"holdout": 0.02}, "leaves nothing"),
    ):
        with pytest.raises(McdiError, match=message):
            optimise(net, net.theta0(0, 3), tasks, Optimisation(**{"epochs": 3, **wrong}))


def test_dropout_is_new_at_every_pass_and_a_task_s_own():
    _, tasks = make("head")
    keys = torch.stack([dropout_keys(tasks, passed) for passed in range(4)])
    assert len(keys.unique()) == keys.numel() and torch.equal(dropout_keys(alone(tasks, 2), 3), keys[3, 2:])


def test_even_in_loss_counts_down_to_the_lowest_loss():
    losses = [4.0, 3.0, 1.0, 2.0, 2.9]  # down to 1: half of the way is 2.5, which is first met at epoch 2
    points = [Point(n, torch.zeros(1, 1, 1), torch.tensor([v]), torch.tensor([v])) for n, v in enumerate(losses)]
    assert _choose(points, Optimisation(epochs=4, k=2, spacing="loss")).tolist() == [[2, 4]]
