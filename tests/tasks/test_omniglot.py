"""Omniglot is read as its authors split it; a broken copy is refused with the file's name and the cure."""

import hashlib
import io
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from damage import changed
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from mcdi.errors import McdiError
from mcdi.tasks.images import omniglot
from mcdi.tasks.images.class_images import ClassImages
from mcdi.tasks.images.omniglot import omniglot_images

REAL = Path(os.environ.get("MCDI_OMNIGLOT") or Path(__file__).parents[3] / "shared/data/omniglot")
PARTS = {"images_background": 30, "images_evaluation": 20}
Edit = Callable[[dict[str, bytes]], None]


@cache
def drawing(number: int) -> bytes:
    """A PNG as in Omniglot: white paper, black ink in a square whose place depends on the number."""
    image = Image.new("1", (105, 105), 1)
    ImageDraw.Draw(image).rectangle((3 * number, 15, 3 * number + 29, 44), fill=0)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def files(part: str) -> dict[str, bytes]:
    """The contents of a small archive: alphabets of one character each."""
    alphabets = [f"{part}/{chr(65 + a // 6)}{a % 6}/character01" for a in range(PARTS[part])]
    return {f"{folder}/0001_{n:02d}.png": drawing(n) for folder in alphabets for n in range(1, 21)}


def pack(folder: Path, edit: Edit = lambda contents: None) -> Path:
    """Both archives; `edit` changes the evaluation's contents first."""
    folder.mkdir(exist_ok=True)
    for part in PARTS:
        contents = files(part)
        if part == "images_evaluation":
            edit(contents)
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
            for name, data in contents.items():
                archive.writestr(name, data)
    return folder


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("official"))


@pytest.fixture(scope="module")
def real() -> dict[str, ClassImages]:
    if not (REAL / "images_background.zip").is_file():
        pytest.skip(f"no Omniglot in {REAL}: set MCDI_OMNIGLOT to the folder of its two archives")
    return omniglot_images(REAL)


def test_real_counts(real: dict[str, ClassImages]) -> None:
    assert {split: tuple(one.images.shape) for split, one in real.items()} == {
        "train": (786, 20, 28, 28),
        "val": (178, 20, 28, 28),
        "test": (659, 20, 28, 28),
    }
    assert [len(one.alphabets) for one in real.values()] == [25, 5, 20]
    assert real["val"].alphabets[2] == "Greek"
    assert "Tengwar" in real["test"].alphabets
    assert real["train"].names[0] == "Alphabet_of_the_Magi/character01"


def test_real_drawings_are_ink_on_paper(real: dict[str, ClassImages]) -> None:
    for one in real.values():
        ink = one.images.float() / 255
        assert (ink.amax((2, 3)) > 0.5).all()
        assert 0.05 < ink.mean() < 0.12
    everything = torch.cat([one.images[:, 0] for one in real.values()]).flatten(1)
    assert len(torch.unique(everything, dim=0)) == len(everything)


def test_real_characters(real: dict[str, ClassImages]) -> None:
    got = omniglot_images(REAL, split="characters")
    assert {split: len(one.names) for split, one in got.items()} == {"train": 1203, "val": 100, "test": 320}
    names = [name for one in got.values() for name in one.names]
    assert sorted(names) == sorted(name for one in real.values() for name in one.names)  # disjoint, and all there are
    assert len(got["train"].alphabets) == 50  # alphabets are shared
    drawings = {name: one.images[i] for one in real.values() for i, name in enumerate(one.names)}
    for one in got.values():
        assert all(torch.equal(one.images[i], drawings[name]) for i, name in enumerate(one.names))


def test_splits_by_the_places_of_the_sorted_alphabets(official: Path) -> None:
    got = omniglot_images(str(official), size=35)
    assert got["val"].alphabets == ("A4", "B3", "C2", "D1", "E0")
    assert len(got["train"].alphabets) == 25
    assert set(got["train"].alphabets).isdisjoint(got["val"].alphabets)
    assert got["test"].names[:2] == ("A0/character01", "A1/character01")


