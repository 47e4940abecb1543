"""The methods that learn from stored weights, and Meta-Hypernetwork, against the formulas of their papers."""

import pytest
import torch
from torch import nn
from worlds import ONE_LEVEL, settings

from mcdi import core
from mcdi.errors import McdiError
from mcdi.methods import make_method
from mcdi.methods.baselines.maml import inner_steps
from mcdi.methods.published.icis import PairedAutoencoders
from mcdi.methods.published.metadiff import gradient_features
from mcdi.methods.published.ocd import ResidualOcd
from mcdi.methods.published.stored_weights import NoisePredictionGenerator

SHORT = {**ONE_LEVEL, "iterations": 10}  # where weights need not be good
STORED = ("metadiff", "p-diff", "d2nwg", "ocd-residual", "icis", "vae")


class Oracle(nn.Module):
    """The noise in x for a given clean end: the output of a perfect network."""

    def __init__(self, clean, schedule):
        super().__init__()
        self.clean, self.schedule = clean, schedule

    def forward(self, x, t, cond, mask):
        return core.to_f(self.clean, x, (t * self.schedule.T).round().long(), self.schedule, "x0")


@pytest.mark.parametrize(("kind", "low", "high"), [(NoisePredictionGenerator, 1e-4, 0.02), (ResidualOcd, 1e-6, 0.01)])
def test_chains_begin_where_the_published_betas_do(kind, low, high):
    published = (1 - torch.linspace(low, high, 1000, dtype=torch.float64)).prod()
    assert kind.floor == pytest.approx(float(published), rel=0.02)


def test_the_estimate_of_the_clean_end_is_clipped(worlds):
    method = worlds["gauss"].method("d2nwg")
    oracle = Oracle(torch.tensor([-9.0, -1.0, 0.5, 9.0]).expand(2, 3, 4), method.schedule)
    clean = method.ddim(lambda x, t: oracle(x, t, None, None), torch.ones(2, 3, dtype=torch.bool), 4, 0)
    want = torch.tensor([-4.0, -1.0, 0.5, 4.0]).expand(2, 3, 4)
    torch.testing.assert_close(clean, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["d2nwg", "ocd-residual"])
def test_what_a_diffusion_is_trained_on_has_unit_size(worlds, name):
    """Latents divided by their spread over all tasks; residuals by their own of each."""
    world = worlds["gauss"]
    method, net = world.method(name), world.family.downstream
    *_, stage = method.stages(net, world.data)
    tasks = world.family.sample("train", world.data.seeds.tolist())
    theta = method.space.standardise(world.data.targets[:, -1])
    with torch.no_grad():
        batch = stage.draw(theta, tasks, torch.Generator().manual_seed(0))
    clean = core.to_x0(batch["eps"], batch["x"], batch["t"], method.schedule).square().mean((1, 2)).sqrt()
    want = clean.mean() if name == "d2nwg" else clean
    torch.testing.assert_close(want, torch.ones_like(want), rtol=0.1, atol=0.0)


