"""Places that are no files, that nobody may write to, and texts of every coding: read, written, or refused by their cause."""

import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import mcdi
from hypothesis import given, settings
from hypothesis import strategies as st

from mcdi import load
from mcdi.errors import McdiError
from mcdi.experiments.logs import read_log
from mcdi.experiments.recipe_files import read_tables
from mcdi.generator.exported import Exported
from mcdi.generator.ready_made import READY_MADE
from mcdi.tasks.images.files import read_image
from mcdi.tasks.images.photos import natural_images, npz_arrays
from mcdi.tasks.text.labelled import read_texts
from mcdi.trajectories.shards import read_index
from mcdi.utils.files import only_writer, read_json, read_tensors, read_text, write_bytes, write_json, write_tensors

CASES = settings(max_examples=60, deadline=None)
NOBODY = 65534


@contextmanager
def a_folder() -> Iterator[Path]:
    """One that every user may enter."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@contextmanager
def a_user() -> Iterator[None]:
    """Without the rights of root, to whom every file is open."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def fifo(path: Path) -> None:
    os.mkfifo(path)


PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "link": (lambda p: p.symlink_to(p.with_name("kept")), r"is a link to .*kept: name that file, or remove the link"),
    "dangling": (lambda p: p.symlink_to("nowhere"), "is a link to nowhere"),
    "fifo": (fifo, "is a device, a pipe or a socket: give the name of a file"),
    "folder": (lambda p: p.mkdir(), "is a folder: give the name of a file"),
    "read-only": (lambda p: (p.write_text("old"), p.chmod(0o444)), "no permission for .*file.bin: change its permissions"),
    "closed": (lambda p: p.parent.chmod(0o555), "no permission for .*: change its permissions"),
}


@CASES
@given(place=st.sampled_from(sorted(PLACES)), data=st.binary(max_size=9))
def test_what_is_no_file_of_ours_is_never_replaced(place: str, data: bytes) -> None:
    with a_folder() as root:
        folder = root / "in"
        folder.mkdir(mode=0o777)
        folder.chmod(0o777)
        (folder / "kept").write_text("kept")
        path = folder / "file.bin"
        make, message = PLACES[place]
        make(path)
        before = [(p.name, p.lstat().st_mode, p.lstat().st_ino) for p in sorted(folder.iterdir())]
        with a_user(), pytest.raises(McdiError, match=message):
            write_bytes(path, data)
        assert [(p.name, p.lstat().st_mode, p.lstat().st_ino) for p in sorted(folder.iterdir())] == before
        assert (folder / "kept").read_text() == "kept"
        folder.chmod(0o777)


def test_devices_stay_devices() -> None:
    for path in (Path("/dev/null"), Path("/dev/stdout")):
        with pytest.raises(McdiError, match=rf"{path} is a (device|link)"):
            write_bytes(path, b"x")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@CASES
@given(depth=st.integers(0, 3), kind=st.sampled_from(["file", "fifo", "dangling"]))
def test_a_folder_that_is_none(depth: int, kind: str) -> None:
    with a_folder() as root:
        wrong = root / "wrong"
        {"file": lambda p: p.write_text("kept"), "fifo": fifo, "dangling": lambda p: p.symlink_to("no")}[kind](wrong)
        path = wrong.joinpath(*"abc"[:depth], "x.bin")
        for call in (lambda: write_bytes(path, b""), lambda: only_writer(path).__enter__()):
            with pytest.raises(McdiError, match=f"{wrong} is not a folder: check the path"):
                call()
        assert sorted(p.name for p in root.rglob("*")) == ["wrong"]


@CASES
@given(mask=st.integers(0, 0o777), mode=st.none() | st.integers(0, 0o777).map(lambda m: m | 0o200))
def test_permissions(mask: int, mode: int | None) -> None:
    """Those of the umask for a new file; an old one keeps its own."""
    with a_folder() as root:
        path = root / "file.bin"
        if mode is not None:
            path.write_text("old")
            path.chmod(mode)
        before = os.umask(mask)
        try:
            write_bytes(path, b"new")
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == (0o666 & ~mask if mode is None else mode) and path.read_bytes() == b"new"


def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_else(tmp_path: Path) -> None:
    for name in (".0123.tmp", ".x.tmp"):
        (tmp_path / name).write_text("half")
    (tmp_path / "mine.tmp").write_text("a user's")
    write_bytes(tmp_path / "a", b"a")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "mine.tmp"]
    failed = []

    def write(number: int) -> None:
        for _ in range(20):
            try:
                write_bytes(tmp_path / f"{number % 3}", bytes([number]) * 99)
            except McdiError as error:
                failed.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and sorted(p.name for p in tmp_path.iterdir()) == ["0", "1", "2", "a", "mine.tmp"]
    assert all(len({*(tmp_path / f"{n}").read_bytes()}) == 1 for n in range(3))


