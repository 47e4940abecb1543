"""Image files are read as they look, whatever took or saved them."""

import io
import sys
import types
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import nn

from mcdi.errors import McdiError
from mcdi.tasks.images.files import opened, read_image, read_images, scale_down

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8))


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

    @pytest.mark.parametrize("mode", ["I;16", "I"])
    def test_sixteen_bits(self, tmp_path, mode):
        ramp = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
        deep = Image.fromarray(ramp if mode == "I;16" else ramp.astype(np.int32))
        read = self.read(deep, tmp_path, (3, 8, 8), ".tif")
        assert (read[0].numpy() - ramp / 257 <= 0.5).all() and int(read.max()) == 255

    def test_values_of_an_unknown_range(self, tmp_path):
        for values in (np.full((8, 8), 0.5, np.float32), np.full((8, 8), 10**6, np.int32), np.full((8, 8), -1, np.int32)):
            with pytest.raises(McdiError, match="image has 32 bits a pixel, and what is white in it is unknown"):
                self.read(Image.fromarray(values), tmp_path, suffix=".tif")

    def test_broken_ones(self, tmp_path):
        whole = io.BytesIO()
        Image.effect_noise((40, 30), 50).save(whole, "JPEG")
        for data in (b"", b"no image", whole.getvalue()[:700], b"\x89PNG\r\n\x1a\n" + bytes(50)):
            (tmp_path / "x.png").write_bytes(data)
            for source in (tmp_path / "x.png", memoryview(data)):
                with pytest.raises(McdiError, match=r"^that cannot be read as an image: replace or remove it$"):
                    read_image(source, (3, 4, 4), "that")


class TestPhones:
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_a_photo_is_turned_as_the_camera_was_held(self, tmp_path, orientation):
        upright = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5)
        exif = Image.Exif()
        exif[0x0112] = orientation
        # How the sensor saw it: what turns it upright, undone.
        undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
        seen = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
        seen.save(tmp_path / "a.png", exif=exif)
        assert torch.equal(read_image(tmp_path / "a.png", (3, 4, 4), "a"), torch.from_numpy(np.array(upright)).permute(2, 0, 1))

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF")
    @settings(max_examples=60, deadline=None)
    @given(exif=st.binary(min_size=1, max_size=60), honest=st.booleans())
    def test_a_damaged_exif_block_is_no_reason_to_refuse(self, exif, honest):
        file = io.BytesIO()
        header = b"Exif\0\0II*\0\x08\0\0\0" if honest else b""
        Image.new("RGB", (9, 9), (200, 100, 50)).save(file, "JPEG", exif=header + exif)
        read = read_image(memoryview(file.getvalue()), (3, 4, 4), "a")
        assert float((read.float() - torch.tensor([200.0, 100, 50])[:, None, None]).abs().max()) <= 3

    def test_a_jpeg_is_decoded_at_a_fraction_of_its_size(self, tmp_path):
        """4,000 x 3,000 pixels at an eighth; and what is read is what scaling down the whole would give."""
        ramp = np.linspace(0, 255, 4000, dtype=np.float32)[None, :, None] * np.ones((3000, 1, 3), np.float32)
        photo = Image.fromarray(ramp.astype(np.uint8))
        photo.save(tmp_path / "a.jpg")
        with opened(tmp_path / "a.jpg") as file:
            scale_down(file, 224)
            assert file.size == (500, 375)
        read = read_image(tmp_path / "a.jpg", (3, 224, 224), "a").float()
        whole = ImageOps.fit(photo, (224, 224), Image.Resampling.BOX)
        assert float((read.permute(1, 2, 0) - torch.from_numpy(np.array(whole)).float()).abs().max()) <= 4

    def test_beyond_the_limit_of_pillow(self, tmp_path, monkeypatch):
        """Nothing is refused and nothing is warned of, and the limit of the process is as it was."""
        Image.new("RGB", (100, 100), "red").save(tmp_path / "a.jpg")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read_image(tmp_path / "a.jpg", (3, 4, 4), "a").shape == (3, 4, 4)
        assert Image.MAX_IMAGE_PIXELS == 1000

    def test_what_no_memory_holds(self, tmp_path):
        file = io.BytesIO()
        Image.new("L", (8, 8)).save(file, "PNG")
        data = bytearray(file.getvalue())
        data[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        (tmp_path / "a.png").write_bytes(data)
        with pytest.raises(McdiError, match="a.png has 60000 x 60000 pixels to decode: save it smaller, or as JPEG"):
            read_images(tmp_path, (3, 4, 4))

    def test_heic_with_its_package_and_without(self, tmp_path, monkeypatch):
        Image.new("RGB", (8, 8), "red").save(tmp_path / "a.heic", "PNG")  # what registers reads it
        stand_in = types.ModuleType("pillow_heif")
        called = []
        stand_in.register_heif_opener = lambda: called.append(1)
        monkeypatch.setitem(sys.modules, "pillow_heif", stand_in)
        images, paths = read_images(tmp_path, (3, 4, 4))
        assert called and images.shape == (1, 3, 4, 4) and paths[0].endswith("a.heic")
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
        with pytest.raises(McdiError, match="a.heic is in the HEIC format, which needs a package: pip install pillow-heif"):
            read_images(tmp_path, (3, 4, 4))

    @pytest.mark.filterwarnings("ignore")  # of Pillow, about what is damaged
    @settings(max_examples=100, deadline=None)
    @given(data=st.data(), form=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]))
    def test_no_damaged_file_is_read_with_another_error(self, data, form):
        file = io.BytesIO()
        NOISE.save(file, form)
        damaged = bytearray(file.getvalue())
        for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=8)):
            damaged[place] ^= data.draw(st.integers(1, 255))
        try:
            assert read_image(memoryview(bytes(damaged)), (3, 4, 4), "that").shape == (3, 4, 4)
        except McdiError as error:
            assert str(error).startswith("that ")
