"""Drawn characters of every split are new, different, whole, and the same for the same seed."""

from itertools import combinations
from pathlib import Path

import matplotlib
import pytest
import torch

from mcdi.errors import McdiError
from mcdi.tasks.images import glyphs
from mcdi.tasks.images.class_images import ClassImages
from mcdi.tasks.images.glyphs import glyph_images


@pytest.fixture(scope="module")
def few() -> dict[str, ClassImages]:
    return glyph_images(0, limit=30)


@pytest.fixture(scope="module")
def every() -> dict[str, ClassImages]:
    return glyph_images(0, examples=2)


def test_counts_and_scripts_of_the_splits(every: dict[str, ClassImages]) -> None:
    assert list(every) == ["train", "val", "test"]
    assert len(every["train"].names) >= 900
    assert len(every["val"].names) >= 80
    assert len(every["test"].names) >= 150
    assert every["train"].alphabets == ("ARABIC", "CANADIAN SYLLABICS", "CYRILLIC", "GEORGIAN", "LATIN", "MATHEMATICAL")
    assert every["val"].alphabets == ("ARMENIAN", "GREEK")
    assert every["test"].alphabets == ("HEBREW", "LAO", "NKO", "OGHAM", "OLD ITALIC", "TIFINAGH")


def test_characters_that_look_alike_in_two_scripts_are_kept_once_and_in_training(every: dict[str, ClassImages]) -> None:
    names = {name for one in every.values() for name in one.names}
    for kept, *dropped in (
        ("LATIN/U+0041", "GREEK/U+0391", "CYRILLIC/U+0410", "LATIN/U+1D00"),  # A, Alpha, Cyrillic A, small capital A
        ("LATIN/U+004F", "LATIN/U+006F", "GREEK/U+03BF", "CYRILLIC/U+041E", "HEBREW/U+05E1"),  # O, o, omicron, O, samekh
    ):
        assert kept in names
        assert names.isdisjoint(dropped)
    assert "LATIN/U+00C9" not in names  # precomposed accents
    assert "MATHEMATICAL/U+2219" not in names  # a dot


def test_every_drawing_is_ink_on_paper_within_the_margin(few: dict[str, ClassImages], every: dict[str, ClassImages]) -> None:
    for one in (*few.values(), *every.values()):
        ink = one.images.float() / 255
        assert ink.amax((2, 3)).min() > 0.4  # none is blank
        share = ink.mean((2, 3))
        assert share.min() > 0.005
        assert share.max() < 0.35  # nor a blot
        assert 0.04 < share.mean() < 0.1  # Omniglot's is 0.08
        edge = torch.cat([ink[..., 0, :], ink[..., -1, :], ink[..., 0], ink[..., -1]], dim=-1)
        assert (edge.amax(-1) > 0.5).float().mean() < 1e-3  # not cut off


def test_classes_differ_and_so_do_the_drawings_of_one(few: dict[str, ClassImages]) -> None:
    for one in few.values():
        flat = one.images.float().flatten(2)
        assert flat.shape[:2] == (30, 20)
        assert len(torch.unique(flat.flatten(0, 1), dim=0)) == 30 * 20
        means = flat.mean(1)
        assert torch.pdist(means).min() > 100
        # A drawing is nearer to its own class's mean than to most others': classes can be told apart, though not trivially.
        right = (torch.cdist(flat, means[None]).argmin(2) == torch.arange(30)[:, None]).float().mean()
        assert 0.3 < right < 0.98


def test_same_seed_same_drawings_with_any_number_of_threads(few: dict[str, ClassImages]) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        glyphs._characters.cache_clear()  # so that they are chosen again
        again = glyph_images(0, limit=30)
    finally:
        torch.set_num_threads(threads)
    other = glyph_images(1, limit=30)
    for split, one in few.items():
        assert one.names == again[split].names == other[split].names
        assert torch.equal(one.images, again[split].images)
        assert (one.images != other[split].images).flatten(2).any(2).all()  # every drawing is another


def test_limit_takes_classes_of_several_scripts_without_redrawing_them(few: dict[str, ClassImages]) -> None:
    for split, one in glyph_images(0, limit=15).items():
        assert len(one.names) == 15
        assert len(one.alphabets) > 1
        more = few[split]
        shared = set(one.names) & set(more.names)
        assert shared
        for name in shared:
            assert torch.equal(one.images[one.names.index(name)], more.images[more.names.index(name)])


def test_size_sets_the_side_and_the_pen_follows_it(few: dict[str, ClassImages]) -> None:
    for split, large in glyph_images(0, limit=30, examples=3, size=40).items():
        assert large.images.shape == (30, 3, 40, 40)
        shares = [float(one.images.float().mean()) for one in (few[split], large)]
        assert shares[0] == pytest.approx(shares[1], rel=0.15)


def test_names_a_font_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(McdiError, match=r"DejaVuSans\.ttf cannot be read"):
        glyph_images(0, limit=1)


def test_no_name_is_in_two_splits(every: dict[str, ClassImages]) -> None:
    for one, two in combinations(every.values(), 2):
        assert set(one.names).isdisjoint(two.names)
        assert set(one.alphabets).isdisjoint(two.alphabets)
