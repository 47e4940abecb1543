"""Files of tensors: what was written is read, and a missing or torn file is named."""

import pytest
import torch

from mcdi.errors import McdiError
from mcdi.utils.files import read_tensors, write_tensors


def test_a_file_of_tensors_missing_and_torn(tmp_path):
    path = tmp_path / "new" / "some.safetensors"
    with pytest.raises(McdiError, match=r"some\.safetensors does not exist"):
        read_tensors(path)
    write_tensors(path, {"a": torch.arange(99)}, {"names": ["x"]})
    tensors, metadata = read_tensors(path)
    assert torch.equal(tensors["a"], torch.arange(99)) and metadata == {"names": ["x"]}
    assert [p.name for p in path.parent.iterdir()] == ["some.safetensors"]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(McdiError, match=r"some\.safetensors does not match its checksum"):
        read_tensors(path)
