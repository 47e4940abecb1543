"""Saved generators of other formats."""

import copy
import pickle

import pytest
import torch

from mcdi import Generator, OwnTasks, fit, load
from mcdi.errors import McdiError
from mcdi.generator.saving import FORMAT, load_method
from mcdi.methods import make_method
from mcdi.networks.linear_head import LinearHead
from mcdi.utils.files import read_json, read_tensors, write_json, write_tensors


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
    config = read_json(tmp_path / "config.json")
    assert config["format"] == FORMAT == 3
    write_json(tmp_path / "config.json", {**config, "format": saved})
    for read in (load, load_method):
        with pytest.raises(McdiError, match=message):
            read(tmp_path)


def test_copies_and_pickles():
    """As the content of files; a module of one's own goes along, since no file holds its code."""
    torch.manual_seed(0)
    x = torch.randn(6, 40, 2)
    y = (x[..., 0] > 0).long()
    own = fit(OwnTasks(torch.nn.Linear(2, 2), x, y, shots=3), settings={"training": {"iterations": 2}})
    drawings = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    for generator, support in ((own, (x[0], y[0])), (load("symbols"), (drawings, torch.tensor([0, 1, 0, 1])))):
        weights = generator.generate(support)
        for other in (copy.deepcopy(generator), pickle.loads(pickle.dumps(generator))):
            again = other.generate(support)
            assert all(torch.equal(again[n], w) for n, w in weights.items()) and other.network is not generator.network


def test_weights_from_a_file_answer_as_before(tmp_path):
    """A file of tensors has its names in order of the alphabet, which puts the bias first."""
    generator = Generator("prototypes", make_method("prototypes", {}), LinearHead(6, 3))
    x, y = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(6).remainder(3).expand(2, 6)
    for support, new in (((x[0], y[0]), x[1]), ((x, y), x)):
        weights = generator.generate(support)
        write_tensors(tmp_path / "w.safetensors", weights)
        read, _ = read_tensors(tmp_path / "w.safetensors")
        assert next(iter(weights)) == "weight"
        assert torch.equal(generator.predict(dict(sorted(read.items())), new), generator.predict(weights, new))
    with pytest.raises(McdiError, match="parameters missing: weight"):
        generator.predict({"bias": weights["bias"]}, x)
