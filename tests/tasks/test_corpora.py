"""Data sets of Hugging Face: saved folders, and what its hub's loader takes."""

import sys

import pytest

from mcdi.errors import McdiError
from mcdi.experiments.run import make_family
from mcdi.tasks.text.labelled import read_hub, read_sets
from mcdi.tasks.text.phrases import phrase_sets
from mcdi.tasks.text.pools import TextSettings, choose
from mcdi.tasks.text.source import TextFamilySettings
from mcdi.utils.workers import silent

datasets = pytest.importorskip("datasets", reason="the extra mcdi[datasets] is not installed")


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


def made(labels, names=("not", "same"), **columns):
    features = {n: datasets.Value("string") for n in columns} | {"label": datasets.ClassLabel(names=list(names))}
    return datasets.Dataset.from_dict({**columns, "label": labels}, features=datasets.Features(features))


PAIRS = made([1, 0, 1], question1=["a", "b", "c"], question2=["d", "e", "f"])


class TestSaved:
    def test_splits_classes_and_pairs(self, tmp_path):
        hidden = made([-1, -1], question1=["x", "y"], question2=["x", "y"])
        parts = {"train": PAIRS, "validation_matched": PAIRS, "validation_mismatched": PAIRS.select([0, 1]), "test": hidden}
        datasets.DatasetDict(parts).save_to_disk(tmp_path / "qqp")
        made([0, 1], ("bad", "good"), text=["poor", "fine"]).save_to_disk(tmp_path / "one")
        found = read_sets(tmp_path)
        assert {n: list(p) for n, p in found.items()} == {"one": ["train"], "qqp": ["train", "validation"]}
        assert found["qqp"]["train"].texts == (("a", "d"), ("b", "e"), ("c", "f")) and found["qqp"]["train"].labels == (1, 0, 1)
        assert found["qqp"]["train"].classes == ("not", "same") and len(found["qqp"]["validation"].texts) == 3
        assert found["one"]["train"].texts == (("poor",), ("fine",)) and found["one"]["train"].name == "one"

    def test_tasks_are_those_of_the_same_sets_from_elsewhere(self, tmp_path):
        sets, how = phrase_sets(0, 60), TextSettings(texts=30, words=3, examples=5)
        for name, parts in sets.items():
            (both, labels), classes = parts["train"][1:3], parts["train"].classes
            columns = dict(
                zip(("premise", "hypothesis") if len(both[0]) == 2 else ("sentence",), zip(*both, strict=True), strict=True)
            )
            made(labels, classes, **columns).save_to_disk(tmp_path / name)
        want, got = ({c.name: c for c in choose(found, how, 2, 0)} for found in (sets, read_sets(tmp_path)))
        assert got == want

    @pytest.mark.parametrize("first", ["premise", "question", "sentence1"])
    def test_a_pair_is_known_by_both_columns(self, tmp_path, first):
        second = {"premise": "hypothesis", "question": "sentence", "sentence1": "sentence2"}[first]
        made([0, 1], **{second: ["b", "d"], first: ["a", "c"]}).save_to_disk(tmp_path / "set")
        assert read_sets(tmp_path)["set"]["train"].texts == (("a", "b"), ("c", "d"))

    def test_rows_without_a_text_are_left_out(self, tmp_path):
        made([1, 0, 1], text=["a", "", "c"]).save_to_disk(tmp_path / "set")
        with pytest.raises(McdiError, match="one label only"):
            read_sets(tmp_path)
        made([1, 0, 1, 0], text=["a", "", "c", "d"]).save_to_disk(tmp_path / "set")
        assert read_sets(tmp_path)["set"]["train"].texts == (("a",), ("c",), ("d",))

    def test_what_is_wrong_is_said(self, tmp_path):
        made([-1, -1], text=["a", "b"]).save_to_disk(tmp_path / "secret")
        with pytest.raises(McdiError, match="secret has no example with a label"):
            read_sets(tmp_path)
        (tmp_path / "secret/state.json").write_text("{")
        with pytest.raises(McdiError, match="secret cannot be read .*: save_to_disk it again"):
            read_sets(tmp_path)

    def test_the_package_is_named_where_it_is_missing(self, tmp_path, monkeypatch):
        PAIRS.save_to_disk(tmp_path / "set")
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(McdiError, match=r"pip install 'mcdi\[datasets\]'"):
            read_sets(tmp_path)


class TestHub:
    """The hub's loader reads folders too: the same code, without a net."""

    @staticmethod
    def folder(path):
        path.mkdir(parents=True)
        (path / "train.csv").write_text("text,label\n" + "".join(f"word {n},{n % 2}\n" for n in range(12)))
        (path / "test.csv").write_text("text,label\nx,1\ny,0\n")
        return str(path)

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def test_a_repository(self, tmp_path):
        found = read_hub([self.folder(tmp_path / "owner/reviews")])
        assert {n: list(p) for n, p in found.items()} == {"reviews": ["train", "test"]}
        assert found["reviews"]["test"].texts == (("x",), ("y",)) and found["reviews"]["test"].classes == ("0", "1")

    def test_a_recipe_names_them(self, tmp_path):
        settings = TextFamilySettings(text=TextSettings(hub=(f"{tmp_path}/nothing",)))
        with pytest.raises(McdiError, match="nothing could not be loaded"):
            make_family(settings, tmp_path, data=None, device="cpu", progress=silent)

    def test_what_is_wrong_is_said(self, tmp_path):
        one, other = self.folder(tmp_path / "a/reviews"), self.folder(tmp_path / "b/reviews")
        with pytest.raises(McdiError, match="called reviews"):
            read_hub([one, other])
        with pytest.raises(McdiError, match="could not be loaded .*give --data that folder"):
            read_hub([f"{tmp_path}/nothing"])
