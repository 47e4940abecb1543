"""Folders of images as people have them: with files of the system, of tools, and of other kinds; and what is transparent."""

import io
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mcdi.errors import McdiError
from mcdi.tasks.images.files import IMAGE_SUFFIXES, fit_image, read_folder, read_image, read_images
from mcdi.tasks.images.photos import natural_images
from mcdi.tasks.images.public import public_images

tree = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
READ = [s for s in IMAGE_SUFFIXES if not s.startswith(".hei")]
FORMS = {".jpg": "JPEG", ".jpeg": "JPEG", ".jfif": "JPEG", ".jpe": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}
HIDDEN_FOLDERS = [
    ".ipynb_checkpoints",
    "__MACOSX",
    ".git",
    "@eaDir",
    ".thumbnails",
    "$RECYCLE.BIN",
    "System Volume Information",
    "#recycle",
    "@Recycle",
    "Network Trash Folder",
    "__pycache__",
]
HIDDEN_FILES = ["._a.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.jpg"]
OTHERS = ["notes.txt", "photo", "labels.csv", "a.svg", "b.mp4", "c.png.part"]
BELOW = ["", "deeper", "deeper/still"]
NAMES = st.text("abcäß 01-", min_size=1, max_size=4).map(str.strip).filter(bool)


def write(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data, FORMS.get(path.suffix.lower(), path.suffix[1:].upper() or "PNG"))
    path.write_bytes(data.getvalue())


class Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def told():
    handler = Messages()
    logging.getLogger("mcdi.images").addHandler(handler)
    yield handler.texts
    logging.getLogger("mcdi.images").removeHandler(handler)


@tree
@given(
    images=st.lists(st.tuples(NAMES, st.sampled_from(BELOW), st.sampled_from(READ), st.booleans()), min_size=1, max_size=4),
    hidden=st.lists(st.tuples(st.sampled_from(HIDDEN_FOLDERS), st.sampled_from(["", "cat", "cat/deeper"])), max_size=3),
    files=st.lists(st.tuples(st.sampled_from(HIDDEN_FILES), st.sampled_from(["", "cat", "dog"])), max_size=3),
    others=st.sets(st.tuples(st.sampled_from(OTHERS), st.sampled_from(["cat", "dog", "cat/deeper"])), max_size=3),
)  # fmt: skip
def test_one_rule_for_generating_and_for_training(tmp_path_factory, told, images, hidden, files, others):
    """What the user put there is read, at any depth; what others put there is neither a class nor an example."""
    folder, told[:] = tmp_path_factory.mktemp("pets"), []
    wanted = {}
    for seed, (name, below, suffix, upper) in enumerate(images):
        path = Path(below) / f"{name}{suffix.upper() if upper else suffix}"
        wanted[path] = seed
        for kind in ("cat", "dog"):
            write(folder / kind / path, seed)
    for name, where in hidden:
        write(folder / where / name / "z.png")
    for name, where in files:
        (folder / where).mkdir(exist_ok=True)
        (folder / where / name).write_bytes(b"no image")
    for name, where in others:
        (folder / where).mkdir(exist_ok=True, parents=True)
        (folder / where / name).write_bytes(b"no image")
    x, y, names = read_folder(folder, (3, 6, 6))
    assert names == ["cat", "dog"] and y.bincount().tolist() == [len(wanted)] * 2
    for n, path in enumerate(sorted(wanted)):
        alone = read_image(folder / "cat" / path, (3, 6, 6), "it")
        assert (x[n] == alone).all() and (x[len(wanted) + n] == alone).all()
    trained = public_images(folder, size=6)
    assert trained.names == ("cat", "dog") and (trained.images.flatten(0, 1) == x).all()
    queries, paths = read_images(folder / "dog", (3, 6, 6))
    assert (queries == x[len(wanted) :]).all() and [Path(p) for p in paths] == [folder / "dog" / p for p in sorted(wanted)]
    counted = [t for t in told if f"{folder}: {len(others)} files are not used" in t]
    assert len(counted) == (2 if others else 0)  # told once each by the two readers
    assert all(Path(name).suffix.lower() in counted[0] or not Path(name).suffix for name, _ in others)


