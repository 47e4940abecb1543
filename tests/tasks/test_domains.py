"""Images of several domains are read and split, and a task is of one domain."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import mcdi
from safetensors.torch import load_file
from test_photos import arrays, images, photo
from test_photos import as_folders as natural_folders

from mcdi.errors import McdiError
from mcdi.experiments.run import load_family, read_run
from mcdi.networks.linear_head import LinearHead
from mcdi.tasks.episodes import FewShot
from mcdi.tasks.images import features
from mcdi.tasks.images.photos import domain_images

STYLES = {"ink": (10, 11, 15), "oil": (10, 12, 10), "photo": (11, 10, 12)}  # images of every class
RECIPE = """
methods = ["prototypes", "adam", "mc-di"]
[family]
data = "domains"
domain = "oil"
side = 16
backbone_loss = "classes"
backbone_steps = 3
way = 2
shots = [1]
queries = 1
[preparation]
tasks = 8
epochs = 6
[generator]
options = { width = 16, depth = 1 }
training = { iterations = 3, learners = 2, tasks = 4 }
[method.adam]
lrs = [0.01]
steps = [2]
decays = [0.0]
tasks = 4
[evaluation]
tasks = 4
validation = 4
"""


def encoded() -> dict[str, dict[str, list[bytes]]]:
    return {
        style: {f"c{c}": [photo(1000 * s + 100 * c + n, 9, 8) for n in range(many)] for c, many in enumerate(counts)}
        for s, (style, counts) in enumerate(STYLES.items())
    }


def as_folders(path: Path) -> Path:
    for style, classes in encoded().items():
        for name, files in classes.items():
            (path / style / name).mkdir(parents=True)
            for n, data in enumerate(files):
                (path / style / name / f"{n:03}.png").write_bytes(data)
    return path


def as_npz(path: Path) -> Path:
    flat = [
        (s, c, d) for s, classes in enumerate(encoded().values()) for c, files in enumerate(classes.values()) for d in files
    ]
    found = arrays({"c0": [], "c1": [], "c2": []} | {"c0": [d for _, _, d in flat]})
    found |= {"label": np.array([c for _, c, _ in flat]), "domain": np.array([s for s, _, _ in flat])}
    np.savez(path / "a.npz", **found, domains=np.array(list(STYLES)))
    return path / "a.npz"


class TestReading:
    def test_one_domain_is_kept_for_the_test(self, tmp_path):
        got = domain_images(as_folders(tmp_path), "oil", size=8)
        assert got["test"].names == ("oil/c0", "oil/c1", "oil/c2") and got["test"].images.shape == (3, 10, 3, 8, 8)
        others = tuple(f"{s}/c{c}" for s in ("ink", "photo") for c in range(3))
        assert got["train"].names == got["val"].names == others
        assert got["train"].images.shape[:2] == (6, 8) and got["val"].images.shape[:2] == (6, 2)
        seen, held = ({x.numpy().tobytes() for x in got[s].images.flatten(0, 1)} for s in ("train", "val"))
        assert not seen & held

    def test_both_layouts_give_the_same_banks(self, tmp_path):
        (tmp_path / "f").mkdir()
        one, other = (domain_images(p, "ink", size=8) for p in (as_folders(tmp_path / "f"), as_npz(tmp_path)))
        for split in one:
            assert one[split].names == other[split].names and torch.equal(one[split].images, other[split].images)

    def test_classes_with_few_images_are_left_out_of_their_domain(self, tmp_path):
        got = domain_images(as_folders(tmp_path), "ink", size=8, examples=9)
        assert got["test"].images.shape[1] == 9 and got["val"].images.shape[1] == 2
        assert got["train"].names == ("oil/c1", "photo/c0", "photo/c2")  # four fifths of 10 are 8
        assert got["train"].domain_numbers() == [0, 1, 1]
        assert domain_images(tmp_path, "ink", size=8, limit=2)["test"].names == ("ink/c0", "ink/c1")

    def test_a_backbone_tells_the_classes_of_all_domains_together(self, tmp_path):
        one = domain_images(as_folders(tmp_path), "oil", size=8)["train"]
        merged = one.across_domains()
        assert merged.names == ("c0", "c1", "c2") and merged.images.shape[:2] == (3, 16)
        assert torch.equal(merged.images[1], torch.cat([one.images[1], one.images[4]]))
        with pytest.raises(McdiError, match="fewer than two classes are in every training domain"):
            domain_images(tmp_path, "ink", size=8, examples=9)["train"].across_domains()

    def test_what_is_wrong_is_said(self, tmp_path):
        (tmp_path / "f/x").mkdir(parents=True)
        for path, said in (
            (None, "give --data"),
            (tmp_path / "none", "does not exist or is no folder"),
            (tmp_path / "f", "holds no images"),
        ):
            with pytest.raises(McdiError, match=said):
                domain_images(path, "ink")
        as_folders(tmp_path / "f")
        with pytest.raises(McdiError, match="the domain 'pencil' is not in .*one of ink, oil, photo"):
            domain_images(tmp_path / "f", "pencil")
        with pytest.raises(McdiError, match="no class of .* has 90 images for train"):
            domain_images(tmp_path / "f", "ink", examples=90)
        with np.load(as_npz(tmp_path)) as file:
            found = dict(file)
        np.savez(tmp_path / "b.npz", **(found | {"domain": found["domain"] + 1}))
        with pytest.raises(McdiError, match="domain must name one of 3 domains"):
            domain_images(tmp_path / "b.npz", "ink")
        np.savez(tmp_path / "c.npz", **{n: a for n, a in found.items() if n != "domains"})
        with pytest.raises(McdiError, match="is no .npz of images"):
            domain_images(tmp_path / "c.npz", "ink")
        one = {**found, "domain": 0 * found["domain"], "domains": found["domains"][:1]}
        np.savez(tmp_path / "d.npz", **one)
        with pytest.raises(McdiError, match="has one domain only"):
            domain_images(tmp_path / "d.npz", "ink")


class TestGroups:
    BANK = torch.arange(7.0)[:, None, None].expand(-1, 9, 4)

    def family(self, groups=(0, 0, 0, 1, 1, 1, 1), way=2):
        got = {s: self.BANK for s in ("train", "val", "test")}
        return FewShot("groups", LinearHead(4, way), got, way=way, shots=(1,), queries=3, groups={"train": groups})

    def test_the_classes_of_a_task_are_of_one_group(self):
        found = self.family().classes("train", range(400))
        first = found < 3
        assert bool((first == first[:, :1]).all())
        assert 0.4 < float(first[:, 0].float().mean()) < 0.6  # not by their number of classes
        assert found.unique().tolist() == list(range(7)) and bool((found[:, 0] != found[:, 1]).all())
        ungrouped = self.family().classes("val", range(400)) < 3
        assert bool((ungrouped != ungrouped[:, :1]).any())

    def test_a_group_of_too_few_classes_is_refused(self):
        with pytest.raises(McdiError, match="way = 4 is more than the 3 classes of a group of the train split"):
            self.family(way=4)


class TestRun:
    def test_from_folders_to_a_table_and_a_head(self, tmp_path, monkeypatch):
        (tmp_path / "tiny.toml").write_text(RECIPE)
        seen, train = [], features.train_backbone
        monkeypatch.setattr(
            features, "train_backbone", lambda model, x, **how: seen.append(x.shape[:2]) or train(model, x, **how)
        )
        data, run = as_folders(tmp_path / "data"), tmp_path / "run"
        assert mcdi("run", tmp_path / "tiny.toml", "--data", data, "--out", run, "--workers", 1) == 0
        assert "Mc-Di" in (run / "table.md").read_text() and json.loads((run / "table.json").read_text())
        assert seen == [(3, 16)]  # the classes of both training domains together
        family = load_family(read_run(run).family, run)
        styles = family.classes("train", range(50)) < 3  # ink before photo
        assert bool((styles == styles[:, :1]).all())
        out = tmp_path / "w.safetensors"
        assert mcdi("generate", run / "methods/mc-di-0", "--support", data / "oil", "--out", out) == 0
        assert load_file(out)["weight"].shape == (3, 64)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('domain = "oil"', "", "family.domain names the unseen domain of data = 'domains'"),
            ('data = "domains"', 'data = "natural"', "family: unknown key 'domain'"),
        ],
    )
    def test_a_domain_is_named_where_there_are_domains(self, tmp_path, capfd, old, new, message):
        (tmp_path / "tiny.toml").write_text(RECIPE.replace(old, new))
        assert mcdi("run", tmp_path / "tiny.toml", "--out", tmp_path / "run") != 0
        assert message in " ".join(capfd.readouterr().err.split())


def domain_of(path: Path, domain: str, name: str) -> torch.Tensor:
    """Every pixel of one class in one domain, its values in order: images come in another order in every domain."""
    one = domain_images(path, domain, size=32)["test"]
    return one.images[one.names.index(f"{domain}/{name}")].float().flatten(1).sort(0).values


def test_domains_out_of_one_collection_of_photos(tmp_path, monkeypatch, capsys):
    photos = natural_folders(tmp_path / "photos", images())
    out, script = tmp_path / "styles.npz", Path(__file__).parents[2] / "scripts" / "styled_domains.py"
    monkeypatch.setattr("sys.argv", ["styled_domains.py", str(photos), str(out), "--classes", "3", "--examples", "3"])
    runpy.run_path(str(script), run_name="__main__")
    assert "45 images of 3 classes in 5 styles" in capsys.readouterr().out
    got = domain_images(out, "lines", size=32, examples=2)
    assert {n.partition("/")[0] for n in got["train"].names} == {"photo", "negative", "mosaic", "faded"}
    of = {n: images for n, images in zip(got["train"].names, got["train"].images, strict=True)}
    name = next(n for n in of if n.startswith("photo/")).removeprefix("photo/")
    assert len(of) == 12 and bool((domain_of(out, "negative", name) == 255 - domain_of(out, "photo", name).flip(0)).all())
    lines = got["test"].pixels.float()
    assert torch.equal(lines[:, :, 0], lines[:, :, 1]) and float(lines.median()) > 128  # ink on white paper
