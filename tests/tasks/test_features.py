"""The folder of a family: its features are computed once."""

from pathlib import Path

import pytest
import torch
from conftest import mcdi, with_methods

from mcdi import load
from mcdi.errors import McdiError
from mcdi.experiments.recipe import read_recipe
from mcdi.tasks.images import features
from mcdi.tasks.images.glyphs import glyph_images
from mcdi.utils.files import read_tensors


def test_a_finished_run_reads_its_features(copy: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_embed", lambda *_: pytest.fail("the features were computed again"))
    assert mcdi("run", recipe, "--out", copy, "--workers", 1) == 0


def test_a_run_under_a_metric(tmp_path: Path, recipe: Path) -> None:
    """Its features are those of a saved generator's backbone, mapped; a class mean is then what knows the training classes."""
    text = recipe.read_text()
    (tmp_path / "r.toml").write_text(with_methods(text.replace("way = 3", "metric_axes = 8\nway = 3"), "prototypes", "plda"))
    run = tmp_path / "run"
    assert mcdi("run", tmp_path / "r.toml", "--out", run, "--workers", 1) == 0
    kept, _ = read_tensors(run / "features.safetensors")
    embedder = load(run / "methods" / "prototypes-0").network.embedder
    assert embedder is not None and embedder.metric is not None and embedder.metric.axes.shape == (64, 8)
    images = glyph_images(0, size=28, limit=30)["test"].pixels
    torch.testing.assert_close(embedder(images[:3]), kept["test"][:3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kept["test"].norm(dim=-1), torch.full(kept["test"].shape[:2], 8.0))


@pytest.mark.parametrize("more", ["metric_axes = -1", 'metric_axes = 4\nnetwork = "film-head"'])
def test_metrics_that_make_no_sense(tmp_path: Path, more: str) -> None:
    (tmp_path / "r.toml").write_text(f"[family]\n{more}\n")
    with pytest.raises(McdiError, match="is for linear heads"):
        read_recipe(str(tmp_path / "r.toml"))
