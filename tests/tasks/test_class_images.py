"""ClassImages refuses what is malformed; image files are read as they look."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mcdi.errors import McdiError
from mcdi.tasks.images.class_images import ClassImages, read_image, split_alphabets, with_rotations

NAMES = ("Greek/alpha", "Greek/beta", "Cree (East)/a")


def drawings() -> ClassImages:
    images = torch.randint(0, 256, (3, 4, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ClassImages(images, NAMES)


def test_alphabets_are_the_parts_before_the_last_slash() -> None:
    assert drawings().alphabets == ("Cree (East)", "Greek")


@pytest.mark.parametrize("images", [torch.zeros(3, 4, 8, 8), torch.zeros(3, 4, 8, dtype=torch.uint8)])
def test_refuses_images_of_another_kind(images: torch.Tensor) -> None:
    with pytest.raises(McdiError, match="class images must be uint8"):
        ClassImages(images, NAMES)


def test_refuses_images_that_are_not_square_and_names_that_do_not_fit() -> None:
    with pytest.raises(McdiError, match=r"\(3, 4, 8, 9\)"):
        ClassImages(torch.zeros(3, 4, 8, 9, dtype=torch.uint8), NAMES)
    for names in (NAMES[:2], ("Greek/alpha", "Greek/alpha", "Greek/beta")):
        with pytest.raises(McdiError, match="2 different names for 3 classes"):
            ClassImages(drawings().images, names)


def test_rotated_adds_three_turned_copies() -> None:
    first, turned = drawings(), with_rotations(drawings())
    assert turned.images.shape == (12, 4, 8, 8)
    assert turned.names[:3] == NAMES
    assert turned.names[3::3] == ("Greek/alpha@90", "Greek/alpha@180", "Greek/alpha@270")
    assert turned.alphabets == first.alphabets
    for k in range(4):
        back = torch.rot90(turned.images[3 * k : 3 * k + 3], -k, dims=(2, 3))
        assert torch.equal(back, first.images)


def test_split_alphabets_gives_the_largest_to_the_first_split_whatever_the_order() -> None:
    names = ["a/1", "b/1", "b/2", "b/3", "c/1", "c/2", "d/1"]
    expected = {"train": ("b", "c"), "val": (), "test": ("a", "d")}
    assert split_alphabets(names, {"train": 2, "val": 0, "test": 2}) == expected
    assert split_alphabets(names[::-1], {"train": 2, "val": 0, "test": 2}) == expected


@pytest.mark.parametrize("shares", [{"train": 1}, {"train": 2, "test": 1}, {"train": 3, "test": -1}, {}])
def test_split_alphabets_refuses_shares_that_do_not_add_up(shares: dict[str, int]) -> None:
    with pytest.raises(McdiError, match="must add up to the number of alphabets, 2"):
        split_alphabets(["a/1", "b/1"], shares)


class TestImage:
    def read(self, image: Image.Image, tmp_path: Path, shape=(3, 4, 4), suffix: str = ".png") -> torch.Tensor:
        image.save(tmp_path / f"image{suffix}")
        read = read_image(tmp_path / f"image{suffix}", shape, "image")
        assert read.shape == shape and read.dtype == torch.uint8
        return read

    @pytest.mark.parametrize("turned", [False, True])
    def test_the_centre_is_kept_and_resized(self, tmp_path, turned):
        pixels = np.zeros((8, 14, 3), dtype=np.uint8)
        pixels[:, 3:11] = np.arange(1, 65).reshape(8, 8, 1) * (1, 2, 3)  # the central square; the rest is black
        pixels = pixels.swapaxes(0, 1).copy() if turned else pixels
        read = self.read(Image.fromarray(pixels), tmp_path)
        middle = torch.from_numpy(pixels[3:11] if turned else pixels[:, 3:11]).float().permute(2, 0, 1)
        expected = nn.functional.avg_pool2d(middle, 2)
        assert float((read.float() - expected).abs().max()) <= 1

    def test_a_small_image_is_enlarged(self, tmp_path):
        assert self.read(Image.new("RGB", (2, 3), (10, 20, 30)), tmp_path).flatten(1).unique(dim=1).tolist() == [
            [10],
            [20],
            [30],
        ]

    def test_a_large_jpeg_keeps_its_colours(self, tmp_path):
        read = self.read(Image.new("RGB", (400, 300), (200, 100, 50)), tmp_path, suffix=".jpg")
        assert float((read.float() - torch.tensor([200.0, 100, 50])[:, None, None]).abs().max()) <= 3

    @pytest.mark.parametrize(("mode", "suffix"), [("L", ".png"), ("1", ".png"), ("P", ".gif"), ("CMYK", ".jpg")])
    def test_other_modes(self, tmp_path, mode, suffix):
        image = Image.new("L", (8, 8), 255).convert("RGB").convert(mode)
        assert int(self.read(image, tmp_path, suffix=suffix).min()) >= 250
        assert int(self.read(image, tmp_path, (1, 4, 4), suffix=suffix).max()) <= 5  # paper

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
    def test_what_is_transparent_is_white(self, tmp_path, mode):
        image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
        image.paste((0, 0, 0, 255), (0, 0, 4, 8))  # its left half is black
        read = self.read(image.convert(mode), tmp_path)
        assert read[:, :, :2].eq(0).all() and read[:, :, 2:].eq(255).all()
        drawing = self.read(image.convert(mode), tmp_path, (1, 4, 4))
        assert drawing.flatten(1).unique().tolist() == [0, 255]

    def test_drawings_are_ink_on_paper(self, tmp_path):
        image = Image.new("RGB", (8, 8), "white")
        image.paste("black", (0, 0, 2, 8))
        dark = self.read(image, tmp_path, (1, 4, 4))
        assert dark[0, :, 0].eq(255).all() and dark[0, :, 1:].eq(0).all()

    def test_refuses_deep_and_broken_ones(self, tmp_path):
        deep = Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16))
        with pytest.raises(McdiError, match="image has 16 or 32 bits a pixel: save it with 8"):
            self.read(deep, tmp_path)
        whole = io.BytesIO()
        Image.effect_noise((40, 30), 50).save(whole, "JPEG")
        for data in (b"", b"no image", whole.getvalue()[:700], b"\x89PNG\r\n\x1a\n" + bytes(50)):
            (tmp_path / "x.png").write_bytes(data)
            for source in (tmp_path / "x.png", memoryview(data)):
                with pytest.raises(McdiError, match=r"^that cannot be read as an image: replace or remove it$"):
                    read_image(source, (3, 4, 4), "that")
