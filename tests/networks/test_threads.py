"""Any number of threads may use one network: every answer is that of its own weights, and the module stays as it was."""

import copy
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.methods.baselines.finetune import adapt
from mcdi.networks.backbones.embedder import Embedder
from mcdi.networks.backbones.vision import Conv4, NoBackbone
from mcdi.networks.base import Network
from mcdi.networks.batched import RandomOps, apply, exclusive, training
from mcdi.networks.conv_net import ConvNet
from mcdi.networks.film import FilmHead
from mcdi.networks.linear_head import LinearHead
from mcdi.networks.lora import LoraClassifier
from mcdi.networks.own import OwnNetwork
from mcdi.networks.pixels import PixelNet
from mcdi.tasks.curves import Sines
from mcdi.types import Examples

THREADS, TASKS = 8, 5


@pytest.fixture(autouse=True)
def often() -> Iterator[None]:
    """Threads take turns a hundred times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


class Branching(nn.Module):
    """No Sequential: only itself can run it."""

    def __init__(self, image: bool) -> None:
        super().__init__()
        self.first: nn.Module = nn.Conv2d(1, 4, 3) if image else nn.Linear(6, 4)
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.last(self.drop(h.mean((2, 3)) if h.ndim == 4 else h))


class Attention(nn.Module):
    """Its attention is an operation that torch marks as random."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.last = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.attention(x).mean(1))


def own(example: tuple[int, ...], module: nn.Module | None = None) -> OwnNetwork:
    module = module or Branching(len(example) == 3)
    return OwnNetwork(module, example=example, target=(), way=3, regression=False, squeeze=False)


NETWORKS: dict[str, tuple[Callable[[], Network], tuple[int, ...]]] = {
    "own": (lambda: own((6,)), (6,)),
    "own of images": (lambda: own((1, 8, 8)), (1, 8, 8)),
    "own of sequences": (lambda: own((4, 8), Attention()), (4, 8)),
    "curve": (lambda: Sines(hidden=6).downstream, (1,)),
    "linear-head": (lambda: LinearHead(6, 3), (6,)),
    "film-head": (lambda: FilmHead(6, 3), (6,)),
    "conv-net": (lambda: ConvNet(0, 3, Embedder(NoBackbone(1), 28)), (784,)),
    "pixel-net": (lambda: PixelNet(0, 3, Embedder(NoBackbone(1), 28)), (784,)),
}


def work(net: Network, example: tuple[int, ...]) -> list[tuple[Tensor, Examples, Tensor]]:
    """Weights, labelled examples and masks of some tasks."""
    g = torch.Generator().manual_seed(0)
    out = []
    for _ in range(TASKS):
        weights = 0.5 * torch.randn(2, net.space.U, net.space.D, generator=g)
        x, y = torch.randn(2, 6, *example, generator=g), torch.arange(3).repeat(2).expand(2, 6)
        labelled = Examples(x, x.flatten(2)[..., 0].sin() if net.regression else y)
        out.append((weights, labelled, torch.ones(2, net.space.U, dtype=torch.bool)))
    return out


def in_threads(do: Callable[[int], Any], calls: Iterable[int], threads: int = THREADS) -> list[Any]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(do, calls))


CALLS = st.lists(st.integers(0, 7 * TASKS - 1), min_size=30, max_size=90)


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=CALLS, threads=st.integers(2, 16))
def test_answers_are_of_their_own_weights(name: str, calls: list[int], threads: int) -> None:
    """Predicted, refined and in training mode side by side: only the last drops anything."""
    make, example = NETWORKS[name]
    net = make()
    tasks, before = work(net, example), dict(net.module.named_parameters())

    def one(i: int) -> Tensor:
        weights, data, mask = tasks[i % TASKS]
        if i % 7 == 0:
            return adapt(net, weights, data, mask, 2, 0.01)
        if i % 7 == 1:
            with training(net.module, list(net.space.spec)):
                return net.forward(net.space.unpack(weights), data.x, torch.tensor([1, 2]))
        return net.predict(weights, data.x)

    expected = {i: one(i) for i in set(calls)}
    for i, found in zip(calls, in_threads(one, calls, threads), strict=True):
        torch.testing.assert_close(found, expected[i], rtol=1e-4, atol=1e-5)
    after = dict(net.module.named_parameters())
    assert all(after[n] is p for n, p in before.items()) and not any(m.training for m in net.module.modules())


