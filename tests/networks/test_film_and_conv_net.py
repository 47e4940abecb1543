"""FiLM that changes nothing changes nothing, rows follow their classes, a small Conv-4 is its weights, settings are refused."""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import RECIPE, mcdi, with_methods
from safetensors.torch import load_file

import mcdi as package
from mcdi.errors import McdiError
from mcdi.experiments.recipe import checked
from mcdi.methods import make_method
from mcdi.methods.baselines.closed_form import Prototypes
from mcdi.methods.baselines.finetune import adapt
from mcdi.methods.baselines.reptile import Reptile
from mcdi.methods.mcdi.prior import LinearPrior
from mcdi.networks import batched
from mcdi.networks.backbones.embedder import Embedder
from mcdi.networks.backbones.vision import Conv4, ResNet8
from mcdi.networks.base import Network
from mcdi.networks.conv_net import ConvNet
from mcdi.networks.film import FilmHead, film
from mcdi.networks.linear_head import LinearHead
from mcdi.networks.registry import build
from mcdi.types import Examples

G = torch.Generator().manual_seed(0)


def lively(side: int = 32) -> Embedder:
    """An embedder whose batch norms have statistics and affine maps of their own."""
    torch.manual_seed(0)
    embedder = Embedder(Conv4(3), side).eval()
    for module in embedder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for t in (module.weight, module.bias, module.running_mean, module.running_var):
                torch.nn.init.uniform_(t, 0.1, 1)
    embedder.mean.uniform_(0, 0.5)
    return embedder


def support(net: FilmHead, way: int, shots: int, batch: int = 2) -> Examples:
    x = torch.randn(batch, way * shots, net.input_size, generator=torch.Generator().manual_seed(1))
    return Examples(x, torch.arange(way).repeat(batch, shots))


class TestFilm:
    def test_by_hand(self):
        x = torch.tensor([[[1.0, -1.0, 3.0, -2.0]]])  # two pixels of two channels
        got = film(x, torch.tensor([[1.0, 0.0]]), torch.tensor([[-4.0, 1.5]]))
        assert got.tolist() == [[[(0 + 2) / 2, (0.5 + 0) / 2]]]

    def test_gradients_are_those_of_relu(self):
        x = torch.randn(3, 5, 8, generator=G)
        scale, shift = (torch.randn(3, 4, generator=G).requires_grad_() for _ in range(2))
        plain = F.relu(x.unflatten(-1, (2, 4)) * (1 + scale[:, None, None]) + shift[:, None, None]).mean(-2)
        torch.testing.assert_close(film(x, scale, shift), plain)
        weight = torch.randn(3, 5, 4, generator=G)
        for mine, theirs in zip(
            *(torch.autograd.grad((out * weight).sum(), (scale, shift)) for out in (film(x, scale, shift), plain)), strict=True
        ):
            torch.testing.assert_close(mine, theirs)


