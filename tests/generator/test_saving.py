"""Saved generators of other formats."""

import json

import pytest

from mcdi import Generator, load
from mcdi.errors import McdiError
from mcdi.generator.saving import FORMAT, load_method
from mcdi.methods import make_method
from mcdi.networks.linear_head import LinearHead


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (2, "is a generator of format 2, and this version of mcdi reads format 3: train it again"),
        (4, "is a generator of format 4, and .*: install the newer mcdi"),
        (None, "does not describe a generator of format 3"),
    ],
)
def test_other_formats(tmp_path, saved, message):
    Generator("prototypes", make_method("prototypes", {}), LinearHead(6, 3)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["format"] == FORMAT == 3
    (tmp_path / "config.json").write_text(json.dumps({**config, "format": saved}))
    for read in (load, load_method):
        with pytest.raises(McdiError, match=message):
            read(tmp_path)