def test_a_split_for_training_has_no_hidden_classes(tmp_path):
    splits = {"train": ("a", "b"), "val": ("c", "d"), "test": ("e", "f")}
    for split, classes in splits.items():
        for name in (*classes, *HIDDEN_FOLDERS):
            write(tmp_path / split / name / "1.png")
    assert {split: classes.names for split, classes in natural_images(tmp_path, size=4).items()} == splits


def test_files_beside_the_folders_of_classes_are_counted(tmp_path, told):
    for name in ("a/1.png", "b/1.png", "2.png", "3.png"):
        write(tmp_path / name)
    read_folder(tmp_path)
    assert told == [f"{tmp_path}: 2 files beside the folders of classes are not used"]
    (tmp_path / "d.png").mkdir()  # a folder, whatever its name
    with pytest.raises(McdiError, match="d.png holds no image files"):
        read_folder(tmp_path)


@settings(max_examples=80, deadline=None)
@given(
    colour=st.tuples(*[st.integers(0, 255)] * 3) | st.sampled_from([(0, 0, 0), (255, 255, 255)]),
    mode=st.sampled_from(["RGBA", "LA", "P", "RGB"]),
    channels=st.sampled_from([1, 3]),
    width=st.sampled_from([1, 3, 8]),
    opacity=st.sampled_from([255, 127, 40]),
)
def test_transparency_never_hides_what_is_drawn(colour, mode, channels, width, opacity):
    """A stroke of any one colour, faint or not, differs from its paper, whatever colour the transparent pixels hold."""
    opacity = opacity if mode in ("RGBA", "LA") else 255
    image = Image.new("RGBA", (16, 16), (*colour, 0))
    image.paste((*colour, opacity), (4, 0, 4 + width, 16))
    if mode == "P":
        image = image.convert("RGB").quantize(2)
        flat = np.zeros((16, 16), np.uint8)
        flat[:, 4 : 4 + width] = 1
        image = Image.fromarray(flat, "P")
        image.putpalette([*colour, *colour])
        image.info["transparency"] = 0
    elif mode == "RGB":  # one colour stands for what is transparent
        other = (colour[0], colour[1], colour[2] ^ 1)
        image = Image.new("RGB", (16, 16), other)
        image.paste(colour, (4, 0, 4 + width, 16))
        image.info["transparency"] = other
    else:
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, "PNG")
    read = read_image(memoryview(file.getvalue()), (channels, 16, 16), "it").int()
    stroke, paper = read[:, :, 4 : 4 + width], read[:, :, 14:]
    assert int((stroke[:, :, :1] - paper[:, :, :1]).abs().max()) >= 60 * opacity / 255 - 1
    if channels == 1:
        assert int(stroke.min()) > int(paper.max()) or width == 8


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_nothing_at_all_is_paper(mode):
    for channels, paper in ((1, 0), (3, 255)):
        assert fit_image(Image.new(mode, (9, 9)), (channels, 4, 4), "it").unique().tolist() == [paper]


def test_links_are_read_or_counted(tmp_path, told):
    for name in ("pets/a/1.png", "pets/b/1.png", "elsewhere/2.png"):
        write(tmp_path / name)
    pets = tmp_path / "pets"
    (pets / "c").symlink_to(tmp_path / "elsewhere")
    (pets / "a/file.png").symlink_to(tmp_path / "elsewhere/2.png")
    assert read_folder(pets)[1].tolist() == [0, 0, 1, 2] and told == []
    (pets / "a/deeper").symlink_to(pets / "a")
    (pets / "b/gone.png").symlink_to(tmp_path / "nowhere")
    assert read_folder(pets)[1].tolist() == [0, 0, 1, 2]
    assert "2 files are not used (1 broken links, 1 links to folders)" in told[0]


def test_black_and_white_on_nothing():
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste("black", (2, 2, 6, 14))
    image.paste("white", (10, 2, 14, 14))
    file = io.BytesIO()
    image.save(file, "PNG")
    read = read_image(memoryview(file.getvalue()), (3, 16, 16), "it").int()
    black, white, paper = read[0, 8, 4], read[0, 8, 12], read[0, 8, 8]
    assert min(abs(int(black - paper)), abs(int(white - paper)), abs(int(black - white))) > 60