class TestFilmHead:
    @pytest.mark.parametrize(("side", "pixels"), [(28, 1), (32, 4)])
    def test_identity_is_the_linear_head_on_frozen_features(self, side, pixels):
        embedder = lively(side)
        net, head = FilmHead(64, 3, embedder), LinearHead(64, 3, embedder)
        images = torch.randint(0, 256, (2, 6, 3, side, side), dtype=torch.uint8, generator=G)
        x, features = net.embed(images), head.embed(images)
        assert x.shape == (2, 6, 64 * pixels) == (*images.shape[:2], net.input_size)
        assert float((x < 0).float().mean()) > 0.02  # before the ReLU
        torch.testing.assert_close(net.frozen_features(x), features, atol=1e-5, rtol=1e-5)
        rows = torch.randn(2, 3, 65, generator=G)
        weights = F.pad(rows, (0, 0, 0, 2))
        torch.testing.assert_close(net.predict(weights, x), head.predict(rows, features), atol=1e-4, rtol=1e-5)
        labels = torch.arange(3).repeat(2, 2)
        expected = head.condition(Examples(features, labels), 3)
        torch.testing.assert_close(
            net.condition(Examples(x, labels), 5)[:, :3, : net.class_size], expected, atol=1e-4, rtol=1e-4
        )
        changed = weights.clone()
        changed[:, 3] = 0.5
        assert not torch.allclose(net.predict(changed, x), net.predict(weights, x), atol=1e-2)

    def test_the_start_changes_nothing_and_knows_no_order(self):
        net = FilmHead(6, 4)
        for way in (2, 4, 9):
            start = net.theta0(0, net.space.units(way))
            assert start.shape == (way + 2, 7) and bool((start[way:] == 0).all())
            assert torch.equal(start[:way], LinearHead(6, 4).theta0(0, way))

    def test_computes_what_its_module_computes(self):
        net = FilmHead(6, 4, pixels=3)
        net.centre.uniform_(0, 1)
        weights, x = torch.randn(3, 6, 7, generator=G), torch.randn(3, 9, 18, generator=G)
        state = net.space.unpack(weights)
        assert {n: tuple(p.shape[1:]) for n, p in state.items()} == {
            "weight": (4, 6),
            "bias": (4,),
            "scale": (6,),
            "shift": (6,),
        }
        torch.testing.assert_close(net.predict(weights, x), batched.apply(net.module, state, x))

    def test_gradients_are_those_of_the_loss(self):
        net = FilmHead(6, 4, pixels=2)
        data = support(net, 3, 4)  # a task with fewer classes than the template
        mask = torch.ones(2, 5, dtype=torch.bool)
        weights = torch.randn(2, 5, 7, generator=G).requires_grad_()
        whole = torch.autograd.grad(net.loss(weights, data, mask).sum(), weights)[0]
        parts = net.gradients(net.space.unpack(weights.detach()), data, mask)
        torch.testing.assert_close(net.space.pack(parts), whole * (net.space.pack(parts) != 0))
        assert all(bool((g != 0).any()) for g in parts.values())

    def test_condition_rows_follow_the_classes_and_film_ignores_their_order(self):
        net = FilmHead(6, 4, pixels=2)
        data, new = support(net, 3, 4), torch.tensor([2, 0, 1])  # class c becomes class new[c]
        plain = net.condition(data, 5)
        renamed = net.condition(Examples(data.x, new[data.y]), 5)
        assert plain.shape == (2, 5, net.condition_size)
        torch.testing.assert_close(renamed[:, new], plain[:, :3], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(renamed[:, 3:], plain[:, 3:])
        flags = plain[..., -3:]
        assert flags[0].tolist() == [[1, 0, 0]] * 3 + [[0, 1, 0], [0, 0, 1]]
        block = net.class_size
        assert not plain[:, :3, block:-3].any() and not plain[:, 3:, :block].any() and plain[:, 3:, block:-3].any(-1).all()

    def test_condition_of_the_channels_by_hand(self):
        net = FilmHead(1, 2, pixels=2)
        x = torch.tensor([[[1.0, -2.0], [3.0, 1.0], [-1.0, -1.0], [4.0, 4.0]]])
        seen = [0.5, 2.0, 0.0, 4.0]  # mean of the ReLU over pixels
        got = net.condition(Examples(x, torch.tensor([[0, 0, 1, 1]])), 4)[0, 2, net.class_size : -3]
        means = (seen[0] + seen[1]) / 2, (seen[2] + seen[3]) / 2
        within = sum((s - means[i // 2]) ** 2 for i, s in enumerate(seen)) / 4
        expected = [sum(means) / 2, abs(means[0] - means[1]) / 2, within**0.5, 5 / 8, 9 / 8]
        torch.testing.assert_close(got, torch.tensor(expected))

    def test_prototypes_leave_features_alone(self):
        net = FilmHead(6, 4, pixels=2)
        data = support(net, 3, 4)
        made = Prototypes().generate(net, data, torch.ones(2, 5, dtype=torch.bool), seed=0)
        head = Prototypes().generate(
            LinearHead(6, 4), Examples(net.frozen_features(data.x), data.y), torch.ones(2, 3).bool(), seed=0
        )
        torch.testing.assert_close(made[:, :3], head)
        assert made.shape == (2, 5, 7) and not made[:, 3:].any()

    def test_weight_decay_leaves_features_alone(self):
        """Where the gradient is zero, decay draws FiLM to the features as they are."""
        net = FilmHead(6, 3)
        weights = F.pad(torch.zeros(1, 3, 7), (0, 0, 0, 2), value=1.0)  # rows of zeros: no gradient for FiLM
        data = support(net, 3, 4, batch=1)
        mask = torch.ones(1, 5, dtype=torch.bool)
        moved = adapt(net, weights, data, mask, 1, 0.01, decay=1.0)
        torch.testing.assert_close(moved[:, 3:], torch.full((1, 2, 7), 0.99))

    def test_a_learnt_start_serves_any_number_of_classes(self):
        net, method = FilmHead(6, 3), make_method("reptile", {})
        assert isinstance(method, Reptile)
        method.start = torch.randn(5, 7, generator=G)
        made = method.initial(net, 9)
        torch.testing.assert_close(made[:7], method.start[:3].mean(0).expand(7, -1))
        assert torch.equal(made[7:], method.start[3:]) and method.initial(net, 5) is method.start

    def test_round_trip_and_other_backbones(self):
        for net in (FilmHead(6, 4, pixels=3), FilmHead(64, 4, lively(32))):
            again = build(net.config(), net.state())
            assert again.config() == net.config() and again.space.config() == net.space.config()
        images = torch.randint(0, 256, (1, 4, 3, 32, 32), dtype=torch.uint8, generator=G)
        assert torch.equal(again.frozen_features(again.embed(images)), net.frozen_features(net.embed(images)))
        with pytest.raises(McdiError, match="last normalisation of conv4, not of resnet8: use conv4"):
            FilmHead(128, 4, Embedder(ResNet8(), 32))


def test_the_prior_has_one_map_for_rows_and_one_for_every_other_unit():
    size, inputs, rows = 3, 4, 5
    maps = torch.randn(3, inputs + 1, size, generator=G)  # rows, first and second extra unit
    prior = LinearPrior(size, inputs, 3)

    def tasks(way):
        cond = torch.randn(400, way + 2, inputs, generator=G)
        chosen = torch.cat([maps[:1].expand(way, -1, -1), maps[1:]])
        z = torch.einsum("bui,uid->bud", F.pad(cond, (0, 1), value=1.0), chosen)
        return z, cond, torch.ones(400, way + 2, dtype=torch.bool)

    z, cond, mask = tasks(rows)
    mask[::2, rows - 1] = False
    z[::2, rows - 1] = 1e3  # what is not there decides nothing
    prior.fit([(z, cond, mask)], ridge=1e-9)
    for way in (2, 5, 8):
        z, cond, mask = tasks(way)
        guess = prior.mean_of_weights(cond, mask)
        torch.testing.assert_close(guess, z, atol=1e-2, rtol=1e-2)
        assert torch.equal(prior(torch.zeros_like(z), torch.zeros(1, 1, 1), guess), guess)


class TestConvNet:
    def test_all_weights_and_nothing_else_decide_it(self):
        net = ConvNet(64, 5)
        assert net.space.parameters == 80 + 3 * 584 + 4 * 16 + 45 and net.space.buffers == ()
        weights, x = torch.randn(2, net.space.U, net.space.D, generator=G), torch.rand(2, 6, 196 + 64, generator=G)
        one = net.predict(weights, x)
        assert one.shape == (2, 6, 5)
        net.module.train()
        torch.testing.assert_close(net.predict(weights, x[:, :3]), one[:, :3])  # no batch statistics
        x[..., 196:] = 0
        torch.testing.assert_close(net.predict(weights, x), one)  # features are for the condition

    def test_the_start_has_norms_that_change_nothing(self):
        net = ConvNet(2, 3)
        state = net.space.unpack(net.theta0(0, net.space.U)[None])
        norms = [n for n in state if isinstance(net.module.get_submodule(n.rpartition(".")[0]), torch.nn.GroupNorm)]
        assert len(norms) == 8 and all(bool((state[n] == float(n.endswith("weight"))).all()) for n in norms)
        *layers, weight, bias = (state[n][0] for n in state if n not in norms)
        assert all(float(p.std()) > 0.01 for p in layers)
        assert float(weight.std()) > 0.01 and bool((weight == weight[0]).all()) and bool((bias == bias[0]).all())  # of classes

    def test_every_gradient_arrives(self):
        net = ConvNet(2, 3)
        data = Examples(torch.rand(2, 9, 198, generator=G), torch.arange(3).repeat(2, 3))
        state = net.space.unpack(net.theta0(0, net.space.U).expand(2, -1, -1))
        grads = net.gradients(state, data, torch.ones(2, net.space.U, dtype=torch.bool))
        assert all(bool((g != 0).any(1).any()) for g in (g.flatten(1) for g in grads.values()))


class TestSettings:
    @pytest.mark.parametrize(
        ("family", "message"),
        [
            (
                {"network": "conv-net", "side": 32},
                "conv-net reads drawings of a side that is a multiple of 14, not data = 'glyphs'",
            ),
            ({"network": "pixel-net", "data": "natural"}, "pixel-net reads drawings .*, not data = 'natural', side = 28"),
            ({"network": "pixel-net", "filters": 16}, "filters = 16 is for network = 'conv-net', not 'pixel-net'"),
            ({"network": "conv-net", "filters": 7}, "filters = 7 must be even"),
            ({"backbone": "none", "backbone_steps": 0}, "backbone = 'none' goes with conv-net and pixel-net"),
            ({"network": "conv-net", "backbone": "none"}, "0 steps and no embedding, not .* backbone_steps = 400"),
            ({"training_queries": 0}, "training_queries = 0 must be at least 1"),
            ({"network": "film-head", "backbone": "resnet8"}, "film-head adapts .* of conv4, not of backbone = 'resnet8'; use"),
            (
                {"backbone_data": "glyphs"},
                "backbone_data = 'glyphs' changes nothing where data = 'glyphs'; leave it out",
            ),
            (
                {"backbone_data": "glyphs", "data": "sines", "network": "curve"},
                "family: unknown key 'backbone_data', there are data, network",
            ),
            ({"backbone_data": "letters"}, "backbone_data = 'letters' should be 'same' or 'glyphs'"),
        ],
    )
    def test_refused(self, family, message):
        with pytest.raises(McdiError, match=message):
            checked({"name": "x", "family": family}, "x")

    def test_film_head_is_a_row_network_with_two_more_units(self):
        assert Network.classes(FilmHead(6, 4), 9) == 7 and Network.classes(ConvNet(6, 4), 4 * 8 + 4) == 4


@pytest.mark.parametrize("network", ["film-head", "conv-net"])
def test_a_run(tmp_path, network):
    """Prepared, every method trained and measured, saved, loaded, and made to serve images."""
    text = RECIPE.replace("way = 3", f'network = "{network}"\nway = 3').replace("epochs = 12", "epochs = 6")
    heads = [] if network == "conv-net" else ["prototypes", "linear-probe", "meta-baseline", "lda", "plda", "adaptive-plda"]
    methods = [*heads, "adam", "reptile", "maml", "vae", "hypernetwork", "mc-di"]
    (tmp_path / "r.toml").write_text(with_methods(text, *methods))
    assert mcdi("run", tmp_path / "r.toml", "--out", tmp_path / "run", "--workers", 1) == 0
    for name in methods:
        result = json.loads((tmp_path / "run" / "results" / f"{name}-0.json").read_text())
        assert 0 <= result["shots"]["1"]["mean"] <= 1
    features = load_file(tmp_path / "run" / "features.safetensors")
    assert features["test"].shape[-1] == {"film-head": 64, "conv-net": 196 + 64}[network]
    generator = package.load(tmp_path / "run" / "methods" / "mc-di-0")
    ways = (3, 5) if network == "film-head" else (3,)
    for way in ways:
        x = torch.randint(0, 256, (2 * way, 1, 28, 28), dtype=torch.uint8, generator=G)
        weights = generator.generate((x, torch.arange(way).repeat(2)))
        assert generator.predict(weights, x).shape == (2 * way, way)
        if network == "film-head":
            assert weights["weight"].shape == (way, 64) and weights["scale"].shape == (64,)
        refined = generator.refine((x, torch.arange(way).repeat(2)), weights, steps=1)
        assert all(refined[n].shape == w.shape for n, w in weights.items())