def test_texts_are_read_side_by_side(models: Any) -> None:
    from test_lora import lora

    net = LoraClassifier(lora(models, "bert"), 2)
    texts = [[(f"{'a word ' * n}and {n} more",), ("short",)] for n in range(1, 6)]
    want = [net.read(t) for t in texts]
    for i, found in enumerate(in_threads(lambda i: net.read(texts[i % 5]), range(60))):
        torch.testing.assert_close(found, want[i % 5])


def test_a_module_can_be_saved_meanwhile() -> None:
    net = own((6,))
    tasks, want = work(net, (6,)), {n: t.clone() for n, t in net.state().items()}

    def one(i: int) -> dict[str, Tensor] | None:
        if i % 2:
            net.predict(tasks[i % TASKS][0], tasks[i % TASKS][1].x)
            return None
        return {n: t.clone() for n, t in net.state().items()}

    for state in in_threads(one, range(200)):
        assert state is None or all(torch.equal(t, want[n]) for n, t in state.items())


@pytest.mark.parametrize("name", [n for n in NETWORKS if n.startswith("own")])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_network_can_be_copied_meanwhile(name: str, copied: Callable[[OwnNetwork], OwnNetwork]) -> None:
    make, example = NETWORKS[name]
    net = make()
    assert isinstance(net, OwnNetwork)
    tasks, want = work(net, example), {n: t.clone() for n, t in net.state().items()}

    def one(i: int) -> dict[str, Tensor]:
        if i % 2:
            net.predict(tasks[i % TASKS][0], tasks[i % TASKS][1].x)
            return want
        return copied(net).state()

    for state in in_threads(one, range(100)):
        assert state.keys() == want.keys() and all(torch.equal(t, want[n]) for n, t in state.items())


def test_a_backbone_is_brought_into_order_by_one_thread() -> None:
    """The first images that it reads change the order of its weights in memory."""
    embedder, ready = Embedder(Conv4()), threading.Event()
    thread = threading.Thread(target=lambda: (embedder(torch.zeros(1, 1, 28, 28, dtype=torch.uint8)), ready.set()))
    with exclusive(embedder):
        thread.start()
        assert not ready.wait(0.3)
    assert ready.wait(10)
    thread.join()


@settings(max_examples=30, deadline=None)
@given(p=st.sampled_from([0.0, 0.1, 0.9]), causal=st.booleans(), on=st.booleans(), shape=st.tuples(*[st.integers(1, 4)] * 4))
def test_only_what_draws_is_random(p: float, causal: bool, on: bool, shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape)
    for draws, call in (
        (p > 0, lambda: F.scaled_dot_product_attention(x, x, x, dropout_p=p, is_causal=causal)),
        (on, lambda: F.rrelu(x, training=on)),
        (on and p > 0, lambda: F.dropout(x, p, on)),
        (True, lambda: torch.rand_like(x)),
    ):
        with RandomOps() as detected:
            call()
        assert detected.any == draws


@pytest.mark.parametrize("name", ["own of images", "own of sequences"])
def test_random_numbers_of_another_thread_are_no_fault_of_the_module(name: str) -> None:
    make, example = NETWORKS[name]
    net = make()
    tasks, over = work(net, example), threading.Event()

    def draw() -> None:
        while not over.is_set():
            torch.rand(3)

    other = threading.Thread(target=draw)
    other.start()
    try:
        for i in range(100):
            net.predict(tasks[i % TASKS][0][:1], tasks[i % TASKS][1].x[:1])
    finally:
        over.set()
        other.join()

    class Noisy(Branching):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn_like(x))

    module = Noisy(True)
    state = {n: p.detach()[None] for n, p in module.named_parameters()}
    with pytest.raises(McdiError, match="draws random numbers"):
        apply(module.eval(), state, torch.zeros(1, 2, 1, 8, 8))


def test_modules_with_a_part_in_common_wait_for_each_other() -> None:
    part = nn.Linear(2, 2)
    one, other, free = nn.Sequential(part, nn.ReLU()), nn.Sequential(part), nn.Linear(2, 2)
    entered = {name: threading.Event() for name in ("other", "free")}

    def enter(name: str, module: nn.Module) -> None:
        with exclusive(module):
            entered[name].set()

    with exclusive(one), exclusive(one):  # the same thread may come again
        threads = [threading.Thread(target=enter, args=a) for a in (("other", other), ("free", free))]
        for thread in threads:
            thread.start()
        assert entered["free"].wait(10) and not entered["other"].wait(0.1)
    assert entered["other"].wait(10)
    for thread in threads:
        thread.join()
