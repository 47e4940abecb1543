"""Other data sets as they are published, and heads for them from a run on other data."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import mcdi
from PIL import Image
from safetensors.torch import load_file, save_file
from test_photos import RECIPE, arrays, as_folders, images, photo

from mcdi.errors import McdiError
from mcdi.experiments.run import Context
from mcdi.experiments.studies import named_targets, transfer
from mcdi.experiments.studies.variants import Variant
from mcdi.methods import make_method
from mcdi.tasks.images.public import public_images

NAMES = ("bird", "cat")


def pictures(side: int, many: int = 4) -> np.ndarray:
    """(classes, many, side, side, 3)."""
    return np.random.default_rng(side).integers(0, 256, (2, many, side, side, 3), dtype=np.uint8)


def cifar10(path: Path, x: np.ndarray) -> None:
    (path / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    for file, part in (("data_batch_1", x[:, :2]), ("data_batch_2", x[:, 2:3]), ("test_batch", x[:, 3:])):
        rows = [bytes([c]) + one.transpose(2, 0, 1).tobytes() for c in range(2) for one in part[c]]
        (path / f"{file}.bin").write_bytes(b"".join(rows))


def cifar100(path: Path, x: np.ndarray) -> None:
    (path / "fine_label_names.txt").write_text("\n".join(NAMES))
    for file, part in (("train", x[:, :3]), ("test", x[:, 3:])):
        rows = [bytes([9, c]) + one.transpose(2, 0, 1).tobytes() for c in range(2) for one in part[c]]
        (path / f"{file}.bin").write_bytes(b"".join(rows))


def stl(path: Path, x: np.ndarray) -> None:
    (path / "class_names.txt").write_text("\n".join(NAMES))
    for file, part in (("train", x[:, :3]), ("test", x[:, 3:])):
        (path / f"{file}_X.bin").write_bytes(b"".join(one.transpose(2, 1, 0).tobytes() for c in range(2) for one in part[c]))
        (path / f"{file}_y.bin").write_bytes(bytes([c + 1 for c in range(2) for _ in part[c]]))


def aircraft(path: Path, x: np.ndarray) -> None:
    (path / "data/images").mkdir(parents=True)
    for c in range(2):
        for n, one in enumerate(x[c]):
            Image.fromarray(one).save(path / f"data/images/{c}{n}.png")
            (path / f"data/images/{c}{n}.png").rename(path / f"data/images/{c}{n}.jpg")  # a PNG inside: no loss
    lines = {
        part: [f"{c}{n} {NAMES[c]}" for c in range(2) for n in of]
        for part, of in (("trainval", range(3)), ("train", (0, 1)), ("test", (3,)))
    }
    for part, rows in lines.items():
        (path / f"data/images_variant_{part}.txt").write_text("\n".join(rows) + "\n")


def pets(path: Path, x: np.ndarray) -> None:
    (path / "images").mkdir()
    (path / "annotations").mkdir()
    (path / "annotations/list.txt").touch()
    for c in range(2):
        for n, one in enumerate(x[c]):
            Image.fromarray(one).save(path / f"images/{NAMES[c]}_{n}.png")


def folders(path: Path, x: np.ndarray) -> None:
    for c in range(2):
        for n, one in enumerate(x[c]):
            folder = path / ("train" if n < 3 else "test") / NAMES[c]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(one).save(folder / f"{n}.png")


class TestLayouts:
    @pytest.mark.parametrize(
        ("write", "side"), [(cifar10, 32), (cifar100, 32), (stl, 96), (aircraft, 20), (pets, 20), (folders, 20)]
    )
    def test_every_image_is_found_upright(self, tmp_path, write, side):
        x = pictures(side)
        write(tmp_path, x)
        got = public_images(tmp_path, size=side)
        assert got.names == NAMES and got.images.shape == (2, 4, 3, side, side)
        want = torch.from_numpy(x).permute(0, 1, 4, 2, 3)
        for c in range(2):
            assert {i.numpy().tobytes() for i in got.images[c]} == {i.contiguous().numpy().tobytes() for i in want[c]}
        assert public_images(tmp_path, size=8, examples=3).images.shape == (2, 3, 3, 8, 8)

    def test_npz_of_pixels_grey_or_coloured_and_of_files(self, tmp_path):
        x, label = pictures(12), np.repeat(np.arange(2), 4)
        flat = x.reshape(8, 12, 12, 3)
        np.savez(tmp_path / "colour.npz", image=flat, label=label, classes=np.array(NAMES))
        np.savez(tmp_path / "grey.npz", image=flat[..., 0], label=label, classes=np.array(NAMES))
        np.savez(tmp_path / "files.npz", **arrays({"bird": [photo(1), photo(2)], "cat": [photo(3), photo(4)]}))
        colour, grey, files = (public_images(tmp_path / f"{n}.npz", size=12) for n in ("colour", "grey", "files"))
        assert torch.equal(colour.images, torch.from_numpy(x).permute(0, 1, 4, 2, 3))
        assert torch.equal(grey.images, colour.images[:, :, :1].expand(-1, -1, 3, -1, -1))
        assert files.names == NAMES and files.images.shape[:2] == (2, 2)

    def test_what_is_wrong_is_said(self, tmp_path):
        def bad(said, change=lambda path: None, write=cifar10, side=32):
            path = tmp_path / str(len(list(tmp_path.iterdir())))
            path.mkdir()
            write(path, pictures(side))
            change(path)
            with pytest.raises(McdiError, match=said):
                public_images(path, size=8)

        bad("test_batch.bin holds 5 bytes, no number of records", lambda p: (p / "test_batch.bin").write_bytes(b"12345"))
        bad("batches.meta.txt does not exist", lambda p: (p / "batches.meta.txt").unlink())
        bad("has the label 1, and there are 1 names", lambda p: (p / "batches.meta.txt").write_text("bird"))
        bad("2 images and test_y.bin 1 labels", lambda p: (p / "test_y.bin").write_bytes(b"1"), stl, 96)
        bad("holds images of 1 classes", lambda p: [f.unlink() for f in p.rglob("cat_*")], pets, 20)
        bad("cannot be read as an image", lambda p: (p / "images/cat_0.png").write_text("no"), pets, 20)
        with pytest.raises(McdiError, match="does not exist"):
            public_images(tmp_path / "none", size=8)
        (tmp_path / "file.txt").touch()
        with pytest.raises(McdiError, match="neither a folder nor a .npz"):
            public_images(tmp_path / "file.txt", size=8)
        (tmp_path / "bad.npz").write_bytes(b"no")
        with pytest.raises(McdiError, match="is no .npz of images"):
            public_images(tmp_path / "bad.npz", size=8)
        np.savez(tmp_path / "float.npz", image=np.zeros((4, 8, 8)), label=np.arange(4), classes=np.array(NAMES))
        with pytest.raises(McdiError, match="image must be uint8"):
            public_images(tmp_path / "float.npz", size=8)


class TestTransfer:
    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (["cifar10"], "must be NAME=PATH"),
            (["../a=b"], "must be NAME=PATH"),
            (["a=b", "a=c"], "called a"),
            ([], "no data set"),
        ],
    )
    def test_targets_have_names(self, given, said):
        with pytest.raises(McdiError, match=said):
            named_targets(given)
        assert named_targets(["a=b=c"]) == {"a": Path("b=c")}

    def test_a_run_serves_data_it_never_saw(self, tmp_path, capfd, monkeypatch):
        (tmp_path / "tiny.toml").write_text(RECIPE)
        data, run = as_folders(tmp_path / "data", images()), tmp_path / "run"
        for name, write in (("one", cifar10), ("two", folders)):
            (tmp_path / name).mkdir()
            write(tmp_path / name, pictures(32))
        Image.fromarray(pictures(32)[0, 0]).save(tmp_path / "two/train/x.png")  # beside the folders: no class
        (tmp_path / "two/train/third").mkdir()
        for n in range(4):
            Image.fromarray(pictures(16)[0, n]).save(tmp_path / f"two/train/third/{n}.png")
        arguments = ("transfer", tmp_path / "tiny.toml", "--out", run, "--data", data, "--results", tmp_path, "--workers", 1)
        first = (*arguments, "--target", f"one={tmp_path / 'one'}", "--methods", "prototypes,mc-di")
        assert mcdi(*first) == 0
        paths = (tmp_path / "transfer-tiny.csv", run / "targets" / "one.safetensors")
        before = paths[0].read_bytes(), paths[1].stat().st_mtime_ns
        assert mcdi(*first) == 0 and (paths[0].read_bytes(), paths[1].stat().st_mtime_ns) == before  # embedded once
        assert mcdi(*first, "--target", f"two={tmp_path / 'two'}") == 0
        capfd.readouterr()
        assert mcdi(*arguments, "--target", f"one={tmp_path / 'two'}") == 1  # what is known of it is of other data
        assert "the target one of this run is" in " ".join(capfd.readouterr().err.split())
        rows = list(csv.DictReader((tmp_path / "transfer-tiny.csv").read_text().splitlines()))
        found = {(r["method"], r["target"], r["classes"], r["way"]) for r in rows}
        ways = {
            ("one", "as trained", "2"),
            ("one", "all classes", "2"),
            ("two", "as trained", "2"),
            ("two", "all classes", "3"),
        }
        assert found == {(m, *way) for m in ("prototypes", "mc-di") for way in ways}
        assert {r["shots"] for r in rows} == {"1", "2"}  # that of training, and twice as many
        assert "`mcdi transfer tiny`" in (tmp_path / "transfer-tiny.md").read_text()
        monkeypatch.setattr(transfer, "FIRST", 2)
        context, method = Context(run), make_method("prototypes", {})
        for name, count in (("p-diff", 2), ("prototypes", context.tasks)):
            measured = transfer.transferred(context, Variant({"method": name, "target": "two"}, name), method, 0)
            assert [len(row.scores) for row in measured] == [count] * len(measured) and context.tasks > 2
        features = load_file(run / "targets" / "two.safetensors")["features"]
        save_file({"features": features[:, :2].contiguous()}, run / "targets" / "few.safetensors")
        measured = transfer.transferred(context, Variant({"method": name, "target": "few"}, name), method, 0)
        assert {row.factors["shots"] for row in measured} == {1}
        capfd.readouterr()
        assert mcdi("reproduce", "transfer", tmp_path / "tiny.toml", "--out", run, "--results", tmp_path, "--workers", 1) == 1
        assert "mcdi transfer --target NAME=PATH, once or more" in " ".join(capfd.readouterr().err.split())

    def test_drawings_have_no_backbone_for_photos(self, recipe, copy, tmp_path, capfd):
        cifar10(tmp_path, pictures(32))
        assert mcdi("transfer", recipe, "--out", copy, "--results", tmp_path, "--target", f"c={tmp_path}", "--workers", 1) == 1
        assert "has no backbone of colour images" in " ".join(capfd.readouterr().err.split())
