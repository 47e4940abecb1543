"""What may be added to a generator: single examples with cross-attention, self-conditioning, guidance, best of n."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mcdi.errors import McdiError
from mcdi.experiments.build import _few_shot
from mcdi.experiments.recipe import FamilySettings
from mcdi.experiments.studies import measures
from mcdi.experiments.studies.variants import Context, Variant
from mcdi.generator.api import Generator
from mcdi.generator.saving import load_method
from mcdi.methods import make_method
from mcdi.methods.mcdi.denoisers import make_denoiser
from mcdi.methods.mcdi.loss import DenoisingLoss
from mcdi.methods.mcdi.method import Diffusion
from mcdi.methods.sampling import Sampling
from mcdi.networks.backbones.vision import Embedder
from mcdi.networks.linear_head import LinearHead
from mcdi.networks.support import single_examples
from mcdi.tasks.episodes import FewShot
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


def cross(among: int) -> torch.nn.Module:
    torch.manual_seed(0)
    net = make_denoiser("cross", 7, 21 + 3 * 7, 3, summary=21, examples=3, width=16, depth=2, among=among)
    for p in net.parameters():  # the last layer and the signs begin at zero
        torch.nn.init.normal_(p, std=0.3)
    return net


@pytest.mark.parametrize("among", [0, 2])
def test_cross_attention_follows_the_order_of_classes_and_ignores_that_of_examples(among: int) -> None:
    net, head = cross(among), LinearHead(6, 3, condition="examples", examples=3)
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
        return by.generate(net, Examples(x, batch.support.y), batch.mask, seed=0, how=Sampling(temperature=0.0))

    want, x = made(method, batch.support.x), batch.support.x.clone()
    assert torch.equal(made(again, x), want)
    x[:, 0, 6:], x[:, 1, 6:] = batch.support.x[:, 0, 6:] + 1, batch.support.x[:, 1, 6:] - 1  # no mean of a class changes
    assert not torch.equal(made(method, x), want)


@pytest.mark.parametrize("among", [0, 1])
def test_cross_attention_knows_whose_an_example_is_and_reads_no_empty_places(among: int) -> None:
    net, mask = cross(among), torch.ones(1, 3, dtype=torch.bool)
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


def test_guidance_goes_from_no_condition_to_the_condition_and_beyond() -> None:
    family, method = fitted(drop=0.3)
    batch, net = family.sample("test", range(6), shots=3), family.downstream

    def made(g: float, support: Examples) -> torch.Tensor:
        how = Sampling(temperature=0.0, steps=1, guidance=g)
        return method.generate(net, support, batch.mask, seed=0, how=how)

    other = Examples(batch.support.x.flip(0), batch.support.y)
    blind = made(0.0, batch.support)
    assert torch.equal(blind, made(0.0, other))
    full = made(1.0, batch.support)
    # One step from zero is linear in f, and so is the way from blind to seeing.
    torch.testing.assert_close(made(2.0, batch.support), blind + 2 * (full - blind), rtol=1e-3, atol=1e-4)


def test_a_batch_hides_conditions_and_gives_half_an_estimate() -> None:
    """Shares are those asked for, what is drawn otherwise stays the same, and the queries come last."""
    plain, changed = (
        DenoisingLoss(fitted(**changes)[1], family_with("means"), stored(), 3, 0).batch_at(4)
        for changes in ({"functional": 1.0}, {"functional": 1.0, "drop": 0.3, "self_condition": True})
    )
    assert len(changed) == len(plain) + 1
    for was, now in zip((*plain[:4], plain[5], *plain[6:]), (*changed[:4], changed[5], *changed[7:]), strict=True):
        assert torch.equal(was, now)
    hidden = ~changed[4].flatten(0, 2).flatten(1).any(1)
    assert 0.1 < float(hidden.float().mean()) < 0.5
    assert torch.equal(changed[4].flatten(0, 2)[~hidden], plain[4].flatten(0, 2)[~hidden])
    assert 0.25 < float(changed[6].mean()) < 0.75


def test_guidance_needs_hidden_conditions() -> None:
    family, method = fitted()
    batch = family.sample("test", range(2), shots=1)
    with pytest.raises(McdiError, match="drop > 0"):
        method.generate(family.downstream, batch.support, batch.mask, seed=0, how=Sampling(guidance=2.0))


def test_self_conditioning_reads_the_last_estimate() -> None:
    family, method = fitted(self_condition=True)
    batch, net = family.sample("test", range(6), shots=3), family.downstream
    seen: list[torch.Tensor | None] = []
    found: list[torch.Tensor] = []
    inner = method.f

    def watched(x, t, cond, mask, params=None, *, previous=None, guess=None):  # type: ignore[no-untyped-def]
        f = inner(x, t, cond, mask, params, previous=previous, guess=guess)
        bar = method.schedule.bar(t)[:, None, None]
        seen.append(previous)
        found.append((x - (1 - bar).sqrt() * f) / bar.sqrt())
        return f

    method.f = watched  # type: ignore[method-assign]
    method.generate(net, batch.support, batch.mask, seed=0, how=Sampling(steps=3))
    assert seen[0] is None
    for before, after in zip(found, seen[1:], strict=False):
        assert after is not None
        torch.testing.assert_close(after, before)
    cond = net.condition(batch.support, 3)
    x, t = torch.zeros(6, 3, 7), torch.zeros(6, dtype=torch.long)
    plain = inner(x, t, cond, batch.mask)
    assert torch.equal(plain, inner(x, t, cond, batch.mask, previous=torch.zeros_like(x)))
    assert not torch.allclose(plain, inner(x, t, cond, batch.mask, previous=torch.ones_like(x)))


def test_training_gives_the_first_estimate_to_those_that_are_to_have_it() -> None:
    family, method = fitted(self_condition=True)
    assert method.net is not None
    objective, params = DenoisingLoss(method, family, stored(), 3, 0), dict(method.net.named_parameters())
    *batch, given = (b.flatten(0, 2) for b in objective.batch_at(0))
    losses = [float(objective.loss(params, *batch, torch.full_like(given, share)).detach()) for share in (0.0, 1.0)]
    assert losses[0] != losses[1]


def test_a_prior_around_prototypes_is_a_linear_map_of_them() -> None:
    family, method = fitted(around="prototypes")
    batch, net = family.sample("test", range(6), shots=3), family.downstream
    assert method.prior is not None
    assert method.prior.matrix.shape == (1, 2 * 7 + 1, 7)
    rows = make_method("prototypes", {}).generate(net, batch.support, batch.mask, seed=0)
    cond = net.condition(batch.support, 3)
    assert torch.equal(method.guess(cond, batch.mask), method.prior.guess(rows, batch.mask))


def test_only_heads_have_prototypes(sines) -> None:  # type: ignore[no-untyped-def]
    data = trajectories(sines, "train", range(20), Preparation(tasks=20, epochs=5, k=3))
    method = make_method("mc-di", {**SETTINGS, "denoiser": "mlp", "around": "prototypes"})
    with pytest.raises(McdiError, match="only linear heads have prototypes"):
        method.fit(sines, data, seed=0)


def test_best_of_n_is_the_draw_that_fits_the_support_set_best() -> None:
    family, method = fitted()
    batch, net = family.sample("test", range(6), shots=3), family.downstream
    how = Sampling(samples=5, pick="support loss")
    drawn = method.draws(net, batch.support, batch.mask, seed=0, how=how)
    assert drawn.shape == (6, 5, 3, 7)
    losses = torch.stack([net.loss(drawn[:, n], batch.support, batch.mask) for n in range(5)])
    picked = method.generate(net, batch.support, batch.mask, seed=0, how=how)
    assert torch.equal(net.loss(picked, batch.support, batch.mask), losses.min(0).values)
    mean = method.generate(net, batch.support, batch.mask, seed=0, how=replace(how, pick="mean"))
    torch.testing.assert_close(mean, drawn.mean(1))


@pytest.mark.parametrize(
    ("condition", "changes"),
    [
        ("examples", {"denoiser": "cross"}),
        ("spread", {}),
        ("means", {"self_condition": True, "drop": 0.2}),
        ("means", {"prior": False, "self_condition": True}),
        ("means", {"around": "prototypes"}),
    ],
)
def test_every_lever_is_saved_and_loaded(tmp_path: Path, condition: str, changes: dict[str, object]) -> None:
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
        ("mc-di", {"drop": 1.0}, "drop = 1.0 is a share"),
        ("mc-di", {"self_condition": True, "denoiser": "cross"}, "reads no earlier estimate"),
        ("mc-di", {"sampling": {"pick": "best"}}, "must be one of mean, support loss"),
        ("hypernetwork", {"self_condition": True}, "no earlier estimate"),
    ],
)
def test_settings_that_mean_nothing_are_refused(name: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(McdiError, match=message):
        make_method(name, {**SETTINGS, **changes})


def test_cross_attention_asks_for_examples() -> None:
    with pytest.raises(McdiError, match="condition = 'examples'"):
        fitted("means", denoiser="cross")


def test_a_condition_of_single_examples_is_for_heads() -> None:
    settings = FamilySettings(network="pixel-net", condition="examples")
    with pytest.raises(McdiError, match="is for network = 'linear-head'"):
        _few_shot(settings, Embedder.from_config({"backbone": "conv4", "channels": 1, "side": 28}), {})


def test_settings_are_judged_on_validation_tasks(done: Path) -> None:
    """The row that decides what is kept is the score of the validation split, not of the test one."""
    context, variant = Context(done), Variant({"setting": "recipe"}, "mc-di")
    method = load_method(done / "methods" / "mc-di-0")
    rows = measures.ablated(context, variant, method, 0)
    (row,) = (r for r in rows if r.factors["sampler"] == "validated, on validation tasks")
    net, scores = context.family.downstream, {}
    for split in ("val", "test"):
        batch = context.family.sample(split, range(8))
        scores[split] = net.score(method.generate(net, batch.support, batch.mask, seed=0), batch.query, batch.mask)
    assert row.scores is not None and torch.equal(row.scores, scores["val"]) and not torch.equal(row.scores, scores["test"])
    assert row.figures == {}
