"""Modules of the user's own: whatever torch can run with other weights works, and the rest is refused before any training."""

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import mcdi
from mcdi import OwnTasks
from mcdi.errors import McdiError
from mcdi.generator.api import Generator
from mcdi.methods import make_method
from mcdi.networks import batched, grouped
from mcdi.networks.own import OwnNetwork
from mcdi.trajectories.prepare import Preparation
from mcdi.types import Examples
from mcdi.utils.files import tensor_bytes, tensors_of

X = torch.randn(8, 12, 6, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12).expand(8, -1) % 2


def describe(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([x.flatten(2).mean((1, 2)), y.float().mean(1)], -1)


class Wrapped(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer


class Attention(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x, need_weights=False)[0]


class Recurrent(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Decoder(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x)


class Scaled(nn.Module):
    """With buffers, one of which no file holds, and dropout as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((4,), 2.0))
        self.register_buffer("passing", torch.full((4,), 0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x * self.scale * self.passing, 0.1, self.training)


class Turned(nn.Module):
    """With control flow that depends on data, and a parameter that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.idle = nn.Linear(4, 4), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear(x)
        return -out if out.sum() > 0 else out


def tied() -> nn.Module:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second)


def shared() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer)


def doubled(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda module, inputs, out: 2 * out)
    return module


def running(norm: nn.Module) -> nn.Module:
    """With statistics that are not those at the start."""
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return norm


def images() -> nn.Module:
    layers = nn.Conv2d(1, 2, 3, padding=1), running(nn.BatchNorm2d(2)), nn.Conv2d(2, 1, 1)
    return nn.Sequential(nn.Unflatten(1, (1, 6)), *layers, nn.Flatten(1, 2))


SMALL = {"d_model": 4, "nhead": 2, "dim_feedforward": 8, "batch_first": True}
LAYERS = {
    "linear": lambda: nn.Linear(4, 4),
    "batch norm": lambda: running(nn.BatchNorm1d(6)),
    "batch norm without parameters": lambda: running(nn.BatchNorm1d(6, affine=False)),
    "instance norm": lambda: running(nn.InstanceNorm1d(6, affine=True, track_running_stats=True)),
    "layer norm": lambda: nn.LayerNorm(4),
    "rms norm": lambda: nn.RMSNorm(4),
    "group norm": lambda: nn.GroupNorm(2, 6),
    "convolution": lambda: nn.Conv1d(6, 6, 3, padding=1, padding_mode="circular"),
    "images": lambda: images(),
    "prelu": nn.PReLU,
    "gelu": nn.GELU,
    "dropout": lambda: nn.Dropout(0.3),
    "attention": lambda: Attention(nn.MultiheadAttention(4, 2, batch_first=True, dropout=0.1)),
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**SMALL), 1),
    "encoder, norm first": lambda: nn.TransformerEncoderLayer(**SMALL, norm_first=True, activation="gelu"),
    "decoder": lambda: Decoder(nn.TransformerDecoderLayer(**SMALL)),
    "lstm": lambda: Recurrent(nn.LSTM(4, 4, batch_first=True)),
    "gru": lambda: Recurrent(nn.GRU(4, 2, batch_first=True, bidirectional=True)),
    "tied": tied,
    "one layer twice": shared,
    "hook": lambda: doubled(nn.Linear(4, 4)),
    "frozen": lambda: nn.Linear(4, 4).requires_grad_(False),
    "buffers": Scaled,
    "control flow": Turned,
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
    "double": lambda: nn.Linear(4, 4).double(),
}  # fmt: skip


def made(names: list[str], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [LAYERS[name]() for name in names]
        module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(24, 2))
    return module.double() if "double" in names else module


def check(module: nn.Module, net: OwnNetwork, weights: dict[str, Tensor], want: Tensor) -> None:
    """A copy of the user's module that takes the weights answers as the network does."""
    own = copy.deepcopy(module)
    Generator("adam", make_method("adam", {}), net).load_into(own, weights)
    got = own.eval()(X[0].to(next(own.parameters()).dtype)).float()
    assert torch.allclose(got, want, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(names=st.lists(st.sampled_from(list(LAYERS)), min_size=1, max_size=3), seed=st.integers(0, 3))
@example(names=["linear", "frozen"], seed=0)
@example(names=["one layer twice", "tied"], seed=0)
def test_any_layers(names, seed):
    module = made(names, seed)
    before = copy.deepcopy(module.state_dict())
    tasks = OwnTasks(module, X, Y, shots=3, describe=describe)
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
    net = tasks.downstream
    frozen = {n for n, p in module.named_parameters() if not p.requires_grad}
    assert not frozen & set(net.space.spec) and set(net.space.parameter_names) | frozen == {
        n for n, _ in module.named_parameters()
    }
    drawn = net.theta0(0, 1) + 0.1 * torch.randn(3, 1, net.space.D, generator=torch.Generator().manual_seed(seed))
    out, state = net.predict(drawn, X[:1].expand(3, -1, -1, -1)), net.space.unpack(drawn)
    for i in range(3):
        check(module, net, {n: t[i] for n, t in state.items()}, out[i])
    data, mask = tasks.training_data("train", [0, 1]), torch.ones(2, 1, dtype=torch.bool)
    with batched.training(net.module, list(net.space.spec)):
        keys = torch.arange(2) if batched.draws(net.module) else None
        both, second = ({n: t.clone() for n, t in net.space.unpack(some).items()} for some in (drawn[:2], drawn[1:2]))
        together = net.gradients(both, data, mask, keys)
        alone = net.gradients(second, Examples(data.x[1:], data.y[1:]), mask[1:], None if keys is None else keys[1:])
    assert all(torch.allclose(together[n][1], g[0], atol=1e-3, rtol=1e-3) for n, g in alone.items())
    again = OwnNetwork.from_config(
        {n: v for n, v in net.config().items() if n != "kind"}, {"module": made(names, seed + 1), "describe": describe}
    )
    again.load_state(tensors_of(tensor_bytes(net.state()), "it")[0])
    assert torch.allclose(again.predict(drawn, X[:1].expand(3, -1, -1, -1)), out, atol=1e-5)


@pytest.mark.parametrize("names", [["batch norm", "encoder", "tied"], ["frozen", "lstm", "buffers"]])
def test_from_training_to_a_file_and_back(names, tmp_path):
    module = made(names)
    tasks = OwnTasks(module, X, Y, shots=3, describe=describe)
    quick = {"training": {"iterations": 2}, "options": {"width": 8, "depth": 1}}
    generator = mcdi.fit(tasks, preparation=Preparation(epochs=3), settings=quick)
    weights = generator.generate((X[0], Y[0]))
    check(module, generator.network, weights, generator.predict(weights, X[0]))
    generator.save_pretrained(tmp_path)
    again = mcdi.load(tmp_path, module=made(names, seed=1), describe=describe)
    assert torch.allclose(again.predict(again.generate((X[0], Y[0])), X[0]), generator.predict(weights, X[0]), atol=1e-5)
    with pytest.raises(McdiError, match="parameters missing"):
        generator.load_into(module, {})
    with pytest.raises(McdiError, match="do not fit this module"):
        generator.load_into(nn.Linear(2, 2), weights)


class Answers(nn.Module):
    def __init__(self, answer) -> None:
        super().__init__()
        self.linear, self.answer = nn.Linear(24, 2), answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.linear, x)