READERS: dict[str, Callable[[Path], object]] = {
    "a.json": read_json,
    "a.safetensors": read_tensors,
    "a.csv": read_texts,
    "a.tsv": read_texts,
    "a.jsonl": read_texts,
    "a.toml": lambda p: read_tables(str(p)),
    "a.png": lambda p: read_image(p, (1, 8, 8), str(p)),
    "a.npz": lambda p: npz_arrays(p, ["label"]),
    "train.csv": lambda p: natural_images(p.parent, size=8),
    "a.onnx": Exported.load,
    "config.json": lambda p: load(p.parent),
    "model.safetensors": lambda p: load(p.parent),
    "index.json": lambda p: read_index(p.parent),
    "log.jsonl": read_log,
}


def fill(path: Path) -> None:
    if path.name in ("config.json", "model.safetensors"):
        shutil.copytree(READY_MADE / "photos", path.parent, dirs_exist_ok=True)
    write_json(path, {}) if path.suffix == ".json" else write_tensors(
        path, {}
    ) if path.suffix == ".safetensors" else path.write_text("")


@CASES
@given(name=st.sampled_from(sorted(READERS)), fault=st.sampled_from(["closed", "folder"]))
def test_what_cannot_be_read_is_told_by_its_cause(name: str, fault: str) -> None:
    """A file that is merely closed is never called damaged, nor is it to be deleted."""
    with a_folder() as root:
        path = root / name
        fill(path)
        if fault == "folder":
            path.unlink()
            path.mkdir()
        else:
            path.chmod(0)
        with a_user(), pytest.raises((McdiError, IsADirectoryError)) as raised:
            READERS[name](path)
        cause = f"no permission for {path}" if fault == "closed" else "folder"
        if (name, fault) not in {("a.onnx", "folder"), ("train.csv", "folder")}:  # they may be folders
            assert cause in str(raised.value) and "delete" not in str(raised.value)


@CASES
@given(
    text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(str.strip),
    coding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_texts_of_every_coding(text: str, coding: str, end: str) -> None:
    text = text.replace("\ufeff", "x")
    quoted = text.replace('"', '""')
    with a_folder() as root:
        for name, content in (
            ("a.toml", 'base = "glyphs"\nabout = ' + f"'{text.replace(chr(39), ' ')}'\n"),
            ("a.csv", f'text,label\n"{quoted}",a\n"{quoted}",b\n'),
            ("a.json", '{"x": 1}\n'),
        ):
            (root / name).write_bytes(content.replace("\n", end).encode(coding))
            assert read_text(root / name) == content
        assert read_tables(str(root / "a.toml"))["about"] == text.replace("'", " ")
        assert read_texts(root / "a.csv").texts == ((text.strip(),),) * 2
        with pytest.warns(UserWarning, match="without checksums"):
            assert read_json(root / "a.json") == {"x": 1}


@CASES
@given(data=st.binary(min_size=1, max_size=40))
def test_what_is_no_text_is_one_sentence(data: bytes) -> None:
    with a_folder() as root:
        for name in ("a.toml", "a.csv", "a.json"):
            (root / name).write_bytes(data)
            try:
                READERS[name](root / name)
            except McdiError as error:
                assert name in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("place", ["link", "fifo", "folder", "parent"])
def test_commands_say_so_before_their_work(
    place: str, tmp_path: Path, support: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept").write_text("kept")
    for n, (suffix, command) in enumerate(
        {
            ".safetensors": ["generate", "symbols", "--support", support, "--out"],
            ".onnx": ["generate", "symbols", "--support", support, "--out", tmp_path / "w.safetensors", "--network"],
            ".png": ["demo", "--out"],
            ".html": ["report", tmp_path, "--out"],
        }.items()
    ):
        wrong = tmp_path / f"wrong{n}{suffix}"
        if place == "parent":
            wrong.write_text("kept")
            wrong = wrong / f"x{suffix}"
        else:
            PLACES[place][0](wrong)
        capsys.readouterr()
        assert mcdi(*command, wrong) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and str(wrong) in error and len(error.splitlines()) == 1
        assert not (tmp_path / "w.safetensors").exists() and (tmp_path / "kept").read_text() == "kept"
