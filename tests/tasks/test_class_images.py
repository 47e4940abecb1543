"""ClassImages refuses what is malformed."""

import pytest
import torch

from mcdi.errors import McdiError
from mcdi.tasks.images.class_images import ClassImages, split_alphabets, with_rotations

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
