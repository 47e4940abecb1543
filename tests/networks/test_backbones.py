"""Backbones: their losses, their training that resumes, and features in every layout and precision."""

import math

import pytest
import torch
import torch.nn.functional as F

from mcdi.networks.backbones.embedder import Embedder, compute_features
from mcdi.networks.backbones.vision import BackboneLoss, Conv4, ResNet8, augmented, prototypical_loss, train_backbone
from mcdi.networks.linear_head import LinearHead


class TestBackbone:
    IMAGES = torch.randint(0, 256, (6, 7, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def test_prototypical_loss_by_hand(self):
        features = torch.tensor([[[0.0], [2.0], [1.0]], [[4.0], [6.0], [4.0]]])  # prototypes 1 and 5; queries 1 and 4
        expected = (math.log(1 + math.exp(-16)) + math.log(1 + math.exp(1 - 9))) / 2
        assert float(prototypical_loss(features, 2)) == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("objective", ["prototypes", "classes", "both"])
    def test_resumed_equals_uninterrupted(self, objective):
        how = {"steps": 6, "seed": 1, "way": 4, "checkpoint_every": 2, "objective": objective}

        def train(**given):
            torch.manual_seed(0)
            model = Conv4(width=8)
            return list(train_backbone(model, self.IMAGES, **how, **given)), model.state_dict()

        kept = {}
        losses, whole = train(
            checkpoint=lambda step, state: kept.update({step: {n: t.contiguous().clone() for n, t in state.items()}})
        )
        assert list(kept) == [2, 4, 6] and len(losses) == 6
        for step, state in kept.items():
            rest, resumed = train(start=(step, state))
            assert rest == losses[step:]
            assert all(torch.equal(resumed[n], t) for n, t in whole.items())

    def test_training_helps(self):
        centres = (torch.rand(6, 1, 1, 4, 4, generator=torch.Generator().manual_seed(1)) > 0.5).float() * 255
        images = F.interpolate(centres.flatten(0, 1), size=28).to(torch.uint8)[:, None].expand(-1, 7, -1, -1, -1)
        torch.manual_seed(0)
        for objective, steps in (("prototypes", 40), ("classes", 150), ("both", 150)):  # a classifier starts at zero
            losses = list(train_backbone(Conv4(width=8), images, steps=steps, seed=0, way=6, objective=objective))
            assert sum(losses[-5:]) < 0.5 * sum(losses[:5])

    @torch.no_grad()
    def test_the_loss_of_an_episode(self):
        features = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))  # of three of five classes
        classes = torch.tensor([4, 0, 2])
        losses = {o: BackboneLoss(o, 8, 5, shots=1) for o in ("prototypes", "classes", "both")}
        alone = {o: float(loss(features, classes)) for o, loss in losses.items()}
        assert alone["prototypes"] == pytest.approx(float(prototypical_loss(features, 1)))
        assert alone["classes"] == pytest.approx(math.log(5))  # it starts at zero
        for o in ("classes", "both"):
            losses[o].linear.weight.copy_(torch.randn(5, 8, generator=torch.Generator().manual_seed(1)))
        by_hand = F.cross_entropy(features.flatten(0, 1) @ losses["classes"].linear.weight.T, classes.repeat_interleave(4))
        assert float(losses["classes"](features, classes)) == pytest.approx(float(by_hand))
        assert float(losses["both"](features, classes)) == pytest.approx(alone["prototypes"] + float(by_hand), rel=1e-5)

    def test_the_classifier_draws_nothing(self):
        torch.manual_seed(3)
        BackboneLoss("both", 8, 5, 1)
        drawn = torch.rand(1)
        torch.manual_seed(3)
        assert torch.equal(drawn, torch.rand(1))

    def test_few_images_a_class(self):
        images = self.IMAGES[:, :3]  # less than 1 shot and 5 queries
        losses = list(train_backbone(Conv4(width=8), images, steps=2, seed=0, way=6))
        assert len(losses) == 2 and all(map(math.isfinite, losses))

    def test_features(self):
        model = Conv4(width=8)
        features = torch.cat([compute_features(model, self.IMAGES[i : i + 2]) for i in (0, 2, 4)])
        assert features.shape == (6, 7, 8) and not model.training and not features.requires_grad
        torch.testing.assert_close(features, compute_features(model, self.IMAGES))
        # Weights as a file holds them, of images whose one channel says nothing of an order: the first convolution is fast.
        seen: list[torch.Tensor] = []
        with model[0].register_forward_hook(lambda module, given, out: seen.append(out)):
            compute_features(model, self.IMAGES)
        assert all(out.is_contiguous(memory_format=torch.channels_last) for out in seen)
        embedder = Embedder(model)
        unit = embedder.fit(features)
        torch.testing.assert_close(embedder(self.IMAGES), unit)
        torch.testing.assert_close(unit.norm(dim=-1), torch.full((6, 7), 8**0.5))
        torch.testing.assert_close(embedder.mean, features.flatten(0, 1).mean(0))

    def test_both_networks_in_bfloat16(self):
        x = torch.randint(0, 256, (3, 2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        embedder = Embedder(ResNet8(), 16, Embedder(Conv4(3), 16)).eval()
        want, was = embedder(x), {n: t.clone() for n, t in embedder.state_dict().items()}
        embedder.in_bf16()
        got = embedder(x)
        assert got.dtype == torch.float32 and all(torch.equal(t, was[n]) for n, t in embedder.state_dict().items())
        for part in (slice(128), slice(128, None)):
            difference = (got - want)[..., part].norm() / want[..., part].norm()
            assert 1e-4 < float(difference) < 0.03
        net = LinearHead(128, 3, embedder)
        assert torch.equal(net.embed_query(x), got[..., :128])

    def test_augmented(self):
        images = self.IMAGES.flatten(0, 1).float() / 255
        a, b, c = (augmented(images, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
        assert a.shape == images.shape and torch.equal(a, b)
        assert bool((a != c).flatten(1).any(1).all()) and bool(((a >= 0) & (a <= 1)).all())

    def test_resnet8(self):
        for side in (8, 32, 33):
            assert ResNet8()(torch.rand(2, 3, side, side)).shape == (2, 128)
        assert compute_features(ResNet8(1), self.IMAGES).shape == (6, 7, 128)

    def test_augmented_colours(self):
        ramp = torch.linspace(0.3, 0.7, 16).expand(400, 3, 16, 16)  # brighter to the right
        a, b, c = (augmented(ramp, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
        assert a.shape == ramp.shape and torch.equal(a, b) and bool((a != c).flatten(1).any(1).all())
        assert bool(((a >= 0) & (a <= 1)).all())
        mirrored = a[..., :8].mean((1, 2, 3)) > a[..., 8:].mean((1, 2, 3))
        assert 0.4 < float(mirrored.float().mean()) < 0.6
        # No black border: grey stays one grey, at another brightness.
        flat = augmented(torch.full((50, 3, 16, 16), 0.5), torch.Generator().manual_seed(0))
        assert float(flat.flatten(1).std(1).max()) < 1e-5 and 0.29 < float(flat.min()) < float(flat.max()) < 0.71
