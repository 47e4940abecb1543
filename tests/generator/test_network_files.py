"""One generated network as a file: what it answers elsewhere is what it answers here."""

import json
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import mcdi
from hypothesis import HealthCheck, given, settings
from random_networks import plain_networks
from safetensors import safe_open
from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.generator.api import Generator
from mcdi.generator.c_header import c_header, rounded
from mcdi.generator.exported import onnx_run, onnx_session
from mcdi.generator.network_files import write_network
from mcdi.generator.plain import operations
from mcdi.methods import make_method
from mcdi.networks.backbones.embedder import Embedder
from mcdi.networks.backbones.pretrained import FEW, fetch
from mcdi.networks.backbones.vision import Conv4, NoBackbone
from mcdi.networks.conv_net import ConvNet
from mcdi.networks.film import FilmHead
from mcdi.networks.linear_head import LinearHead
from mcdi.networks.own import OwnNetwork

Drawn = tuple[nn.Sequential, tuple[int, ...], Tensor]
CLASSES = ["a", 'b "quoted"', "ß"]
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def generator(channels: int = 1, pixels: int = 14, way: int = 3) -> tuple[Generator, dict[str, Tensor]]:
    net = ConvNet(0, way, Embedder(NoBackbone(channels), 28), filters=4, side=pixels, channels=channels, head="prototypes")
    g = torch.Generator().manual_seed(0)
    weights = {n: torch.randn(*shape, generator=g) for n, (shape, _) in net.space.spec.items()}
    return Generator("protonet", make_method("protonet", {}), net), weights


def images(channels: int = 1) -> Tensor:
    return (torch.rand(5, channels, 28, 28, generator=torch.Generator().manual_seed(1)) * 255).to(torch.uint8)


def run_c(header: str, x: Tensor, folder: Path) -> Tensor:
    """Logits of uint8 images (N, ...) by the compiled header."""
    (folder / "network.h").write_text(header)
    (folder / "main.c").write_text(
        '#include <stdio.h>\n#include "network.h"\n'
        "int main(void) { static unsigned char x[MCDI_PIXELS]; float out[MCDI_CLASSES];\n"
        "while (fread(x, 1, MCDI_PIXELS, stdin) == MCDI_PIXELS) { mcdi_logits(x, out);\n"
        'for (int i = 0; i < MCDI_CLASSES; i++) printf("%.9g ", out[i]);\n'
        'printf("%d\\n", mcdi_classify(x)); } return 0; }\n'
    )
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    subprocess.run(["cc", *flags, "main.c", "-o", "main", "-lm"], cwd=folder, check=True)
    out = subprocess.run([folder / "main"], input=x.numpy().tobytes(), capture_output=True, check=True).stdout.decode()
    rows = torch.tensor([[float(v) for v in line.split()] for line in out.splitlines()])
    assert rows[:, -1].tolist() == rows[:, :-1].argmax(1).tolist()
    return rows[:, :-1]


