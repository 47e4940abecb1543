"""How a run trains its methods."""

from pathlib import Path

import pytest

from mcdi.errors import McdiError
from mcdi.experiments.run import Context, train_method
from mcdi.utils.files import only_writer
from mcdi.utils.workers import silent


def test_two_processes_do_not_train_the_same(done: Path, tmp_path: Path) -> None:
    target = tmp_path / "prototypes-0"
    with (
        only_writer(target),
        pytest.raises(McdiError, match="another process is writing to .*prototypes-0: wait until it ends"),
    ):
        train_method(Context(done), "prototypes", 0, target, log=silent)
    assert not (target / "config.json").exists()
    train_method(Context(done), "prototypes", 0, target, log=silent)
    assert (target / "config.json").exists()
