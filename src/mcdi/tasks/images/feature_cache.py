"""Features of pretrained backbones, kept by the content of the images: computed once for all runs, and resumable."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from mcdi.errors import McdiError
from mcdi.networks.backbones.pretrained import Pretrained
from mcdi.utils.files import read_tensors, write_tensors

FEATURES = "features-2"  # files of "features", of earlier versions, have no checksums


def cache_folder() -> Path:
    """MCDI_CACHE, or mcdi in the user's folder of caches. Everything in it can be deleted at any time."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mcdi"
    return Path(os.environ.get("MCDI_CACHE") or usual)


class FeatureCache:
    """Files of features below `folder`, one for every batch of images that went through a backbone.

    Args:
        backbone: its weights and its `described` decide where files lie.
        seen: hears of the number of images after every batch.
    """

    def __init__(self, backbone: Pretrained, folder: Path, seen: Callable[[int], None]) -> None:
        self.seen = seen
        digest = hashlib.sha256(repr(sorted(backbone.described.items())).encode())
        for name, tensor in backbone.state_dict().items():
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        self.folder = folder / FEATURES / digest.hexdigest()[:16]

    def __call__(self, images: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Features of images (N, 3, H, W), from disk or from `compute`, in float32 on the CPU."""
        content = images.detach().cpu().contiguous().numpy()
        name = hashlib.sha256(repr(content.shape).encode() + content.tobytes()).hexdigest()
        path = self.folder / name[:2] / f"{name}.safetensors"
        try:
            features = read_tensors(path)[0]["features"]
        except (McdiError, KeyError):  # absent or damaged: made again
            features = compute(images).float().cpu()
            write_tensors(path, {"features": features})
        self.seen(len(images))
        return features


@contextmanager
def caching(backbones: Iterable[object], device: str, seen: Callable[[int], None]) -> Iterator[None]:
    """Within the block pretrained ones among `backbones` compute on `device` and read and write the cache; `seen` hears of the
    images so far."""
    pretrained, total = [b for b in backbones if isinstance(b, Pretrained)], 0

    def count(images: int) -> None:
        nonlocal total
        total += images
        seen(total)

    for backbone in pretrained:
        backbone.cache = FeatureCache(backbone, cache_folder(), count)
        backbone.to(device)
    try:
        yield
    finally:
        for backbone in pretrained:
            backbone.cache = None
            backbone.cpu()
