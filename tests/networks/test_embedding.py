"""Tasks embedded by another network than the backbone: the condition reads that one only, heads read the backbone."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import mcdi
from safetensors.torch import load_file, save_file
from test_photos import RECIPE, as_folders, images
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, ResNetConfig, ResNetModel

import mcdi as package
from mcdi.errors import McdiError
from mcdi.experiments.recipe import read_recipe
from mcdi.experiments.run import load_family, make_family, read_run
from mcdi.methods import make_method
from mcdi.methods.mcdi.calibration import support_log_odds
from mcdi.networks.backbones.embedder import Embedder
from mcdi.networks.backbones.pretrained import ResNet, fetch
from mcdi.networks.backbones.vision import Conv4, ResNet8
from mcdi.networks.linear_head import LinearHead
from mcdi.tasks.episodes import FewShot
from mcdi.tasks.images import features
from mcdi.tasks.images.features import PhotoSettings
from mcdi.trajectories.prepare import Preparation, trajectories
from mcdi.trajectories.store import TrajectoryStore
from mcdi.types import Examples
from mcdi.utils.workers import silent

F, E = 6, 4  # features of the backbone, of the embedding
OTHER = {"means": {}, "spread": {"condition": "spread"}, "examples": {"condition": "examples", "examples": 3}}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labelled(x: Tensor) -> Examples:
    return Examples(x, torch.arange(3).repeat(len(x), 3))


@pytest.fixture
def x() -> Tensor:
    """Two tasks of nine examples, both networks' features."""
    return noise(2, 9, F + E)


class TestHead:
    @pytest.mark.parametrize("name", OTHER)
    def test_the_condition_is_that_of_the_embedding_alone(self, x, name):
        net, other = LinearHead(F, 3, embedding=E, **OTHER[name]), LinearHead(E, 3, **OTHER[name])
        found = net.condition(labelled(x), 3)
        assert torch.equal(found, other.condition(labelled(x[..., F:]), 3))
        assert net.condition_size == found.shape[-1] and net.summary_size == other.summary_size
        assert (net.input_size, net.space.D) == (F + E, F + 1)

    def test_heads_in_it_are_the_backbones(self, x):
        net, plain = LinearHead(F, 3, condition="heads", embedding=E), LinearHead(F, 3, condition="heads")
        found, rows = net.condition(labelled(x), 3), 2 * (F + 1)
        assert torch.equal(found[..., :rows], plain.condition(labelled(x[..., :F]), 3)[..., :rows])
        assert torch.equal(found[..., rows:], LinearHead(E, 3).condition(labelled(x[..., F:]), 3))
        assert net.condition_size == found.shape[-1]

    def test_every_head_reads_the_backbone_alone(self, x):
        net, plain = LinearHead(F, 3, embedding=E), LinearHead(F, 3)
        both, own = labelled(x), labelled(x[..., :F].contiguous())
        mask, weights = torch.ones(2, 3, dtype=torch.bool), noise(2, 3, F + 1, seed=1)
        changed = labelled(torch.cat([x[..., :F], noise(2, 9, E, seed=2)], -1))
        assert torch.equal(net.logits(weights, both.x, mask), net.logits(weights, changed.x, mask))
        torch.testing.assert_close(net.logits(weights, both.x, mask), plain.logits(weights, own.x, mask))
        torch.testing.assert_close(net.closed_form(both, 3), plain.closed_form(own, 3))
        torch.testing.assert_close(support_log_odds(net, weights, both, mask), support_log_odds(plain, weights, own, mask))
        many = weights[:, None]
        torch.testing.assert_close(net.blend_with_ridge(many, both, mask, 0.3), plain.blend_with_ridge(many, own, mask, 0.3))
        found = net.gradients(net.space.unpack(weights), both, mask)
        for name, slope in plain.gradients(plain.space.unpack(weights), own, mask).items():
            torch.testing.assert_close(found[name], slope)

    @pytest.mark.parametrize("name", ["prototypes", "linear-probe", "lda", "adaptive-plda", "adam"])
    def test_methods_without_a_condition_do_not_know_of_it(self, name):
        data = noise(5, 24, F + E)
        told = {n: {"test": b, "val": b, "train": b} for n, b in (("both", data), ("own", data[..., :F].contiguous()))}
        answers = []
        for n, net in (("both", LinearHead(F, 3, embedding=E)), ("own", LinearHead(F, 3))):
            family = FewShot("x", net, told[n], way=3, shots=(2,), queries=5)
            settings = {"adam": {"lrs": [0.03], "steps": [3], "decays": [0.0], "tasks": 4}}.get(name, {})
            method, batch = make_method(name, settings).fit(family, None, seed=0), family.sample("test", range(4))
            answers.append(method.generate(net, batch.support, batch.mask, seed=0))
        torch.testing.assert_close(*answers)

    def test_centred_tasks_are_so_in_both_and_heads_are_moved_in_one(self):
        data = {"test": noise(5, 24, F + E) + 3}
        net, other = LinearHead(F, 3, embedding=E, centred=True), LinearHead(E, 3, centred=True)
        batch = FewShot("x", net, data, way=3, shots=(2,), queries=5).sample("test", range(4))
        apart = {"test": data["test"][..., F:]}
        seen = FewShot("x", other, apart, way=3, shots=(2,), queries=5).sample("test", range(4))
        torch.testing.assert_close(net.condition(batch.support, 3), other.condition(seen.support, 3))
        weights, centre = noise(4, 3, F + 1), noise(4, 1, F + E, seed=1)
        moved = net.uncentre(weights, centre)
        torch.testing.assert_close(net.predict(moved, batch.query.x + centre), net.predict(weights, batch.query.x))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vision tower of a tiny CLIP, as a hub would hold it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    CLIPVisionModel(CLIPVisionConfig(**size, image_size=24, patch_size=8)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"size": {"shortest_edge": 24}, "crop_size": 24, "image_mean": [0, 0, 0]}'
    )
    return folder


