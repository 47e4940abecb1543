"""Any change of a file that is read again is noticed, and the error names the file."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from damage import changed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import mcdi
from mcdi import Generator
from mcdi.errors import McdiError, McdiWarning
from mcdi.generator.ready_made import READY_MADE
from mcdi.methods import make_method
from mcdi.networks.linear_head import LinearHead
from mcdi.utils.checksums import CHECKSUM, checksum
from mcdi.utils.files import read_json, read_tensors, write_json, write_tensors

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9)
VALUES = st.recursive(
    SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3), max_leaves=8
)
NAMES = st.text(min_size=1, max_size=9).filter(lambda n: n not in (CHECKSUM, "__metadata__"))
TABLES = st.dictionaries(NAMES, VALUES, max_size=4)
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
TENSORS = st.dictionaries(
    NAMES,
    st.builds(lambda shape, dtype: torch.ones(shape).to(dtype), st.lists(st.integers(0, 3), max_size=3), DTYPES),
    max_size=4,
)
CASES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@CASES
@given(tensors=TENSORS, metadata=TABLES, data=st.data())
def test_a_changed_file_of_tensors(
    tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict, data: st.DataObject
) -> None:
    path = tmp_path / "some.safetensors"
    right = write_tensors(path, tensors, metadata)
    read, values = read_tensors(path)
    assert values == metadata and read.keys() == tensors.keys() == load_file(path).keys()
    assert all(torch.equal(read[n], t) and read[n].dtype == t.dtype for n, t in tensors.items())
    assert write_tensors(path, tensors, dict(reversed(metadata.items()))) == right  # the same bytes
    path.write_bytes(changed(right, data))
    with pytest.raises(McdiError, match=r"some\.safetensors "):
        read_tensors(path)


@CASES
@given(table=TABLES, data=st.data())
def test_a_changed_file_of_json(tmp_path: Path, table: dict, data: st.DataObject) -> None:
    path = tmp_path / "some.json"
    write_json(path, table)
    assert read_json(path) == table
    path.write_bytes(changed(path.read_bytes(), data))
    with pytest.raises(McdiError, match=r"some\.json "):
        read_json(path)


@CASES
@given(data=st.data())
def test_a_changed_generator(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "saved"
    Generator("prototypes", make_method("prototypes", {}), LinearHead(6, 3)).save_pretrained(folder)
    name = data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    (folder / name).write_bytes(changed((folder / name).read_bytes(), data))
    with pytest.raises(McdiError, match=name.replace(".", r"\.")):
        mcdi.load(folder)


def test_two_files_that_do_not_belong_together(tmp_path: Path) -> None:
    """Both are whole, and a kill came between the two."""
    for name, features in (("a", 6), ("b", 6)):
        generator = Generator("prototypes", make_method("prototypes", {}), LinearHead(features, 3))
        generator.save_pretrained(tmp_path / name)
    write_tensors(tmp_path / "a" / "model.safetensors", {"method.other": torch.ones(2)})
    with pytest.raises(McdiError, match=r"config\.json and model\.safetensors do not belong together"):
        mcdi.load(tmp_path / "a")


def test_files_of_an_earlier_version_load_with_a_warning(tmp_path: Path) -> None:
    shutil.copytree(READY_MADE / "photos", tmp_path / "old")
    config = read_json(tmp_path / "old" / "config.json")
    del config["weights"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    save_file(load_file(tmp_path / "old" / "model.safetensors"), tmp_path / "old" / "model.safetensors")
    with pytest.warns(McdiWarning, match=r"old has files without checksums, of an earlier version"):
        mcdi.load(tmp_path / "old")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("photos", "f2977f431179ef89e2baae38924862eb"),
        ("symbols", "6efc0678a22f0759c9d54313cce01746"),
        ("texts", "d69d297b1611867154cef2daac4eacb6"),
    ],
)
def test_the_ready_made_keep_their_weights(name: str, content: str) -> None:
    """Those with which their figures were measured, bit by bit."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mcdi.load(name)
    tensors = sorted(load_file(READY_MADE / name / "model.safetensors").items())
    assert (
        checksum(*(part for n, t in tensors for part in (f"{n} {t.dtype} {list(t.shape)}".encode(), t.numpy().tobytes())))
        == content
    )