def test_ink_is_255_and_drawers_are_in_order(official: Path) -> None:
    images = omniglot_images(official, size=35)["test"].images  # a third of the side: every pixel is a mean of nine
    expected = torch.zeros(20, 35, 35, dtype=torch.uint8)
    for n in range(1, 21):
        expected[n - 1, 5:15, n : n + 10] = 255
    assert torch.equal(images, expected.expand(20, -1, -1, -1))


def test_an_unpacked_folder_gives_the_same(official: Path, tmp_path: Path) -> None:
    for part in PARTS:
        with zipfile.ZipFile(official / f"{part}.zip") as archive:
            archive.extractall(tmp_path)
    packed, loose = omniglot_images(official), omniglot_images(tmp_path)
    for split in packed:
        assert packed[split].names == loose[split].names
        assert torch.equal(packed[split].images, loose[split].images)


def drop_alphabet(contents: dict[str, bytes]) -> None:
    for name in [n for n in contents if "/B1/" in n]:
        del contents[name]


def drop_drawing(contents: dict[str, bytes]) -> None:
    del contents["images_evaluation/B1/character01/0001_07.png"]


def break_drawing(contents: dict[str, bytes]) -> None:
    contents["images_evaluation/B1/character01/0001_07.png"] = b"not an image"


def cut_drawing(contents: dict[str, bytes]) -> None:
    contents["images_evaluation/B1/character01/0001_07.png"] = drawing(7)[:-40]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop_alphabet, r"images_evaluation\.zip holds 19 alphabets instead of 20"),
        (drop_drawing, r"images_evaluation\.zip holds 19 drawings of B1/character01 instead of 20"),
        (break_drawing, r"B1/character01/0001_07\.png cannot be read as an image"),
        (cut_drawing, r"B1/character01/0001_07\.png cannot be read as an image"),
    ],
)
def test_refuses_an_incomplete_or_damaged_archive(edit: Edit, message: str, tmp_path: Path) -> None:
    with pytest.raises(McdiError, match=message):
        omniglot_images(pack(tmp_path / "data", edit))


