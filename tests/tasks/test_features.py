"""The folder of a family: its features are computed once."""

from pathlib import Path

import pytest
from conftest import mcdi

from mcdi.tasks.images import features


def test_a_finished_run_reads_its_features(copy: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_embed", lambda *_: pytest.fail("the features were computed again"))
    assert mcdi("run", recipe, "--out", copy, "--workers", 1) == 0
