"""Saved generators: what the two files must hold, and files of other formats."""

import json

import pytest

from mcdi import Generator, load
from mcdi.errors import McdiError
from mcdi.generator.saving import FORMAT, load_method
from mcdi.methods import make_method
from mcdi.networks.linear_head import LinearHead


@pytest.fixture
def folder(tmp_path):
    Generator("prototypes", make_method("prototypes", {}), LinearHead(6, 3)).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (2, f"is a generator of format 2, and this version of mcdi reads format {FORMAT}: train it again"),
        (FORMAT + 1, f"is a generator of format {FORMAT + 1}, and .*: install the newer mcdi"),
        (None, f"does not describe a generator of format {FORMAT}"),
        ("3", f"does not describe a generator of format {FORMAT}"),
    ],
)
def test_other_formats(folder, saved, message):
    assert FORMAT == 3 and json.loads((folder / "config.json").read_text())["format"] == FORMAT
    config = {**json.loads((folder / "config.json").read_text()), "format": saved}
    (folder / "config.json").write_text(json.dumps(config))
    for read in (load, load_method):
        with pytest.raises(McdiError, match=message) as error:
            read(folder)
        assert "\n" not in str(error.value)
    (folder / "config.json").write_text("[]")
    with pytest.raises(McdiError, match="does not describe a generator"):
        load(folder)