class TestNetworks:
    def test_the_vision_tower_of_clip(self, clip):
        found, pixels = fetch(f"hf:{clip}"), torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
        model = CLIPVisionModel.from_pretrained(clip).eval()
        std = torch.tensor(found.described["pixels"]["std"])[:, None, None]
        with torch.no_grad():
            torch.testing.assert_close(found(pixels), model(pixels / std).pooler_output, rtol=1e-4, atol=1e-5)
        assert found.features == 16

    def test_a_resnet_of_bottlenecks(self, tmp_path):
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 2], layer_type="bottleneck")
        ResNetModel(config).save_pretrained(tmp_path)
        assert fetch(f"hf:{tmp_path}").features == 12

    def test_resnet101_has_as_many_weights_as_that_of_torchvision(self):
        with torch.device("meta"):
            assert sum(p.numel() for p in ResNet("resnet101").parameters()) == 44_549_160 - 2_049_000  # without its classifier

    def test_both_are_rebuilt_from_their_description(self, clip, tmp_path):
        save_file(ResNet("resnet18").state_dict(), tmp_path / "r.safetensors")
        for name in (f"hf:{clip}", f"torchvision:resnet18={tmp_path / 'r.safetensors'}"):
            one = Embedder(ResNet8(), 16, Embedder(fetch(name), 16))
            other = Embedder.from_config(json.loads(json.dumps(one.config())))
            other.load_state_dict(one.state_dict())
            x = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
            assert one.embedding is not None and one.shape == (3, 16, 16)
            torch.testing.assert_close(other(x), torch.cat([one.backbone_features(x), one.embedding(x)], -1))

    def test_drawings_are_shown_in_three_equal_colours(self, clip):
        both = Embedder(Conv4(), 16, Embedder(fetch(f"hf:{clip}"), 16))
        x = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
        assert both.shape == (1, 16, 16) and both.embedding is not None
        torch.testing.assert_close(both(x)[:, 64:], both.embedding(x.expand(-1, 3, -1, -1)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_folders(tmp_path_factory.mktemp("photos"), images())


SMALL = PhotoSettings(way=2, shots=(1,), queries=1, side=16, backbone_steps=3, backbone_loss="classes")


class TestFamily:
    def test_it_is_the_condition_of_a_family_with_that_backbone(self, data, tmp_path):
        """Trained here, with the next seed; the trajectories of the heads are those of the backbone."""
        made = {}
        for name, settings in (
            ("both", replace(SMALL, embedding="resnet8")),
            ("own", SMALL),
            ("other", replace(SMALL, backbone="resnet8", seed=1)),
        ):
            made[name] = make_family(settings, tmp_path / name, data=data, device="cpu", progress=silent)
        both, own, other = (made[n].downstream for n in ("both", "own", "other"))
        support = {n: family.sample("test", range(6)).support for n, family in made.items()}
        torch.testing.assert_close(both.condition(support["both"], 2), other.condition(support["other"], 2))
        assert (both.space.D, both.condition_size) == (own.space.D, other.condition_size) == (65, 3 * 128 + 3)
        how = Preparation(epochs=4, k=2)
        found = [trajectories(made[n], "train", range(4), how).targets for n in ("both", "own")]
        torch.testing.assert_close(*found)

    def test_stopped_while_the_second_is_trained(self, data, tmp_path, monkeypatch):
        settings = replace(SMALL, embedding="conv4")
        monkeypatch.setattr(features, "train_backbone", partial(features.train_backbone, checkpoint_every=1))

        def stop(name: str, done: int, total: int, figures: dict[str, float]) -> None:
            if (name, done) == ("embedding", 3):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make_family(settings, tmp_path / "a", data=data, device="cpu", progress=stop)
        assert (tmp_path / "a" / "embedding.checkpoint.safetensors").exists()
        for folder in ("a", "b"):
            make_family(settings, tmp_path / folder, data=data, device="cpu", progress=silent)
        found, want = (load_file(tmp_path / folder / "backbone.safetensors") for folder in ("a", "b"))
        assert found.keys() == want.keys() and all(torch.equal(found[n], want[n]) for n in want)
        assert not torch.equal(found["backbone.0.weight"], found["embedding.backbone.0.weight"])
        left = sorted(p.name for p in (tmp_path / "a").iterdir())
        assert left == ["backbone.safetensors", "features.safetensors", "logs"]
        assert {p.stem for p in (tmp_path / "a" / "logs").iterdir()} == {"backbone", "embedding"}


@pytest.fixture(scope="module")
def run(clip: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: heads on ResNet-8, embedded by CLIP, whose folder is gone."""
    place, folder = tmp_path_factory.mktemp("run"), shutil.copytree(clip, tmp_path_factory.mktemp("clip") / "gone")
    text = RECIPE.replace("[preparation]", f'embedding = "hf:{folder}"\n[preparation]')
    (place / "tiny.toml").write_text(text)
    assert mcdi("run", place / "tiny.toml", "--data", data, "--out", place / "run", "--workers", 1) == 0
    shutil.rmtree(folder)
    return place / "run"


class TestRun:
    def test_photos_in_a_head_of_the_backbone_out(self, run, data, tmp_path, capsys):
        model, test = run / "methods" / "mc-di-0", data / "test"
        out = tmp_path / "w.safetensors"
        assert mcdi("generate", model, "--support", test, "--out", out, "--query", test / "test-1") == 0
        assert len(capsys.readouterr().out.splitlines()) == 6
        weights = load_file(out)
        assert {n: tuple(w.shape) for n, w in weights.items()} == {"weight": (2, 128), "bias": (2,)}

    def test_what_is_saved_is_all_that_is_needed(self, run, tmp_path, monkeypatch):
        generator = package.load(run / "methods" / "mc-di-0")
        x, y = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
        assert generator.image_shape == (3, 16, 16)  # one of the two was trained on images of this side
        weights, features = generator.generate((x, y)), generator.embed(x)
        assert features.shape == (4, 128 + 16)
        assert all(torch.equal(w, weights[n]) for n, w in generator.generate((features, y)).items())
        want, embedder = generator.predict(weights, x), generator.network.embedder
        generator.save_pretrained(tmp_path)
        again = package.load(tmp_path)
        assert all(torch.equal(w, weights[n]) for n, w in again.generate((x, y)).items())
        assert embedder is not None and embedder.embedding is not None
        monkeypatch.setattr(embedder.embedding, "forward", None)  # queries never go through it
        assert torch.equal(generator.predict(weights, x), want)
        for given in (features, features[:, :128]):
            torch.testing.assert_close(generator.predict(weights, given), want)
        with pytest.raises(McdiError, match=r"nor features \(\.\.\., 144\)"):
            generator.generate((features[:, :128], y))

    def test_the_run_knows_both_networks(self, run):
        family = load_family(read_run(run).family, run)
        assert isinstance(family, FewShot) and family.examples["test"].shape[-1] == 144
        assert TrajectoryStore.open(run / "trajectories").read().targets.shape[-1] == 129

    def test_other_data_sets_go_through_both(self, run, tmp_path):
        place = Path(shutil.copytree(run, tmp_path / "run"))
        target = as_folders(tmp_path / "target", {"train": images()["train"]})
        command = ("transfer", run.parent / "tiny.toml", "--out", place, "--results", tmp_path, "--workers", 1)
        assert mcdi(*command, "--target", f"t={target / 'train'}", "--methods", "prototypes,mc-di") == 0
        assert load_file(place / "targets" / "t.safetensors")["features"].shape[-1] == 144
        assert "| mc-di |" in (tmp_path / "transfer-tiny.md").read_text()


class TestRefused:
    @pytest.mark.parametrize(
        ("family", "rest", "said"),
        [
            (
                'embedding = "resnet9"',
                "",
                "embedding = 'resnet9' is unknown: choose conv4, resnet8, efficientnet-lite0, hf:ID, timm:NAME, torchvision",
            ),
            ('network = "film-head"\nembedding = "hf:x"', "", "is for network = 'linear-head', not 'film-head': leave it out"),
            ('network = "conv-net"\nembedding = "hf:x"', "", "is for network = 'linear-head', not 'conv-net'"),
            ('data = "text"\nnetwork = "lora"\nembedding = "hf:x"', "", "family: unknown key 'embedding', there are data"),
            ('data = "sines"\nnetwork = "curve"\nembedding = "conv4"', "", "family: unknown key 'embedding', there are data"),
            (
                'backbone_steps = 0\nembedding = "conv4"',
                "",
                "is trained here, and backbone_steps = 0: choose a pretrained one",
            ),
            ('backbone = "resnet8"\nside = 8\nembedding = "conv4"', "", "side = 8 is too small for conv4"),
            (
                'data = "natural"\nbackbone = "hf:x"\nbackbone_steps = 0\nembedding = "hf:x"',
                "",
                "is the backbone already: leave it out",
            ),
            (
                'embedding = "resnet8"\ncondition = "heads"',
                'prior_input = "heads"\ndenoiser = "head-combiner"',
                "'head-combiner' reads heads alone, not features of another network: leave out embedding",
            ),
            ('embedding = "resnet8"', 'prior_input = "prototypes"', "are no heads of this one: set prior_input = 'summary'"),
        ],
    )
    def test_recipes(self, tmp_path, family, rest, said):
        (tmp_path / "r.toml").write_text(f'methods = ["mc-di"]\n[family]\n{family}\n[generator]\n{rest}\n')
        with pytest.raises(McdiError, match=said):
            read_recipe(str(tmp_path / "r.toml"))

    def test_a_file_that_is_missing(self, data, tmp_path, capfd):
        text = RECIPE.replace("[preparation]", f'embedding = "torchvision:resnet101={tmp_path / "none.pth"}"\n[preparation]')
        (tmp_path / "r.toml").write_text(text.replace("steps = 3", "steps = 1000000"))
        assert mcdi("run", tmp_path / "r.toml", "--data", data, "--out", tmp_path / "run") == 1
        assert "cannot be loaded" in " ".join(capfd.readouterr().err.split())
