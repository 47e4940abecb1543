"""Options of a denoiser: single examples with cross-attention, class variances, a prior of prototypes, best of n."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mcdi.errors import McdiError
from mcdi.generator.api import Generator
from mcdi.methods import make_method
from mcdi.methods.mcdi.denoisers import make_denoiser
from mcdi.methods.mcdi.method import Diffusion
from mcdi.methods.sampling import Sampling
from mcdi.networks.linear_head import LinearHead
from mcdi.networks.support import single_examples
from mcdi.tasks.episodes import FewShot
from mcdi.tasks.images.features import ImageSettings
from mcdi.trajectories.prepare import Preparation, trajectories
from mcdi.trajectories.store import Trajectories
from mcdi.types import Examples

SETTINGS = {
    "options": {"width": 16, "depth": 1},
    "training": {"iterations": 30, "learners": 2, "tasks": 8, "outer_lr": 0.003},
    "T": 6,
}


def family_with(condition: str) -> FewShot:
    g = torch.Generator().manual_seed(0)
    banks = {s: 1.5 * torch.randn(12, 1, 6, generator=g) + torch.randn(12, 25, 6, generator=g) for s in ("train", "test")}
    return FewShot("gauss", LinearHead(6, 3, condition=condition, examples=3), banks, way=3, shots=(1, 3), queries=8)


def stored(condition: str = "means") -> Trajectories:
    return trajectories(family_with(condition), "train", range(60), Preparation(tasks=60, epochs=20, k=3, lr=0.03))


def fitted(condition: str = "means", **changes: object) -> tuple[FewShot, Diffusion]:
    family = family_with(condition)
    method = make_method("mc-di", {**SETTINGS, **changes}).fit(family, stored(condition), seed=0)
    assert isinstance(method, Diffusion)
    return family, method


def shuffled(support: Examples, order: torch.Tensor) -> Examples:
    return Examples(support.x[:, order], support.y[:, order])


def test_single_examples_are_those_of_a_plain_loop() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 11, 5, generator=g), torch.randint(3, (4, 11), generator=g)
    got = single_examples(x, y, 3, 2)
    for b in range(4):
        for c in range(3):
            own = x[b][y[b] == c][:2]
            assert torch.equal(got[b, c, : len(own), :5], own)
            assert got[b, c, :, 5].tolist() == [1.0] * len(own) + [0.0] * (2 - len(own))
            assert not got[b, c, len(own) :].any()


def test_spread_is_the_unbiased_variance_and_zero_for_one_example() -> None:
    net, plain = LinearHead(6, 3, condition="spread"), LinearHead(6, 3)
    five = family_with("means").sample("test", range(4), shots=3).support
    extra = net.condition(five, 3)[..., plain.condition_size :]
    want = torch.stack([five.x[five.y == c].reshape(4, 3, 6).var(1) for c in range(3)], 1)
    torch.testing.assert_close(extra, want, rtol=1e-4, atol=1e-5)
    one = family_with("means").sample("test", range(4), shots=1).support
    assert not net.condition(one, 3)[..., plain.condition_size :].any()


def cross(layers: int) -> torch.nn.Module:
    torch.manual_seed(0)
    options = {"width": 16, "depth": 2, "set_attention_layers": layers}
    net = make_denoiser("cross", 7, 21 + 3 * 7, 3, summary=21, examples=3, **options)
    for p in net.parameters():  # the last layer and the signs begin at zero
        torch.nn.init.normal_(p, std=0.3)
    return net


@pytest.mark.parametrize("set_attention_layers", [0, 2])
def test_cross_attention_follows_the_order_of_classes_and_ignores_that_of_examples(set_attention_layers: int) -> None:
    net, head = cross(set_attention_layers), LinearHead(6, 3, condition="examples", examples=3)
    support = family_with("means").sample("test", range(5), shots=3).support
    x, t, mask = torch.randn(5, 3, 7), torch.rand(5), torch.ones(5, 3, dtype=torch.bool)

    def out(support: Examples, x: torch.Tensor) -> torch.Tensor:
        return net(x, t, head.condition(support, 3), mask)

    base = out(support, x)
    torch.testing.assert_close(out(shuffled(support, torch.randperm(9)), x), base, rtol=1e-4, atol=1e-4)
    turned = out(Examples(support.x, (support.y + 1) % 3), x.roll(1, 1))
    torch.testing.assert_close(turned, base.roll(1, 1), rtol=1e-4, atol=1e-4)


def test_single_examples_of_the_other_network_are_read_too() -> None:
    net, g = LinearHead(6, 3, condition="examples", examples=3, embedding=4), torch.Generator().manual_seed(0)
    bank = {"train": torch.randn(5, 24, 6 + 4, generator=g)}
    family = FewShot("x", net, bank, way=3, shots=(3,), queries=5)
    data = trajectories(family, "train", range(12), Preparation(tasks=12, epochs=6, k=3))
    method = make_method("mc-di", {**SETTINGS, "denoiser": "cross"}).fit(family, data, seed=0)
    batch = family.sample("train", range(4))
    again = make_method("mc-di", method.config()["settings"]).restore(json.loads(json.dumps(method.config())), method.state())

    def made(by: Diffusion, x: torch.Tensor) -> torch.Tensor:
        return by.generate(net, Examples(x, batch.support.y), batch.mask, seed=0, sampling=Sampling(temperature=0.0))

    want, x = made(method, batch.support.x), batch.support.x.clone()
    assert torch.equal(made(again, x), want)
    x[:, 0, 6:], x[:, 1, 6:] = batch.support.x[:, 0, 6:] + 1, batch.support.x[:, 1, 6:] - 1  # no mean of a class changes
    assert not torch.equal(made(method, x), want)


@pytest.mark.parametrize("set_attention_layers", [0, 1])
def test_cross_attention_knows_whose_an_example_is_and_reads_no_empty_places(set_attention_layers: int) -> None:
    net, mask = cross(set_attention_layers), torch.ones(1, 3, dtype=torch.bool)
    summary, single = torch.zeros(1, 3, 21), torch.randn(1, 3, 3, 7)
    single[..., -1] = 1
    x, t = torch.zeros(1, 3, 7), torch.zeros(1)

    def out(single: torch.Tensor) -> torch.Tensor:
        return net(x, t, torch.cat([summary, single.flatten(2)], -1), mask)

    assert not torch.allclose(out(single)[0, 0], out(single.roll(1, 1))[0, 0], atol=1e-3)
    empty = single.clone()
    empty[..., 2, -1] = 0
    noisy = empty.clone()
    noisy[..., 2, :-1] = 100.0
    torch.testing.assert_close(out(noisy), out(empty))


def test_a_prior_of_prototypes_is_a_linear_map_of_them() -> None:
    family, method = fitted(prior_input="prototypes")
    batch, net = family.sample("test", range(6), shots=3), family.downstream
    assert method.denoiser is not None and method.denoiser.prior is not None
    assert method.denoiser.prior.matrix.shape == (1, 2 * 7 + 1, 7)
    rows = make_method("prototypes", {}).generate(net, batch.support, batch.mask, seed=0)
    cond = net.condition(batch.support, 3)
    assert torch.equal(method.denoiser.prior_mean(cond, batch.mask), method.denoiser.prior.mean_of_weights(rows, batch.mask))


def test_only_heads_have_prototypes(sines) -> None:  # type: ignore[no-untyped-def]
    data = trajectories(sines, "train", range(20), Preparation(tasks=20, epochs=5, k=3))
    method = make_method("mc-di", {**SETTINGS, "denoiser": "mlp", "prior_input": "prototypes"})
    with pytest.raises(McdiError, match="only linear heads have prototypes"):
        method.fit(sines, data, seed=0)


def test_best_of_n_is_the_draw_that_fits_the_support_set_best() -> None:
    family, method = fitted()
    batch, net = family.sample("test", range(6), shots=3), family.downstream
    sampling = Sampling(samples=5, pick="support loss")
    drawn = method.sample(net, batch.support, batch.mask, seed=0, sampling=sampling).weights
    assert drawn.shape == (6, 5, 3, 7)
    losses = torch.stack([net.loss(drawn[:, n], batch.support, batch.mask) for n in range(5)])
    picked = method.generate(net, batch.support, batch.mask, seed=0, sampling=sampling)
    assert torch.equal(net.loss(picked, batch.support, batch.mask), losses.min(0).values)
    mean = method.generate(net, batch.support, batch.mask, seed=0, sampling=replace(sampling, pick="mean"))
    torch.testing.assert_close(mean, drawn.mean(1))


@pytest.mark.parametrize(
    ("condition", "changes"),
    [
        ("examples", {"denoiser": "cross"}),
        ("spread", {}),
        ("means", {"prior": False}),
        ("means", {"prior_input": "prototypes"}),
    ],
)
def test_every_option_is_saved_and_loaded(tmp_path: Path, condition: str, changes: dict[str, object]) -> None:
    family, method = fitted(condition, **changes)
    batch = family.sample("test", range(4), shots=3)
    saved = Generator("mc-di", method, family.downstream)
    saved.save_pretrained(tmp_path)
    loaded = Generator.from_pretrained(tmp_path)
    for steps in (1, 6):
        want, got = (g.generate(batch.support, steps=steps, seed=1) for g in (saved, loaded))
        assert all(torch.equal(want[n], got[n]) for n in want)
    # Another order of the same examples is the same task.
    again = loaded.generate(shuffled(batch.support, torch.randperm(9)), steps=1, seed=1)
    torch.testing.assert_close(again["weight"], loaded.generate(batch.support, steps=1, seed=1)["weight"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mc-di", {"sampling": {"pick": "best"}}, "should be .mean. or .support loss."),
    ],
)
def test_settings_that_mean_nothing_are_refused(name: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(McdiError, match=message):
        make_method(name, {**SETTINGS, **changes})


def test_cross_attention_asks_for_examples() -> None:
    with pytest.raises(McdiError, match="condition = 'examples'"):
        fitted("means", denoiser="cross")


def test_a_condition_of_single_examples_is_for_heads() -> None:
    settings = ImageSettings(network="pixel-net", condition="examples")
    with pytest.raises(McdiError, match="is for network = 'linear-head'"):
        settings.check()
