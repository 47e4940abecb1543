"""Does an image bank keep what it is given, and refuse what it cannot be?"""

from pathlib import Path

import pytest
import torch

from mcdi.errors import McdiError
from mcdi.files import write_tensors
from mcdi.tasks.images import ImageBank, rotated, split_alphabets

NAMES = ("Greek/alpha", "Greek/beta", "Cree (East)/a")


def bank() -> ImageBank:
    images = torch.randint(0, 256, (3, 4, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageBank(images, NAMES)


def test_alphabets_are_the_parts_before_the_last_slash() -> None:
    assert bank().alphabets == ("Cree (East)", "Greek")


@pytest.mark.parametrize("images", [torch.zeros(3, 4, 8, 8), torch.zeros(3, 4, 8, dtype=torch.uint8)])
def test_refuses_images_of_another_kind(images: torch.Tensor) -> None:
    with pytest.raises(McdiError, match="uint8 images"):
        ImageBank(images, NAMES)


def test_refuses_images_that_are_not_square_and_names_that_do_not_fit() -> None:
    with pytest.raises(McdiError, match=r"\(3, 4, 8, 9\)"):
        ImageBank(torch.zeros(3, 4, 8, 9, dtype=torch.uint8), NAMES)
    for names in (NAMES[:2], ("Greek/alpha", "Greek/alpha", "Greek/beta")):
        with pytest.raises(McdiError, match="2 different names for 3 classes"):
            ImageBank(bank().images, names)


def test_rotated_adds_three_turned_copies() -> None:
    first, turned = bank(), rotated(bank())
    assert turned.images.shape == (12, 4, 8, 8)
    assert turned.names[:3] == NAMES
    assert turned.names[3::3] == ("Greek/alpha@90", "Greek/alpha@180", "Greek/alpha@270")
    assert turned.alphabets == first.alphabets
    for k in range(4):
        back = torch.rot90(turned.images[3 * k : 3 * k + 3], -k, dims=(2, 3))
        assert torch.equal(back, first.images)


def test_save_and_load_give_the_same_bank_and_leave_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bank.safetensors"
    bank().save(path)
    bank().save(path)
    loaded = ImageBank.load(path)
    assert loaded.names == NAMES
    assert torch.equal(loaded.images, bank().images)
    assert [p.name for p in path.parent.iterdir()] == ["bank.safetensors"]


def test_load_names_a_file_that_is_missing_corrupt_or_something_else(tmp_path: Path) -> None:
    with pytest.raises(McdiError, match="nowhere.safetensors does not exist"):
        ImageBank.load(tmp_path / "nowhere.safetensors")
    path = tmp_path / "bank.safetensors"
    bank().save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(McdiError, match=r"bank\.safetensors is not a readable"):
        ImageBank.load(path)
    for tensors, metadata in (({"a": bank().images}, {"names": NAMES}), ({"images": bank().images}, {"names": NAMES[:2]})):
        write_tensors(path, tensors, metadata)
        with pytest.raises(McdiError, match=r"bank\.safetensors is not an image bank"):
            ImageBank.load(path)


def test_split_alphabets_gives_the_largest_to_the_first_split_whatever_the_order() -> None:
    names = ["a/1", "b/1", "b/2", "b/3", "c/1", "c/2", "d/1"]
    expected = {"train": ("b", "c"), "val": (), "test": ("a", "d")}
    assert split_alphabets(names, {"train": 2, "val": 0, "test": 2}) == expected
    assert split_alphabets(names[::-1], {"train": 2, "val": 0, "test": 2}) == expected


@pytest.mark.parametrize("shares", [{"train": 1}, {"train": 2, "test": 1}, {"train": 3, "test": -1}, {}])
def test_split_alphabets_refuses_shares_that_do_not_add_up(shares: dict[str, int]) -> None:
    with pytest.raises(McdiError, match="must add up to the number of alphabets, 2"):
        split_alphabets(["a/1", "b/1"], shares)
