"""A backbone that is trained on drawn letters sees nothing of the photos of its tasks."""

import torch
from conftest import mcdi
from safetensors.torch import load_file
from test_photos import RECIPE, as_folders, images

import mcdi as package
from mcdi.tasks.images.files import read_folder


def test_a_backbone_that_saw_drawings_alone(tmp_path):
    """The same whatever photos there are, but the mean is theirs; a saved generator reads photos and changes features."""
    other = '"conv4"\nbackbone_data = "glyphs"\nnetwork = "film-head"\nlimit = 20'
    (tmp_path / "r.toml").write_text(RECIPE.replace('"resnet8"', other))
    counts = {"train": (7,) * 5, "val": (7,) * 2, "test": (3,) * 3}
    splits = images(counts)
    one = as_folders(tmp_path / "one", splits)
    two = as_folders(tmp_path / "two", {s: {c: e[::-1] * 2 for c, e in of.items()} for s, of in splits.items()})
    for command, data in (("run", one), ("prepare", two)):
        out = tmp_path / f"of-{data.name}"
        assert mcdi(command, tmp_path / "r.toml", "--data", data, "--out", out, "--workers", 1) == 0
    states = [load_file(tmp_path / f"of-{data.name}" / "backbone.safetensors") for data in (one, two)]
    assert {n for n, t in states[0].items() if not torch.equal(t, states[1][n])} == {"mean"}
    generator = package.load(tmp_path / "of-one" / "methods" / "mc-di-0")
    x, y, _ = read_folder(one / "test", generator.image_shape)
    weights = generator.generate((x, y))
    assert generator.image_shape == (3, 16, 16) and {n: tuple(w.shape) for n, w in weights.items()} == {
        **{"weight": (3, 64), "bias": (3,)},
        **{"scale": (64,), "shift": (64,)},
    }
    assert generator.predict(weights, x).shape == (9, 3)
    still = {**weights, "scale": torch.zeros(64), "shift": torch.zeros(64)}
    assert not torch.allclose(generator.predict(weights, x), generator.predict(still, x))
