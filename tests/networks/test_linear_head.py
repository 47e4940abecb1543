"""Closed-form heads: in the condition, and as the input of the prior."""

import torch
from tiny_models import PAIR, lora

from mcdi.methods.mcdi.prior import HeadPrior
from mcdi.networks.linear_head import LinearHead
from mcdi.networks.lora import LoraClassifier
from mcdi.networks.support import class_means, least_squares
from mcdi.types import Examples


class TestHeads:
    def test_the_condition_begins_with_heads_that_classify(self, models):
        """Their logits on the frozen model are those of least squares and of prototypes on its features."""
        net = LoraClassifier(lora(models), 2)
        states, y = net.read([*PAIR, *PAIR[::-1]]), torch.tensor([[0, 1, 0, 1, 1, 0]])
        net.set_feature_bank(states, torch.arange(6))
        rows = net.condition(Examples(states[None], y), net.space.U)[:, :2, : 2 * net.space.D].unflatten(-1, (2, -1))
        torch.testing.assert_close(
            rows.mean(1), torch.zeros_like(rows[:, 0]), rtol=0, atol=1e-5
        )  # nothing that all classes share
        features = net.pooled(states[None])[..., 0, :]
        for j in range(2):
            weights = torch.cat([rows[:, :, j], net.theta0(0, net.space.U)[None, 2:]], 1)
            got = net.predict(weights, states[None])
            if j == 0:
                found = least_squares(features, y, 2)
                want = features @ (found[..., :-1] / net.features).transpose(1, 2) + found[..., -1][:, None]
            else:
                means, _ = class_means(features, y, 2)
                want = -torch.cdist(features, means).square() / net.features
            torch.testing.assert_close(got.diff(dim=-1), want.diff(dim=-1), rtol=1e-3, atol=1e-4)

    def test_so_does_that_of_a_linear_head_where_asked(self):
        net, plain = LinearHead(6, 3, condition="heads"), LinearHead(6, 3)
        x, y = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(0)), torch.arange(3).repeat(2, 3)
        cond = net.condition(Examples(x, y), 3)
        assert cond.shape[-1] == net.condition_size == net.summary_size == plain.condition_size + 2 * 7
        assert torch.equal(cond[..., 14:], plain.condition(Examples(x, y), 3))
        squares, prototypes = cond[..., :14].unflatten(-1, (2, -1)).unbind(2)
        want = net.predict(net.closed_form(Examples(x, y), 3), x)
        torch.testing.assert_close(net.predict(squares, x).diff(dim=-1), want.diff(dim=-1), rtol=1e-4, atol=1e-5)
        means, _ = class_means(x, y, 3)
        want = -torch.cdist(x, means).square() / 6
        torch.testing.assert_close(net.predict(prototypes, x).diff(dim=-1), want.diff(dim=-1), rtol=1e-4, atol=1e-5)

    def test_the_prior_finds_the_numbers_of_the_heads(self):
        """One for a whole head, though its numbers are standardised one by one; what is no row is guessed where it starts."""
        g = torch.Generator().manual_seed(0)
        heads, z = torch.randn(40, 5, 2, 7, generator=g), torch.randn(40, 5, 7, generator=g)
        mean, std, start = torch.randn(7, generator=g), torch.rand(7, generator=g) + 0.5, torch.randn(2, 7, generator=g)
        noise = 0.1 * torch.randn(40, 3, 7, generator=g)
        z[:, :3] = (0.7 * heads[:, :3, 0] - 0.2 * heads[:, :3, 1] + noise - mean) / std
        mask = torch.ones(40, 5, dtype=torch.bool)
        mask[:10, 2], z[:10, 2] = False, 100.0  # a row that some tasks do not have
        prior = HeadPrior(7, 2, 3)  # three rows, two other units
        prior.set_statistics(mean, std, start)
        prior.fit([(z[:25], heads[:25].flatten(2), mask[:25]), (z[25:], heads[25:].flatten(2), mask[25:])])
        torch.testing.assert_close(prior.scale, torch.tensor([0.7, -0.2]), rtol=0.02, atol=0.02)
        guess = prior.mean_of_weights(heads.flatten(2), mask)
        rows = prior.scale[0] * heads[:, :3, 0] + prior.scale[1] * heads[:, :3, 1]
        torch.testing.assert_close(guess[:, :3] * std + mean, rows, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(guess[:, 3:], start.expand(40, -1, -1))
        missed = (z - guess).square()
        torch.testing.assert_close(prior.variance[0], missed[:, :3][mask[:, :3]].mean(0), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(prior.variance[1:], missed[:, 3:].mean(0), rtol=1e-3, atol=1e-3)
        local = torch.full((40, 1, 1), 1e-6)
        torch.testing.assert_close(prior(z, local, guess)[10:], guess[10:], rtol=2e-2, atol=2e-2)  # all noise: the guess

    def test_directions_are_the_heads_in_units_of_the_rows(self):
        prior = HeadPrior(3, 2, 1)
        prior.set_statistics(torch.ones(3), torch.tensor([1.0, 2.0, 4.0]), torch.zeros(0, 3))
        cond = torch.arange(12.0).reshape(1, 2, 6)
        assert torch.equal(prior.directions(cond), cond / torch.tensor([1.0, 2.0, 4.0] * 2))


def test_least_squares_in_bfloat16_solves_in_float32() -> None:
    """Under autocast products are of fewer digits; a linear system takes one type."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat(4)[None]
    x = torch.randn(1, 3, 8, generator=g).repeat(1, 4, 1) + 0.3 * torch.randn(1, 12, 8, generator=g)
    exact = least_squares(x, y, 3)
    with torch.autocast("cpu", torch.bfloat16):
        rough = least_squares(x, y, 3).float()
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.02 * float(exact.abs().max()))
