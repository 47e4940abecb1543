"""Features of pretrained backbones are computed once for the same images, whatever becomes of the process."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mcdi.networks.backbones.embedder import compute_features
from mcdi.networks.backbones.pretrained import Pretrained
from mcdi.tasks.images.feature_cache import cache_folder, caching

PIXELS = {"size": 8, "mean": [0.5] * 3, "std": [0.5] * 3}
IMAGES = torch.randint(0, 256, (70, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Counting(nn.Module):
    """A network that knows how many images it has read, and fails when told to."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net, self.read, self.left = nn.Linear(3 * 8 * 8, 5), 0, 1000

    def forward(self, x: Tensor) -> Tensor:
        self.read += len(x)
        if self.read > self.left:
            raise KeyboardInterrupt
        return self.net(x.flatten(1))


Make = Callable[..., tuple[Pretrained, Counting]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setenv("MCDI_CACHE", str(tmp_path / "cache"))

    def made(seed: int = 0, **described: object) -> tuple[Pretrained, Counting]:
        net = Counting(seed)
        out = Pretrained("hf:x", net, {"pixels": PIXELS, **described})
        net.read = 0
        return out, net

    yield made


def features(backbone: Pretrained, images: Tensor = IMAGES) -> Tensor:
    with caching([backbone], "cpu", lambda done: None):
        return compute_features(backbone, images)


def test_the_same_images_are_read_once(make: Make) -> None:
    backbone, net = make()
    plain = compute_features(backbone, IMAGES)
    net.read = 0
    assert torch.equal(features(backbone), plain) and net.read == 70
    assert torch.equal(features(make()[0]), plain) and torch.equal(features(backbone), plain) and net.read == 70
    backbone, net = make()
    assert torch.equal(features(backbone), plain) and net.read == 0
    assert backbone.cache is None  # whoever asks later is not answered from disk


def test_other_images_weights_or_pixels_are_others(make: Make) -> None:
    features(make()[0])
    changed = IMAGES.clone()
    changed[40, 0, 0, 0] += 1
    for backbone, images, read in [
        (make(), changed, 32),  # one batch of three
        (make(), IMAGES.mT.contiguous(), 70),
        (make(1), IMAGES, 70),
        (make(version=2), IMAGES, 70),
    ]:
        found = features(backbone[0], images)
        assert backbone[1].read == read
        assert torch.equal(found, compute_features(backbone[0], images))


def test_a_killed_job_goes_on(make: Make) -> None:
    backbone, net = make()
    net.left = 50
    with pytest.raises(KeyboardInterrupt):
        features(backbone)
    backbone, net = make()
    whole = features(backbone)
    assert net.read == 38
    assert torch.equal(whole, compute_features(backbone, IMAGES))


def test_a_damaged_file_is_made_again(make: Make) -> None:
    backbone, net = make()
    whole = features(backbone)
    (one, *_) = sorted(cache_folder().rglob("*.safetensors"))
    one.write_bytes(one.read_bytes()[:50])
    assert torch.equal(features(backbone), whole) and 70 < net.read < 140
    net.read = 0
    assert torch.equal(features(backbone), whole) and net.read == 0


def test_progress_counts_images(make: Make) -> None:
    heard: list[int] = []
    backbones = [make()[0], nn.Identity(), make(1)[0]]
    with caching(backbones, "cpu", heard.append):
        for backbone in backbones[::2]:
            compute_features(backbone, IMAGES)
    assert heard == [32, 64, 70, 102, 134, 140]


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MCDI_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("MCDI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert cache_folder() == tmp_path / "caches" / "mcdi"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "mcdi"
