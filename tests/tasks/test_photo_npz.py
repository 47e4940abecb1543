"""Photos as a .npz of encoded images: its splits of classes, broken files, and collections that are joined."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from test_photos import arrays, photo

from mcdi.errors import McdiError
from mcdi.tasks.images.files import read_image
from mcdi.tasks.images.photos import natural_images
from mcdi.types import SPLITS


@pytest.fixture
def packed() -> dict[str, np.ndarray]:
    """25 classes of two images, "25" to "1": their order is not that of their names."""
    return arrays({str(25 - c): [photo(2 * c + n, 9, 8) for n in range(2)] for c in range(25)})


class TestSplits:
    def test_an_npz_is_split_by_the_order_of_its_classes(self, packed, tmp_path):
        np.savez(tmp_path / "a.npz", **packed)
        got = natural_images(tmp_path / "a.npz", size=4)
        order = packed["classes"].tolist()
        parts = {"train": order[:16], "val": order[16:20], "test": order[20:]}
        assert {split: one.names for split, one in got.items()} == {s: tuple(sorted(n)) for s, n in parts.items()}
        first = read_image(memoryview(photo(10, 9, 8)), (3, 4, 4), "")  # of the class in place 5, "20"
        assert torch.equal(got["train"].images[got["train"].names.index("20"), 0], first)

    def test_an_npz_may_have_a_split_of_its_classes(self, packed, tmp_path):
        of = np.arange(25) % 3
        np.savez(tmp_path / "a.npz", **packed, class_split=of)
        got = natural_images(tmp_path / "a.npz", size=4)
        for number, split in enumerate(SPLITS):
            assert got[split].names == tuple(sorted(packed["classes"][of == number]))

    def test_labels_need_no_order(self, packed, tmp_path):
        np.savez(tmp_path / "a.npz", **packed)
        files = [packed["encoded"][a:b] for a, b in zip(packed["offset"][:-1], packed["offset"][1:], strict=True)]
        order = np.random.default_rng(0).permutation(25) * 2
        order = np.concatenate([order, order + 1])  # of a class, the first image still comes first
        mixed = np.concatenate([files[i] for i in order])
        offset = np.cumsum([0, *(len(files[i]) for i in order)])
        changed = {"encoded": mixed, "offset": offset, "label": packed["label"][order]}
        np.savez_compressed(tmp_path / "b.npz", **{**packed, **changed})
        one, two = (natural_images(tmp_path / name, size=4) for name in ("a.npz", "b.npz"))
        assert all(torch.equal(one[split].images, two[split].images) for split in SPLITS)


class TestRefusals:
    def refused(self, path: Path, message: str) -> None:
        with pytest.raises(McdiError, match=message):
            natural_images(path, size=4)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda a: a.pop("label"), "no .npz of images .*label.*: it needs encoded, offset, label, classes"),
            (lambda a: a.update(classes=a["classes"].astype(object)), "no .npz of images .*allow_pickle=False"),
            (lambda a: a.update(encoded=a["encoded"].astype(np.int64)), "damaged: encoded must be uint8"),
            (lambda a: a.update(label=a["label"] + 0.5), "damaged: encoded must be uint8, offset and label integers"),
            (lambda a: a.update(label=a["label"][None]), "damaged: its arrays must have one dimension"),
            (lambda a: a.update(label=a["label"][1:]), "damaged: 49 labels need one offset more than there are labels, not 51"),
            (lambda a: a["offset"].__setitem__(3, a["offset"][2]), "damaged: offset does not increase"),
            (
                lambda a: a.update(encoded=a["encoded"][:-1]),
                r"damaged: offset runs from 0 to (\d+), but encoded holds \d+ bytes",
            ),
            (lambda a: a["offset"].__setitem__(0, -1), "damaged: offset runs from -1 to"),
            (lambda a: a["label"].__setitem__(0, 25), "damaged: labels run from 0 to 25, but there are 25 classes"),
            (lambda a: a["label"].__setitem__(0, -1), "damaged: labels run from -1 to 24"),
            (lambda a: a["label"].__setitem__(slice(2), 2), "class 25 of the train split holds no image"),
            (lambda a: a["classes"].__setitem__(0, "3"), "damaged: two classes have the same name"),
            (lambda a: a.update(label=a["label"] % 9, classes=a["classes"][:9]), "9 classes, but of every 25 classes 16 are"),
            (lambda a: a.update(class_split=np.arange(24) % 3), "damaged: class_split must be 0, 1 or 2 for each of 25"),
            (lambda a: a.update(class_split=np.arange(25) % 4), "damaged: class_split must be 0, 1 or 2 for each of 25"),
            (lambda a: a.update(class_split=np.arange(25) % 2), "holds no classes for the test split"),
            (lambda a: a["encoded"].__setitem__(slice(0, 30), 0), "image 0 of class 25 cannot be read as an image"),
        ],
    )
    def test_npz(self, packed, tmp_path, change, message):
        packed = {name: array.copy() for name, array in packed.items()}
        change(packed)
        np.savez(tmp_path / "a.npz", **packed)
        self.refused(tmp_path / "a.npz", message)

    def test_no_npz(self, packed, tmp_path):
        np.savez(tmp_path / "a.npz", **packed)
        whole = (tmp_path / "a.npz").read_bytes()
        for data in (b"", b"\x80\x02 a pickle", whole[: len(whole) // 2], b"PK\x03\x04"):
            (tmp_path / "a.npz").write_bytes(data)
            self.refused(tmp_path / "a.npz", r"a\.npz is no .npz of images")
        with (tmp_path / "a.npz").open("wb") as file:
            np.save(file, packed["label"])
        self.refused(tmp_path / "a.npz", r"a\.npz is no .npz of images")
        (tmp_path / "b.npz").mkdir()
        self.refused(tmp_path / "b.npz", r"b\.npz is a folder: give the name of a file")


def test_collections_are_joined_and_unseen_classes_stay_unseen(tmp_path, monkeypatch, capsys):
    """Classes of the second file are for training, unless the first has them, or they are not for training there."""
    classes = {name: [photo(10 * c + n, 9, 8) for n in range(3)] for c, name in enumerate("abcdefgh")}
    for file, names, own in (("first", "abcd", [0, 1, 2, 0]), ("second", "acef", None), ("third", "egh", [0, 2, 0])):
        split = {} if own is None else {"class_split": np.array(own)}
        np.savez(tmp_path / f"{file}.npz", **arrays({n: classes[n] for n in names}), **split)
    out, script = tmp_path / "out.npz", Path(__file__).parents[2] / "scripts" / "join_photos.py"
    files = [str(tmp_path / f"{n}.npz") for n in ("first", "second", "third")]
    monkeypatch.setattr("sys.argv", ["join_photos.py", *files, "--out", str(out), "--examples", "2"])
    runpy.run_path(str(script), run_name="__main__")
    assert "14 images of classes for 5 train, 1 val, 1 test" in capsys.readouterr().out
    got = natural_images(out, size=8)
    assert {split: one.names for split, one in got.items()} == {"train": tuple("adefh"), "val": ("b",), "test": ("c",)}
    for one in got.values():
        for name, images in zip(one.names, one.images, strict=True):
            assert torch.equal(images, torch.stack([read_image(memoryview(f), (3, 8, 8), "") for f in classes[name][:2]]))