def lazy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(2))


class Stale(nn.Module):
    """Reads weights that it has kept a reference to."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 2)
        self.kept = [self.linear.weight]

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.kept[0].T + self.linear.bias


def patched(module: nn.Module) -> nn.Module:
    plain = module[0].forward
    module[0].forward = lambda x: 2 * plain(x)
    return module


def filled(module: nn.Module) -> nn.Module:
    nn.init.constant_(module[0].weight, float("nan"))
    return module


@pytest.mark.parametrize("where", ["", "2"])
def test_a_hook_where_convolutions_would_be_grouped(where):
    module = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (1, 6, 4)), nn.Conv2d(1, 1, 3, padding=1), *made([]))
    assert grouped.runs(module)
    doubled(module.get_submodule(where))
    net = OwnTasks(module, X, Y, shots=3, describe=describe).downstream
    drawn = net.theta0(0, 1) + 0.1
    check(module, net, {n: t[0] for n, t in net.space.unpack(drawn[None]).items()}, net.predict(drawn[None], X[:1])[0])


@settings(max_examples=10, deadline=None)
@given(names=st.lists(st.sampled_from(list(LAYERS)), min_size=1, max_size=3))
def test_a_module_is_as_it_was_after_every_call(names):
    module = OwnTasks(made(names), X, Y, shots=3, describe=describe).downstream.module
    held = {n: (type(t), t.clone()) for n, t in module.state_dict(keep_vars=True).items()}
    state = {n: torch.stack([p + 1, p + 2]) for n, p in module.named_parameters()}
    batched.apply(module, state, X[:2])
    for n, t in module.state_dict(keep_vars=True).items():
        assert type(t) is held[n][0] and torch.equal(t, held[n][1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.jit.script(made(["linear"])), "a scripted module"),
        (lambda: torch.jit.trace(made(["linear"]), X[0]), "a scripted module"),
        (lambda: nn.DataParallel(made(["linear"])), "give its .module"),
        (lazy, "call it once on an example"),
        (lambda: made(["linear"]).to("meta"), "meta device"),
        (lambda: made(["linear"]).requires_grad_(False), "all parameters that select = '.\\*' matches are frozen"),
        (lambda: Answers(lambda f, x: (f(x.flatten(1)), 1)), "answers a tuple"),
        (lambda: Answers(lambda f, x: {"a": f(x.flatten(1))}), "answers a dict"),
        (lambda: Answers(lambda f, x: f(x.flatten(1) + torch.randn(24))), "draws random numbers"),
        (lambda: Answers(lambda f, x: f(x.flatten(1)).detach()), "torch cannot run this module"),
        (lambda: Answers(lambda f, x: f(x.add_(1).flatten(1))), "changes its inputs in place"),
        (Stale, "keep references to weights"),
        (lambda: patched(made(["linear"])), "a forward that is a function of its own"),
        (lambda: Answers(lambda f, x: f(x.reshape(12, 24))), "takes 12 examples at once, and not fewer"),
        (lambda: filled(made(["linear"])), "holds NaN or infinite weights"),
        (lambda: made(["linear"]).forward, "must be an nn.Module"),
        (lambda: nn.ModuleList([nn.Linear(4, 2)]), "does not take a task's inputs"),
        (lambda: nn.Sequential(nn.AlphaDropout(0.2), *made(["linear"])), "alpha_dropout is not repeatable"),
        (lambda: nn.Sequential(nn.BatchNorm1d(6, momentum=None), *made([])), "give it a momentum"),
    ],
)
def test_what_torch_cannot_run_is_one_sentence_before_any_training(make, said):
    with pytest.raises(McdiError, match=said):
        OwnTasks(make(), X, Y, shots=3, describe=describe)