class TestMetaDiff:
    def test_it_reads_the_softmax_gradient(self, worlds):
        """d loss / d row_c = mean over examples of (p_c - y_c) [x, 1], times the std that the weights are standardised by."""
        world = worlds["gauss"]
        net, (support, _, mask, _), space = world.family.downstream, world.batch, world.method("metadiff").space
        x = torch.randn(40, 3, 7, generator=torch.Generator().manual_seed(0))
        features = gradient_features(net, space, x, support, mask)
        _, std = space.statistics()
        rows = space.restore(x)
        inputs = torch.cat([support.x, torch.ones(40, 6, 1)], -1)
        wrong = (inputs @ rows.transpose(1, 2)).softmax(-1) - nn.functional.one_hot(support.y, 3)
        gradient = wrong.transpose(1, 2) @ inputs / 6 * std
        size = gradient.square().mean((1, 2), keepdim=True).sqrt()
        torch.testing.assert_close(features[..., :-1], gradient / size, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(features[..., -1:], size.log().expand(-1, 3, 1), rtol=1e-3, atol=1e-4)

    def test_the_support_set_decides_the_weights(self, worlds):
        world = worlds["gauss"]
        other = world.family.sample("test", range(40), draw=1)
        assert not torch.equal(world.weights(world.method("metadiff")), world.weights(world.method("metadiff"), other))


class TestLatent:
    @pytest.mark.parametrize("name", ["p-diff", "d2nwg"])
    def test_a_perfect_denoiser_decodes_the_code_of_the_weights(self, worlds, name):
        world = worlds["gauss"]
        method = make_method(name, settings(name, samples=1, training=SHORT)).fit(world.family, world.data, seed=0)
        theta = method.space.standardise(world.data.targets[:40, -1])
        z, _ = method.net.autoencoder.encode(theta, theta[..., :0])
        method.net.denoiser = Oracle((z / method.net.scale).clamp(-4, 4), method.schedule)
        want = method.space.restore(method.net.autoencoder.decode(z, z[..., :0]))
        torch.testing.assert_close(world.weights(method), want, rtol=1e-2, atol=1e-2)

    def test_latents_have_unit_size(self, worlds):
        world = worlds["gauss"]
        method = world.method("d2nwg")
        theta = method.space.standardise(world.data.targets[:, -1])
        with torch.no_grad():
            z, _ = method.net.autoencoder.encode(theta, theta[..., :0])
        assert float((z / method.net.scale).square().mean()) == pytest.approx(1.0, rel=1e-4)

    def test_p_diff_reads_no_task_and_d2nwg_does(self, worlds):
        world = worlds["gauss"]
        other = world.family.sample("test", range(40), draw=1)
        for name, same in (("p-diff", True), ("d2nwg", False)):
            method = make_method(name, settings(name, samples=1, training=SHORT)).fit(world.family, world.data, seed=0)
            assert torch.equal(world.weights(method), world.weights(method, other)) == same

    def test_the_draw_with_the_lowest_support_loss_is_kept(self, worlds):
        world = worlds["gauss"]
        net, (support, _, mask, _) = world.family.downstream, world.batch
        method = world.method("p-diff")
        with torch.no_grad():
            drawn = method.standardised_weights(net, support, mask, 3)
        losses = torch.stack([net.loss(method.space.restore(drawn[:, n]), support, mask) for n in range(drawn.shape[1])])
        torch.testing.assert_close(net.loss(world.weights(method), support, mask), losses.min(0).values)

    def test_a_stopped_second_stage_goes_on_to_the_same_weights(self, worlds, tmp_path):
        world = worlds["gauss"]
        changed = settings("d2nwg", training={**ONE_LEVEL, "iterations": 20, "checkpoint_every": 5})
        straight = make_method("d2nwg", changed).fit(world.family, world.data, seed=0)
        seen = []

        def stop(done, total, figures):
            seen.append(done)
            if len(seen) == 33:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make_method("d2nwg", changed).fit(world.family, world.data, seed=0, log=stop, folder=tmp_path)
        assert {p.name for p in tmp_path.glob("checkpoint*")} == {"checkpoint.safetensors", "checkpoint1.safetensors"}
        seen.clear()
        resumed = make_method("d2nwg", changed).fit(
            world.family, world.data, seed=0, log=lambda done, *_: seen.append(done), folder=tmp_path
        )
        assert seen == [20, *range(11, 21)]
        assert all(torch.equal(t, resumed.state()[n]) for n, t in straight.state().items())


class TestOcd:
    def test_weights_are_the_base_and_a_scaled_residual(self, worlds):
        world = worlds["gauss"]
        net, (support, _, mask, _) = world.family.downstream, world.batch
        method = make_method("ocd-residual", settings("ocd-residual", training=SHORT)).fit(world.family, world.data, seed=0)
        residual = torch.randn(40, 3, 7, generator=torch.Generator().manual_seed(0))
        method.net.denoiser = Oracle(residual.clamp(-4, 4), method.schedule)
        base = method.space.standardise(net.closed_form(support, 3))
        with torch.no_grad():
            scale = method.net.log_scale(torch.cat([net.condition(support, 3), base], -1), mask).exp()
        want = method.space.restore(base + scale[:, None, None] * residual.clamp(-4, 4))
        torch.testing.assert_close(world.weights(method), want, rtol=1e-2, atol=1e-2)

    def test_the_scale_is_predicted(self, worlds):
        """On training tasks, to within a fifth: the distance of theta_M from the base model."""
        world = worlds["gauss"]
        method, net = world.method("ocd-residual"), world.family.downstream
        tasks = world.family.sample("train", world.data.seeds.tolist())
        with torch.no_grad():
            base, cond = method._base(net, method.space, tasks.support, tasks.mask)
            predicted = method.net.log_scale(cond, tasks.mask)
        true = (method.space.standardise(world.data.targets[:, -1]) - base).square().mean((1, 2)).sqrt().log()
        assert float((predicted - true).abs().mean()) < 0.2

    def test_a_network_without_a_head_starts_from_theta_0(self, worlds):
        world = worlds["sines"]
        method, (support, _, mask, _) = world.method("ocd-residual"), world.batch
        base, _ = method._base(world.family.downstream, method.space, support, mask)
        start = method.space.standardise(world.family.downstream.theta0(0, 1).expand(40, -1, -1))
        torch.testing.assert_close(base, start)


class TestIcis:
    def test_the_loss_is_four_cosines(self):
        torch.manual_seed(0)
        coders = PairedAutoencoders(7, 5, 4, 8)
        a, w = torch.randn(2, 3, 5), torch.randn(2, 3, 7)
        total = torch.zeros(2, 3)
        for z in (coders.encode_descriptor(a), coders.encode_weights(w)):
            for decoded, true in ((coders.decode_descriptor(z), a), (coders.decode_weights(z), w)):
                total += 1 - (decoded * true).sum(-1) / decoded.norm(dim=-1) / true.norm(dim=-1)
        torch.testing.assert_close(coders(a, w), total)

    def test_rows_have_the_length_of_training_rows_and_depend_on_one_class(self, worlds):
        world = worlds["gauss"]
        method, net = world.method("icis"), world.family.downstream
        lengths = method.space.standardise(world.data.targets[:, -1]).norm(dim=-1)
        norms = method.space.standardise(world.weights(method)).norm(dim=-1)
        torch.testing.assert_close(norms, lengths.mean().expand_as(norms), rtol=1e-3, atol=1e-3)
        cond = net.condition(world.batch.support, 3)
        moved = torch.cat([cond[:, :1], 2 * cond[:, 1:]], 1)
        with torch.no_grad():
            one, other = (method.net.decode_weights(method.net.encode_descriptor(c))[:, 0] for c in (cond, moved))
        torch.testing.assert_close(one, other)


class TestMetaHypernetwork:
    def test_a_step_of_a_linear_ones_code_is_a_step_along_w_w_transposed(self, worlds):
        world = worlds["gauss"]
        net, (support, _, mask, _) = world.family.downstream, world.batch
        g = torch.Generator().manual_seed(0)
        matrix, codes = torch.randn(7, 4, generator=g), torch.randn(40, 3, 4, generator=g)

        def weights(c):
            return c @ matrix.T

        moved = weights(inner_steps(net, codes, torch.tensor(0.1), support, mask, 1, weights))
        plain = inner_steps(net, weights(codes), torch.tensor(1.0), support, mask, 1, nn.Identity())
        gradient = weights(codes) - plain
        torch.testing.assert_close(moved, weights(codes) - 0.1 * gradient @ (matrix @ matrix.T), rtol=1e-4, atol=1e-5)

    def test_it_starts_near_theta_0_and_learns_all_its_parts(self, worlds):
        world = worlds["gauss"]
        units, learnt = 3, world.method("meta-hypernetwork").meta
        fresh = make_method("meta-hypernetwork", settings("meta-hypernetwork"))
        torch.manual_seed(0)
        start = fresh._make_meta(world.family.downstream.theta0(0, units))
        torch.testing.assert_close(start.hypernetwork[-1].bias.detach(), world.family.downstream.theta0(0, units).mean(0))
        assert all(not torch.equal(p, dict(start.named_parameters())[n]) for n, p in learnt.named_parameters())


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        *((name, {"training": {"meta": "reptile"}}, "trained in one level") for name in STORED),
        ("metadiff", {"steps": 0}, "steps = 0 must be in 1..T = 1000"),
        ("ocd-residual", {"T": 5}, "steps = 10 must be in 1..T = 5"),
        ("ocd-residual", {"width": 0}, "width = 0"),
        ("d2nwg", {"samples": 0}, "samples = 0 must be at least 1"),
        ("vae", {"width": 0}, "width = 0 must be at least 1"),
        ("icis", {"latent": 0}, "latent = 0"),
        ("meta-hypernetwork", {"code": -1}, "code = -1"),
    ],
)
def test_invalid_settings_are_refused(name, changes, message):
    with pytest.raises(McdiError, match=message):
        make_method(name, changes)