def test_refuses_an_archive_that_is_no_zip_or_has_damaged_bytes(official: Path, tmp_path: Path) -> None:
    data = (official / "images_evaluation.zip").read_bytes()
    shutil.copy(official / "images_background.zip", tmp_path)
    place = data.index(drawing(7)[:60]) + 50
    for broken in (b"<html>not found</html>", data[: len(data) // 2], data[:place] + b"\0\xff\0\xff" + data[place + 4 :]):
        (tmp_path / "images_evaluation.zip").write_bytes(broken)
        with pytest.raises(McdiError, match=r"images_evaluation\.zip cannot be read"):
            omniglot_images(tmp_path)


STRANGE: dict[str, tuple[Callable[[zipfile.ZipInfo], object], str]] = {
    "encrypted": (lambda e: setattr(e, "flag_bits", e.flag_bits | 1), "is encrypted"),
    "link": (lambda e: setattr(e, "external_attr", 0o120777 << 16), "is a link or a device"),
    "device": (lambda e: setattr(e, "external_attr", 0o020666 << 16), "is a link or a device"),
    "bomb": (lambda e: setattr(e, "file_size", 2**30), "1,073,741,824 bytes, too many for a drawing"),
    "packer": (lambda e: setattr(e, "compress_type", 97), "cannot be read .*: delete it"),
}
PLACES = st.sampled_from(["/", "../", "a/../../", "C:/", "..\\\\", "\\\\\\\\host/", "a/../"])


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from([*STRANGE, "place", "twice"]), at=st.integers(0, 599), place=PLACES, data=st.data())
def test_refuses_strange_entries(kind: str, at: int, place: str, data: st.DataObject) -> None:
    """Nothing of an archive is unpacked to the disk, and none that holds such an entry is the official one."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two files of one name
        with zipfile.ZipFile(Path(name) / "images_background.zip", "w") as archive:
            for number, (entry, content) in enumerate(files("images_background").items()):
                strange = kind == "place" and number == at
                archive.writestr(f"{place}{data.draw(st.sampled_from(['x.png', 'y']))}" if strange else entry, content)
                if kind == "twice" and number == at:
                    archive.writestr(entry, content)
            message = {"place": "lies outside of the archive", "twice": "several files of one name"}.get(kind, "")
            if kind in STRANGE:
                change, message = STRANGE[kind]
                change(archive.infolist()[at])
        with pytest.raises(McdiError, match=rf"images_background\.zip.* {message}") as raised:
            omniglot_images(Path(name))
        assert "\n" not in str(raised.value) and os.listdir(name) == ["images_background.zip"]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_changed_archive_is_refused_or_gives_the_same(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        for part in PARTS:
            shutil.copy(small() / f"{part}.zip", name)
        path = Path(name) / "images_background.zip"
        path.write_bytes(changed(path.read_bytes(), data))
        try:
            found = omniglot_images(Path(name), size=8)
        except McdiError as error:
            assert "images_background.zip" in str(error) and "\n" not in str(error)
        else:  # dates and versions of packers are of no meaning
            whole = omniglot_images(small(), size=8)
            assert all(torch.equal(found[n].images, whole[n].images) and found[n].names == whole[n].names for n in whole)


@cache
def small() -> Path:
    return pack(Path(tempfile.mkdtemp()) / "small")


def test_refuses_a_folder_without_omniglot_and_no_folder_at_all(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(McdiError, match=rf"{folder.name} holds neither images_background\.zip nor images_background/"):
            omniglot_images(folder)
    with pytest.raises(McdiError, match="needs a folder"):
        omniglot_images(None)


def serve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let downloads come from a folder, whose archives count as the official ones."""
    sums = {part: hashlib.md5((folder / f"{part}.zip").read_bytes()).hexdigest() for part in PARTS}
    monkeypatch.setattr(omniglot, "URL", folder.as_uri() + "/")
    monkeypatch.setattr(omniglot, "CHECKSUMS", sums)


def test_downloads_what_is_missing_once(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(official, monkeypatch)
    target = tmp_path / "cache"
    first = omniglot_images(None, download_to=target)
    assert sorted(p.name for p in target.iterdir()) == ["images_background.zip", "images_evaluation.zip"]
    monkeypatch.setattr(omniglot, "URL", (tmp_path / "gone").as_uri() + "/")
    again = omniglot_images(None, download_to=target)
    assert all(torch.equal(first[split].images, again[split].images) for split in first)
    (target / "images_evaluation.zip").write_bytes(b"changed")
    with pytest.raises(McdiError, match=r"images_evaluation\.zip has the md5 .*: delete it: the same command fetches it anew"):
        omniglot_images(None, download_to=target)


def test_a_download_is_bounded(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(official, monkeypatch)
    monkeypatch.setattr(omniglot, "MOST_BYTES", 1000)
    with pytest.raises(McdiError, match=r"images_background\.zip has more than 1,000 bytes, .*: fetch it by hand"):
        omniglot_images(None, download_to=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_download_with_another_checksum_leaves_nothing(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(official, monkeypatch)
    monkeypatch.setitem(omniglot.CHECKSUMS, "images_background", "0" * 32)
    with pytest.raises(McdiError, match=r"images_background\.zip has the md5 \w+ instead of 0+: fetch it by hand into"):
        omniglot_images(None, download_to=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(omniglot, "URL", (tmp_path / "gone").as_uri() + "/")
    target = tmp_path / "cache"
    with pytest.raises(McdiError, match=r"gone/images_background\.zip cannot be downloaded .*: fetch it by hand into"):
        omniglot_images(None, download_to=target)
    assert not target.exists()
