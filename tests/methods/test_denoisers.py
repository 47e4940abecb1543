"""The networks that denoise, and the linear map they start from."""

import pytest
import torch

from mcdi.errors import McdiError
from mcdi.methods.mcdi.denoisers import DENOISERS, make_denoiser
from mcdi.methods.mcdi.layers import SetAttentionBlock, attend
from mcdi.methods.mcdi.prior import LinearPrior


def inputs(batch=2, units=3, size=5, condition=4):
    g = torch.Generator().manual_seed(0)
    x, cond = torch.randn(batch, units, size, generator=g), torch.randn(batch, units, condition, generator=g)
    return x, torch.rand(batch, generator=g), cond, torch.ones(batch, units, dtype=torch.bool)


def awake(net):
    """The output layers begin at zero: give them something to say."""
    torch.manual_seed(1)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net


@pytest.mark.parametrize("kind", sorted(set(DENOISERS) - {"filters"}))  # which has tests of its own
@pytest.mark.parametrize(("units", "size"), [(1, 19), (3, 5)])
def test_shapes_and_what_the_output_depends_on(kind, units, size):
    x, t, cond, mask = inputs(units=units, size=size)
    extra = {}
    if kind == "cross":  # and two examples of every class
        cond, extra = torch.cat([cond, torch.ones(*cond.shape[:2], 2 * size)], -1), {"summary": cond.shape[-1], "examples": 2}
    if kind == "head-combiner":
        cond = torch.randn(*cond.shape[:2], 2 * size, generator=torch.Generator().manual_seed(1))
    net = awake(make_denoiser(kind, size, cond.shape[-1], units, width=16, **extra))
    out = net(x, t, cond, mask)
    assert out.shape == x.shape and bool(torch.isfinite(out).all())
    for other in ((x + 1, t, cond, mask), (x, t + 0.1, cond, mask), (x, t, cond + 1, mask)):
        assert not torch.allclose(net(*other), out)


@pytest.mark.parametrize("kind", ["transformer", "mlp"])
def test_a_new_denoiser_says_nothing(kind):
    net = make_denoiser(kind, 5, 4, 3, width=16)
    assert not bool(net(*inputs()).any())


def test_what_is_unknown_or_does_not_fit():
    with pytest.raises(McdiError, match="unknown denoiser 'gru': choose transformer, cross, head-combiner, filters, mlp"):
        make_denoiser("gru", 5, 4, 3)
    with pytest.raises(McdiError, match="'mlp' does not take these options.*heads"):
        make_denoiser("mlp", 5, 4, 3, heads=2)
    with pytest.raises(McdiError, match="piece = 0 must be at least 1"):
        make_denoiser("filters", 8, 16, 2, blocks=((2, 8),), shape=(14,), way=2, piece=0)
    with pytest.raises(McdiError, match=r"made for weights of shape \(3, 5\), not \(4, 5\)"):
        make_denoiser("mlp", 5, 4, 3)(*inputs(units=4))


def test_the_transformer_heeds_the_mask_and_the_order_only_when_told():
    x, t, cond, mask = inputs()
    mask[:, 2] = False
    poison = torch.tensor([0.0, 0.0, 50.0])[None, :, None]
    for ordered in (False, True):
        net = awake(make_denoiser("transformer", 5, 4, 3, width=16, ordered=ordered))
        out = net(x, t, cond, mask)
        torch.testing.assert_close(net(x + poison, t, cond + poison, mask)[:, :2], out[:, :2])
        everyone = torch.ones_like(mask)
        swapped = net(x.flip(1), t, cond.flip(1), everyone).flip(1)
        assert torch.allclose(swapped, net(x, t, cond, everyone), atol=1e-4) != ordered
    assert make_denoiser("transformer", 5, 4, 3, width=16)(*inputs(units=7)).shape == (2, 7, 5)  # any number of units


class TestHeadCombiner:
    def case(self, size=6, units=3):
        x, t, cond, mask = inputs(units=units, size=size, condition=2 * size)
        return awake(make_denoiser("head-combiner", size, 2 * size, units, width=16)), x, t, cond, mask

    def test_turned_weights_and_directions_give_turned_weights(self):
        net, x, t, cond, mask = self.case()
        turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2))).Q
        turned = net(x @ turn, t, (cond.unflatten(-1, (2, 6)) @ turn).flatten(-2), mask)
        torch.testing.assert_close(turned, net(x, t, cond, mask) @ turn, rtol=1e-4, atol=1e-4)

    def test_what_it_says_is_made_of_what_it_was_given(self):
        net, x, t, cond, mask = self.case(size=20)
        given = torch.cat([x, *cond.unflatten(-1, (2, 20)).unbind(2)], 1)  # 9 vectors of 20 numbers
        out = net(x, t, cond, mask)
        found = torch.linalg.lstsq(given.transpose(1, 2), out.transpose(1, 2)).solution
        torch.testing.assert_close((given.transpose(1, 2) @ found).transpose(1, 2), out, rtol=1e-3, atol=1e-3)

    def test_order_mask_and_size(self):
        net, x, t, cond, mask = self.case()
        torch.testing.assert_close(net(x.flip(1), t, cond.flip(1), mask).flip(1), net(x, t, cond, mask), rtol=1e-4, atol=1e-4)
        mask[:, 2] = False
        few = net(x[:, :2], t, cond[:, :2], mask[:, :2])
        torch.testing.assert_close(net(x, t, cond, mask)[:, :2], few, rtol=1e-4, atol=1e-4)
        assert net(torch.zeros(2, 4, 9), t, torch.zeros(2, 4, 18), torch.ones(2, 4, dtype=torch.bool)).isfinite().all()
        with pytest.raises(McdiError, match="heads of 6 numbers each, not 13"):
            make_denoiser("head-combiner", 6, 13, 3)