@needs_compiler
@pytest.mark.parametrize(("channels", "pixels"), [(1, 14), (3, 7), (1, 28)])
def test_the_header_answers_as_the_network(channels: int, pixels: int, tmp_path: Path) -> None:
    made, weights = generator(channels, pixels)
    module = write_network(made, weights, CLASSES, tmp_path / "network.h")
    x = images(channels)
    expected = module(x.float() / 255)
    torch.testing.assert_close(expected, made.predict(weights, x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(run_c((tmp_path / "network.h").read_text(), x, tmp_path), expected, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_eight_bits_are_the_rounded_network_in_a_quarter_of_the_bytes(tmp_path: Path) -> None:
    made, weights = generator()
    coarse = {
        n: integers.float() * scale.reshape(-1, *[1] * (w.ndim - 1))
        for n, w in weights.items()
        if w.ndim > 1
        for integers, scale in [rounded(w)]
    }
    expected = made.network.standalone({**weights, **coarse})(images().float() / 255)
    write_network(made, weights, CLASSES, tmp_path / "small.h", int8=True)
    torch.testing.assert_close(run_c((tmp_path / "small.h").read_text(), images(), tmp_path), expected, rtol=1e-3, atol=1e-3)
    assert all(bool((coarse[n] - weights[n]).abs().max() <= weights[n].abs().max() / 254 + 1e-6) for n in coarse)


@needs_compiler
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=plain_networks())
def test_every_plain_network_answers_as_its_header(
    drawn: tuple[nn.Sequential, tuple[int, ...], Tensor], tmp_path: Path
) -> None:
    module, shape, x = drawn
    header = c_header(operations(module, shape), CLASSES)
    torch.testing.assert_close(run_c(header, x, tmp_path), module(x.float() / 255), rtol=1e-3, atol=1e-4)


@needs_compiler
def test_the_header_of_a_module_of_ones_own(tmp_path: Path) -> None:
    """Its images are tensors that no backbone reads."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    sizes: dict[str, Any] = {"example": (1, 6, 6), "target": (), "way": 3, "regression": False, "squeeze": False}
    net = OwnNetwork(module, **sizes, unit="filter")
    weights = {n: p.detach() for n, p in module.named_parameters()}
    write_network(Generator("protonet", make_method("protonet", {}), net), weights, CLASSES, tmp_path / "network.h")
    x = torch.randint(0, 256, (4, 1, 6, 6), dtype=torch.uint8)
    header = (tmp_path / "network.h").read_text()
    torch.testing.assert_close(run_c(header, x, tmp_path), module(x.float() / 255), rtol=1e-4, atol=1e-5)
    with pytest.raises(McdiError, match="no network of images in plain layers"):
        operations(nn.Linear(3, 2), (1, 6, 6))


class Twice(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Tanh(),
        Twice(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(3, stride=1),
        nn.MaxPool2d(2, dilation=2),
        nn.AvgPool2d(2, divisor_override=3),
        nn.Conv2d(2, 2, 3, groups=2),
        nn.Conv2d(2, 2, 3, dilation=2),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(2, 2, (1, 3)),
        nn.Conv2d(2, 2, 3, padding="same"),
        nn.GroupNorm(1, 2, affine=False),
        nn.Flatten(2),
        nn.Linear(6, 2),
    ],
    ids=str,
)
def test_layers_without_plain_code_are_refused(layer: nn.Module) -> None:
    with pytest.raises(McdiError, match="there is no plain code for"):
        operations(nn.Sequential(layer), (2, 6, 6))


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_other_files_answer_as_the_network(scale: float, tmp_path: Path) -> None:
    """Also where logits are large, and so is their rounding."""
    onnxruntime = pytest.importorskip("onnxruntime")
    made, weights = generator()
    weights |= {n: scale * w for n, w in list(weights.items())[-2:]}
    x = images().float() / 255
    for name in ("network.onnx", "network.pt2", "network.safetensors"):
        expected = write_network(made, weights, CLASSES, tmp_path / name)(x)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4 * scale)
    close(torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), expected)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == CLASSES
    close(torch.export.load(tmp_path / "network.pt2").module()(x), expected)
    with safe_open(tmp_path / "network.safetensors", "pt") as file:
        assert all(torch.equal(file.get_tensor(n), w) for n, w in weights.items())


@pytest.mark.parametrize(
    ("name", "int8", "match"), [("network.bin", False, "no kind of network file"), ("network.onnx", True, "8-bit weights")]
)
def test_what_cannot_be_written_is_said(name: str, int8: bool, match: str, tmp_path: Path) -> None:
    made, weights = generator()
    with pytest.raises(McdiError, match=match):
        write_network(made, weights, CLASSES, tmp_path / name, int8=int8)
    assert not list(tmp_path.iterdir())


def test_networks_that_need_their_backbone_say_so(tmp_path: Path) -> None:
    net = FilmHead(64, 3, Embedder(Conv4(), 28))
    with pytest.raises(McdiError, match="a film-head is no module by itself: use `mcdi export`"):
        write_network(Generator("prototypes", make_method("prototypes", {}), net), {}, CLASSES, tmp_path / "network.pt2")


@needs_compiler
def test_from_drawings_to_a_program(tmp_path: Path, support: Path) -> None:
    """`mcdi generate --network`: from image files to a header that classifies them."""
    made, _ = generator(way=2)
    method = make_method("protonet", {})
    method.start = made.network.theta0(0, made.network.space.U)  # type: ignore[attr-defined]
    Generator("protonet", method, made.network).save_pretrained(tmp_path / "model")
    header = tmp_path / "network.h"
    out = tmp_path / "weights.safetensors"
    assert mcdi("generate", tmp_path / "model", "--support", support, "--network", header, "--int8", "--out", out) == 0
    assert "mcdi_names" in header.read_text()
    for wrong in (["--int8"], ["--network", "network.bin"], ["--network", "a.onnx", "--int8"], ["--query", tmp_path / "none"]):
        out.unlink(missing_ok=True)
        assert mcdi("generate", tmp_path / "model", "--support", support, "--out", out, *wrong) == 1
        assert not out.exists()


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("backbone", ["conv4", "efficientnet-lite0"])
def test_a_head_and_its_backbone_are_one_file(backbone: str, suffix: str, tmp_path: Path) -> None:
    """From photos to logits, as many at once as one likes; a metric of the features is in it."""
    if backbone != "conv4":
        pytest.importorskip("efficientnet_lite_pytorch", reason="needs mcdi[photos]")
        embedder = Embedder(fetch(backbone), 256, metric_axes=3)
    else:
        embedder = Embedder(Conv4(3), 32, metric_axes=3)
    g = torch.Generator().manual_seed(0)
    for buffer in (embedder.mean, embedder.axes, embedder.gains, embedder.centre):
        buffer.copy_(0.1 * torch.randn(buffer.shape, generator=g))
    net = LinearHead(embedder.backbone.features, 3, embedder)
    made = Generator("prototypes", make_method("prototypes", {}), net)
    x = torch.randint(0, 256, (FEW + 1, *made.image_shape), generator=g, dtype=torch.uint8)
    weights = made.generate((x, torch.arange(FEW + 1) % 3))
    path = tmp_path / f"classifier{suffix}"
    write_network(made, weights, CLASSES, path)
    expected = made.predict(weights, x)
    if suffix == ".onnx":
        run = onnx_run(onnx_session(path.read_bytes()))
        out = {n: torch.cat([run({"images": p.float() / 255})["logits"] for p in x.split(n)]) for n in (1, FEW + 1)}
    else:
        module = torch.export.load(path).module()
        out = {n: torch.cat([module(p.float() / 255) for p in x.split(n)]) for n in (1, FEW + 1)}
    for answer in out.values():
        torch.testing.assert_close(answer, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    with pytest.raises(McdiError, match="no network of images in plain layers"):
        write_network(made, weights, CLASSES, tmp_path / "classifier.h")
    assert not (tmp_path / "classifier.h").exists()
