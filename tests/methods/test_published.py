"""The autoencoder of weights, and generators of tasks whose features are centred."""

import pytest
import torch
from test_families import few
from worlds import GENERATOR, gaussian_features

from mcdi.errors import McdiError
from mcdi.generator.api import Generator
from mcdi.methods import make_method
from mcdi.methods.published.vae import kl_divergence
from mcdi.networks.backbones.embedder import Embedder
from mcdi.networks.backbones.vision import Conv4
from mcdi.networks.heads import as_head
from mcdi.networks.linear_head import LinearHead
from mcdi.networks.pixels import PixelNet
from mcdi.networks.support import centre_of
from mcdi.tasks.episodes import FewShot
from mcdi.tasks.images.features import ImageSettings, few_shot
from mcdi.trajectories.prepare import Preparation, trajectories
from mcdi.types import Examples


@pytest.fixture(scope="module")
def centred():
    family = FewShot("gauss", LinearHead(6, 3, centred=True), gaussian_features(), way=3, shots=(2,), queries=8)
    data = trajectories(family, "train", range(60), Preparation(tasks=60, epochs=30, k=3, lr=0.03))
    return Generator("mc-di", make_method("mc-di", GENERATOR).fit(family, data, seed=0), family.downstream), family


class TestCentred:
    """A generator of centred tasks does not depend on their position in feature space."""

    def test_centred_tasks_lie_around_their_support_set(self):
        plain, centred = few(), few(network=LinearHead(4, 3, centred=True))
        for shots in (1, 4):
            one, other = (f.sample("test", range(5), shots=shots) for f in (plain, centred))
            centre = one.support.x.mean(1, keepdim=True)
            torch.testing.assert_close(other.support.x, one.support.x - centre)
            torch.testing.assert_close(other.query.x, one.query.x - centre)
        torch.testing.assert_close(centred.training_data("val", [0, 1]).x.mean(1), torch.zeros(2, 4), rtol=0, atol=1e-2)

    def test_moved_features_get_the_moved_head(self, centred):
        generator, _ = centred
        g = torch.Generator().manual_seed(0)
        x, y, shift = torch.randn(2, 9, 6, generator=g), torch.arange(3).repeat(2, 3), 5 * torch.randn(2, 1, 6, generator=g)
        for sampling, spec in (({}, "bcf,bf->bc"), ({"ensemble": True, "samples": 2}, "bncf,bf->bnc")):
            plain, moved = (generator.generate((e, y), seed=0, **sampling) for e in (x, x + shift))
            torch.testing.assert_close(plain["weight"], moved["weight"], rtol=1e-3, atol=1e-4)
            want = plain["bias"] - torch.einsum(spec, plain["weight"], shift[:, 0])
            torch.testing.assert_close(moved["bias"], want, rtol=1e-3, atol=1e-3)
        logits = [generator.predict(generator.generate((e, y), temperature=0.0), e) for e in (x, x + shift)]
        torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)

    def test_a_saved_generator_centres_raw_features(self, centred, tmp_path):
        generator, family = centred
        batch, plain = (
            family.sample("test", range(20)),
            FewShot("gauss", LinearHead(6, 3), gaussian_features(), way=3, shots=(2,), queries=8),
        )
        raw = plain.sample("test", range(20))
        flat = generator.method.generate(family.downstream, batch.support, batch.mask, seed=0)
        want = family.downstream.predict(flat, batch.query.x)
        generator.save_pretrained(tmp_path)
        loaded = Generator.from_pretrained(tmp_path)
        assert loaded.network.centred
        predicted = loaded.predict(loaded.generate(raw.support, seed=0), raw.query.x)
        torch.testing.assert_close(predicted, want, rtol=1e-3, atol=1e-4)

    def test_the_centre_does_not_depend_on_the_number_of_examples(self):
        x, y = torch.randn(1, 6, 4), torch.tensor([[0, 0, 0, 0, 1, 2]])
        means = torch.stack([x[0, y[0] == c].mean(0) for c in range(3)])
        torch.testing.assert_close(centre_of(x, y, 3)[0, 0], means.mean(0))

    def test_a_recipe_turns_them_on(self):
        embedder = Embedder(Conv4(), 28)
        assert few_shot(ImageSettings(centred=True), embedder, {}).downstream.centred
        assert not few_shot(ImageSettings(), embedder, {}).downstream.centred
        with pytest.raises(McdiError, match="centred = True is for network = 'linear-head', not 'pixel-net'"):
            ImageSettings(network="pixel-net", centred=True).check()

    def test_other_networks_are_refused(self):
        with pytest.raises(McdiError, match="a pixel-net has no linear head: set centred = false"):
            as_head(PixelNet(2, 3, hidden=4), "set centred = false")


class TestVae:
    def test_the_divergence_is_torchs(self):
        g = torch.Generator().manual_seed(0)
        mean, log_variance = torch.randn(5, 3, 4, generator=g), torch.randn(5, 3, 4, generator=g)
        posterior, prior = (
            torch.distributions.Normal(m, s) for m, s in ((mean, (0.5 * log_variance).exp()), (torch.zeros(4), torch.ones(4)))
        )
        torch.testing.assert_close(
            kl_divergence(mean, log_variance), torch.distributions.kl_divergence(posterior, prior).sum(-1)
        )

    def test_the_code_adds_to_the_condition(self, worlds):
        """With z of the target itself the reconstruction is nearer to it than what z = 0 gives."""
        world = worlds["gauss"]
        method, net = world.method("vae"), world.family.downstream
        targets, batch = world.data.targets[:, -1], world.family.sample("train", world.data.seeds.tolist())
        cond = net.condition(batch.support, 3)
        theta = method.space.standardise(targets)
        with torch.no_grad():
            own, mean, _ = method.net(theta, cond, torch.zeros(60, 3, 4))
            middle = method.net.decode(torch.zeros_like(mean), cond)
        assert float((own - theta).square().mean()) < float((middle - theta).square().mean())

    def test_rows_follow_the_order_of_classes(self, worlds):
        world = worlds["gauss"]
        method, (support, _, mask, _) = world.method("vae"), world.batch
        net, new = world.family.downstream, torch.tensor([2, 0, 1])
        plain = method.generate(net, support, mask, seed=0)
        torch.testing.assert_close(method.generate(net, Examples(support.x, new[support.y]), mask, seed=0)[:, new], plain)