class TestLinearPrior:
    def test_recovers_a_linear_map(self):
        g = torch.Generator().manual_seed(0)
        cond, a = torch.randn(200, 3, 4, generator=g), torch.randn(9, 5, generator=g)
        mask = torch.rand(200, 3, generator=g) < 0.7
        mask[:, 0] = True
        mean = torch.stack([cond[n, mask[n]].mean(0) for n in range(200)])[:, None].expand(-1, 3, -1)
        z = torch.cat([cond, mean, torch.ones(200, 3, 1)], -1) @ a
        prior = LinearPrior(5, 4, 1)
        prior.fit([(torch.where(mask[..., None], z, torch.nan), cond, mask)], ridge=1e-9)  # masked-out units are never read
        torch.testing.assert_close(prior.matrix[0], a, rtol=1e-3, atol=1e-3)
        mean = prior(torch.zeros_like(z), torch.zeros(200, 1, 1), prior.mean_of_weights(cond, mask))  # bar = 0: x says nothing
        torch.testing.assert_close(mean[mask], z[mask], rtol=1e-3, atol=1e-3)

    def test_one_map_a_unit_where_units_differ(self):
        g = torch.Generator().manual_seed(1)
        cond = torch.randn(300, 1, 4, generator=g).expand(-1, 2, -1)
        z = torch.stack([cond[:, 0] @ torch.randn(4, 3, generator=g) for _ in range(2)], 1)
        prior = LinearPrior(3, 4, 2)
        whole = torch.ones(300, 2, dtype=torch.bool)
        prior.fit(zip(z.split(70), cond.split(70), whole.split(70), strict=True), ridge=1e-7)
        mean = prior(torch.zeros_like(z), torch.zeros(300, 1, 1), prior.mean_of_weights(cond, whole))
        torch.testing.assert_close(mean, z, rtol=1e-3, atol=1e-3)

    def test_parts_add_up_to_the_whole(self):
        g = torch.Generator().manual_seed(2)
        z, cond = torch.randn(90, 3, 2, generator=g), torch.randn(90, 3, 4, generator=g)
        mask = torch.rand(90, 3, generator=g) < 0.8
        mask[:, 0] = True
        whole, split = LinearPrior(2, 4, 1), LinearPrior(2, 4, 1)
        whole.fit([(z, cond, mask)])
        split.fit(zip(z.split(40), cond.split(40), mask.split(40), strict=True))
        torch.testing.assert_close(split.matrix, whole.matrix)
        torch.testing.assert_close(split.variance, whole.variance)
        mean = (cond * mask[..., None]).sum(1, keepdim=True) / mask[..., None].sum(1, keepdim=True)
        mean = torch.cat([cond, mean.expand_as(cond), torch.ones(90, 3, 1)], -1) @ whole.matrix[0]
        torch.testing.assert_close(whole.variance[0], (z - mean)[mask].square().mean(0))

    @pytest.mark.parametrize("bar", [0.0, 0.002, 0.5, 0.9, 1.0])
    def test_is_the_gaussian_posterior_mean(self, bar):
        """Against the integral of z p(z) p(x | z) over a fine grid."""
        prior = LinearPrior(1, 1, 1)
        prior.matrix.copy_(torch.tensor([[[0.7], [0.1], [-0.4]]]))
        prior.variance.fill_(0.3)
        cond, x = torch.tensor([[[0.5]]]), torch.tensor([[[1.1]]])
        mean = 0.7 * 0.5 + 0.1 * 0.5 - 0.4
        got = float(prior(x, torch.full((1, 1, 1), bar), prior.mean_of_weights(cond, torch.ones(1, 1, dtype=torch.bool))))
        if bar == 1.0:
            assert got == pytest.approx(1.1)
            return
        z = torch.linspace(-8, 8, 20001, dtype=torch.float64)
        log = -((z - mean) ** 2) / 0.6 - (1.1 - bar**0.5 * z) ** 2 / (2 * (1 - bar))
        assert got == pytest.approx(float((log.softmax(0) * z).sum()), abs=1e-4)


def test_set_attention_knows_their_own_class_and_read_no_empty_places():
    layer, g = awake(SetAttentionBlock(16, 2)), torch.Generator().manual_seed(0)
    h, there = torch.randn(2, 6, 16, generator=g), torch.ones(2, 1, 1, 6, dtype=torch.bool)
    pairs, threes = (torch.block_diag(*[torch.ones(n, n)] * (6 // n)) for n in (2, 3))
    out = layer(h, there, pairs)
    assert not torch.allclose(layer(h, there, threes), out, atol=1e-3)
    there[..., 5] = False
    poisoned = h.clone()
    poisoned[:, 5] = 50.0
    torch.testing.assert_close(layer(poisoned, there, pairs)[:, :5], layer(h, there, pairs)[:, :5])


@pytest.mark.parametrize("biased", [True, False])
def test_attention_is_that_of_torch(biased):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 4, generator=g) for n in (5, 6, 6))
    bias = torch.randn(2, 3, 5, 6, generator=g) if biased else torch.zeros(())
    exists = torch.rand(2, 1, 1, 6, generator=g) > 0.3
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.masked_fill(~exists, float("-inf")))
    torch.testing.assert_close(attend(q, k, v, exists, bias if biased else 0.0), fused.transpose(1, 2).flatten(2))
