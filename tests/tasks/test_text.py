"""Files of labelled text, and the tasks that are made of them."""

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcdi.errors import McdiError
from mcdi.tasks.text.labelled import TextSet, read_sets, read_texts, read_unlabelled
from mcdi.tasks.text.phrases import phrase_sets
from mcdi.tasks.text.pools import TextSettings, choose, pools_of
from mcdi.tasks.text.text_tasks import Pool, TextTasks

CELL = st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n", exclude_categories=["Cs", "Cc"]), min_size=1).filter(
    lambda s: s.strip() == s
)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


class TestReading:
    @given(rows=st.lists(st.tuples(CELL, CELL, st.sampled_from(["no", "yes"])), min_size=2))
    @settings(max_examples=40)
    def test_every_format_gives_the_same_examples(self, tmp_path_factory, rows):
        rows = [*rows, ("a", "b", "no"), ("c", "d", "yes")]
        folder = tmp_path_factory.mktemp("texts")
        quoted = ['"' + '","'.join(c.replace('"', '""') for c in r) + '"' for r in rows]
        objects = [json.dumps(dict(zip(("sentence1", "sentence2", "label"), r, strict=True))) for r in rows]
        paths = [
            write(folder, "a.tsv", "\n".join(["sentence1\tsentence2\tlabel", *("\t".join(r) for r in rows)])),
            write(folder, "a.csv", "\n".join(["sentence1,sentence2,label", *quoted])),
            write(folder, "a.jsonl", "\n".join(objects)),
        ]
        for found in map(read_texts, paths):
            assert found.classes == ("no", "yes") and found.pairs
            assert [(*t, found.classes[y]) for t, y in zip(found.texts, found.labels, strict=True)] == rows
        assert read_unlabelled(paths[0]) == tuple((a, b) for a, b, _ in rows)

    def test_a_scale_becomes_its_ends(self, tmp_path):
        path = write(tmp_path, "s.tsv", "text\tlabel\n" + "\n".join(f"t{n}\t{n / 4}" for n in range(60)))
        found = read_sets(tmp_path, scales=["s"])["s"]["train"]
        assert found.classes == ("low", "high") and found.texts[0] == ("t0",) and found.texts[-1] == ("t59",)
        assert found.labels == tuple([0] * 20 + [1] * 20)
        assert len(read_texts(path).classes) == 60  # numbers are classes unless the user declares a scale
        with pytest.raises(McdiError, match="scales names the set 'other', which is not in"):
            read_sets(tmp_path, scales=["other"])
        write(tmp_path, "words.tsv", "text\tlabel\na\tgood\nb\tbad\n")
        with pytest.raises(McdiError, match="a label is no number .*: leave the set out of scales"):
            read_sets(tmp_path, scales=["words"])

    @pytest.mark.parametrize(
        ("name", "text", "said"),
        [
            ("a.txt", "x", "give a .tsv"),
            ("a.tsv", "", "holds no example"),
            ("a.tsv", "sentence1\tlabel\n", "holds no example"),
            ("a.tsv", "body\tlabel\nx\t1", "no column sentence1 or sentence"),
            ("a.tsv", "text\tclass\nx\t1", "no column label"),
            ("a.tsv", "text\tlabel\nx\t1\ny\n", "row 3: 1 cells under 2 columns"),
            ("a.tsv", "text\tlabel\nx\t1\n\t0\n", "row 3: text is empty"),
            ("a.csv", 'text,label\n"x,1\n', "mend its quotes"),
            ("a.tsv", "text\tlabel\nx\t1\ny\t1\n", "one label only, '1'"),
            ("a.csv", "text,Text,label\nx,y,1\n", "two columns called 'text'"),
            ("a.jsonl", '{"text": ["x"], "label": 1}', r'row 1: text is \["x"\], not a text'),
            ("a.jsonl", '{"text": "x", "label": {"a": 1}}', 'row 1: label is {"a": 1}, not a label'),
            ("a.jsonl", '{"text": "x", "label": NaN}', "row 1: label is empty"),
            ("a.csv", "text,label\nx,nan\n", "row 2: label is empty"),
            ("a.jsonl", '{"text": "x", "label": 1}\n{', "row 2 is no JSON"),
            ("a.jsonl", "[1]", "no JSON object"),
            ("a.jsonl", '{"text": "x", "text": "y", "label": 1}', "row 1 has two columns called 'text'"),
            ("a.jsonl", '{"text": "x", "Text": "y", "label": 1}', "row 1 has two columns called 'text'"),
            ("a.jsonl", '{"text": NaN, "label": 1}', "row 1: text is empty"),
            (
                "a.jsonl",
                '{"sentence1": "x", "label": 1}\n{"sentence1": "x", "sentence2": "y", "label": 2}',
                "sentence2 is empty",
            ),
            ("a.csv", "text,label\nx,<NA>\n", "row 2: label is empty"),
            ("a.jsonl", '{"text": "x", "label": 1}\n{"text": "y"}', "row 2: label is empty"),
        ],
    )
    def test_what_is_wrong_is_said(self, tmp_path, name, text, said):
        with pytest.raises(McdiError, match=said):
            read_texts(write(tmp_path, name, text))

    def test_queries_need_no_labels(self, tmp_path):
        assert read_unlabelled(write(tmp_path, "q.csv", "text\none\ntwo, three\n".replace("two, three", '"two, three"'))) == (
            ("one",),
            ("two, three",),
        )
        assert read_unlabelled(write(tmp_path, "q.tsv", "text\tlabel\none\t1\n")) == (("one",),)

    def test_missing_and_no_text(self, tmp_path):
        with pytest.raises(McdiError, match="does not exist"):
            read_texts(tmp_path / "none.tsv")
        (tmp_path / "b.csv").write_bytes(b"text,label\n\xff\xfe,1\n")
        with pytest.raises(McdiError, match="UTF-8"):
            read_texts(tmp_path / "b.csv")

    def test_folders_of_sets(self, tmp_path):
        (tmp_path / "one").mkdir()
        write(tmp_path / "one", "train.tsv", "text\tlabel\nx\t1\ny\t0")
        write(tmp_path, "two.csv", "text,label\nx,1\ny,0")
        assert {n: list(p) for n, p in read_sets(tmp_path).items()} == {"one": ["train"], "two": ["train"]}
        with pytest.raises(McdiError, match="no folder"):
            read_sets(tmp_path / "two.csv")
        (tmp_path / "empty").mkdir()
        with pytest.raises(McdiError, match="holds no"):
            read_sets(tmp_path / "empty")


class Space:
    def units(self, rows: int) -> int:
        return rows + 3


class Net:
    space = Space()


def tasks(**how) -> TextTasks:
    chosen = choose(phrase_sets(0, 120), how.pop("sets", TextSettings()), 2, 0)
    features = torch.randn(sum(len(c.labels) for c in chosen), 4, generator=torch.Generator().manual_seed(0))
    return TextTasks(Net(), pools_of(chosen, features), **{"way": 2, "shots": (3,), "queries": 4, "examples": 12, **how})


class TestTasks:
    def test_sets_are_in_one_split_and_every_one_is_used(self):
        family = tasks()
        names = {split: {p.name for p in pools} for split, pools in family.pools.items()}
        assert names["test"] == {"opinion", "same-opinion"} and names["val"] == {"form", "same-topic"}
        assert names["train"] == {"topic", "same topic", "halves topic", "tense", "same tense", "halves tense"}
        assert set(family.columns("train", range(6))["set"].tolist()) == set(range(6))

    def test_a_task_is_the_same_alone_and_among_others(self):
        family = tasks()
        many, one = family.sample("train", range(9), draw=2), family.sample("train", [7], draw=2)
        for a, b in ((many.support, one.support), (many.query, one.query)):
            assert torch.equal(a.x[7], b.x[0]) and torch.equal(a.y[7], b.y[0])
        assert not torch.equal(family.sample("train", [7], draw=3).support.x, one.support.x)

    def test_support_and_query_are_apart_and_labelled_by_their_group(self):
        family = tasks()
        for split in ("train", "val", "test"):
            batch = family.sample(split, range(12))
            assert batch.mask.shape == (12, 5)
            for n in range(12):
                pool, groups = family.pools[split][n % len(family.pools[split])], family._task(split, n).groups
                label_of = dict(zip(pool.text_ids.tolist(), pool.labels.tolist(), strict=True))
                assert not set(batch.support.x[n].tolist()) & set(batch.query.x[n].tolist())
                for part in (batch.support, batch.query):
                    assert all(label_of[i] in groups[y] for i, y in zip(part.x[n].tolist(), part.y[n].tolist(), strict=True))

    def test_training_tasks_keep_to_a_topic_and_test_sets_are_whole(self):
        family = tasks(examples=8)
        for seed in range(12):
            task, pool = family._task("train", seed), family.pools["train"][seed % 6]
            assert all(len(m) == 8 for m in task.members)
            # Some text of the set has all members of a class nearer than all others of that class.
            distance = torch.cdist(pool.features, pool.features)
            nearest = torch.ones(len(distance), dtype=torch.bool)
            for group, members in zip(task.groups, task.members, strict=True):
                others = torch.isin(pool.labels, torch.tensor(group))
                others[members] = False
                nearest &= distance[:, members].amax(1) <= distance[:, others].amin(1)
            assert bool(nearest.any())
        assert sum(len(m) for m in family._task("test", 0).members) == 60  # half is for queries
        assert family.training_data("train", [0, 1]).x.shape == (2, 16)

    def test_groups_of_many_classes_are_disjoint(self):
        family = tasks()
        pool = next(n for n, p in enumerate(family.pools["train"]) if p.name == "topic")
        seen = {family._task("train", seed).groups for seed in range(pool, 600, 6)}
        assert len(seen) > 20 and any(len(g) > 1 for groups in seen for g in groups)
        assert all(not set(a) & set(b) for a, b in seen)

    def test_halves_belong_together_half_of_the_time(self):
        made = next(c for c in choose(phrase_sets(0, 50), TextSettings(), 2, 0) if c.name == "halves topic")
        whole = {t[0] for t in phrase_sets(0, 50)["topic"]["train"].texts}
        assert sum(made.labels) == 25
        for (first, second), answer in zip(made.texts, made.labels, strict=True):
            assert not answer or f"{first} {second}" in whole

    def test_words_are_classes_of_texts_that_miss_them(self):
        settings = TextSettings(words=5, examples=12)
        sets = phrase_sets(0, 600)
        chosen = {c.name: c for c in choose(sets, settings, 2, 0)}
        made, source = chosen["words topic"], {t[0] for t in sets["topic"]["train"].texts}
        assert made.split == "train" and len(made.texts) == 12 * len(set(made.labels)) and not any(made.held_out)
        words = []
        for c in sorted(set(made.labels)):
            mine = [text[0] for text, label in zip(made.texts, made.labels, strict=True) if label == c]
            fitting = [w for w in {w for t in source for w in t.split()} if all(t.replace("_", w) in source for t in mine)]
            assert len(mine) == len(set(mine)) == 12 and len(fitting) == 1
            words += fitting
        assert len(set(words)) == len(words) >= 2
        assert not any(c.separate_classes for n, c in chosen.items() if not n.startswith("words "))
        many = next(c for c in choose(sets, TextSettings(words=40, examples=5), 2, 0) if c.name == "words topic")
        assert len(set(many.texts)) == len(many.texts)  # two words of two texts may leave the same
        assert "words topic" not in {c.name for c in choose(sets, settings, 6, 0)}  # five words are too few
        assert not [c for c in choose(sets, TextSettings(words=0, examples=12), 2, 0) if c.name.startswith("words ")]
        family = tasks(sets=TextSettings(words=5, examples=4), shots=(2,), queries=2, examples=4)
        seeds = [n for n in range(40) if family.pools["train"][n % len(family.pools["train"])].separate_classes]
        assert seeds and all(len(g) == 1 for n in seeds for g in family._task("train", n).groups)

    def test_sets_come_again_within_templates_that_name_their_labels(self):
        sets, how = phrase_sets(0, 60), {"test": ("opinion",), "validation": ("form",), "pairs": (), "words": 0, "texts": 30}
        templates = ("{words}? {text}", "Someone wrote {text} {braces}")
        names = {"tense": ("was", "is", "will be")[: len(sets["tense"]["train"].classes)]}
        chosen = choose(sets, TextSettings(**how, templates=templates, label_words=names), 2, 0)
        plain = {c.name: c for c in choose(sets, TextSettings(**how), 2, 0)}
        made = {c.name: c for c in chosen if c.name not in plain}
        trained = [n for n, c in plain.items() if c.split == "train"]
        assert set(made) == {f"template {t} {n}" for t in ("1.1", "1.2", "2.1") for n in trained}
        for name in trained:
            asked = set(names.get(name, sets[name]["train"].classes))
            fronts = []
            for t in ("1.1", "1.2", "2.1"):
                one = made[f"template {t} {name}"]
                assert (one.labels, one.split, one.held_out) == (plain[name].labels, "train", plain[name].held_out)
                for text, was in zip(one.texts, plain[name].texts, strict=True):
                    front, _, rest = text[0].partition("? ") if t != "2.1" else ("", "", text[0])
                    assert rest == (was[0] if t != "2.1" else f"Someone wrote {was[0]} {{braces}}") and text[1:] == was[1:]
                    fronts.append(front)
            one, turned = (re.split(", | or ", f) for f in dict.fromkeys(f for f in fronts if f))
            assert set(one) == asked and turned == one[::-1]
        assert sum(c.name == "tense" for c in chosen) == 1 and plain == {c.name: c for c in chosen if c.name in plain}

    def test_templates_that_do_not_fit(self):
        sets = phrase_sets(0, 60)
        with pytest.raises(McdiError, match=r"'{words}\?' has no placeholder for a text: write {text}"):
            TextSettings(templates=("{words}?",))
        with pytest.raises(McdiError, match="label_words of topic must be 6 words, of .*: not \\['a'\\]"):
            choose(sets, TextSettings(templates=("{text}",), label_words={"topic": ["a"]}), 2, 0)
        with pytest.raises(McdiError, match="label_words has the set 'sst2', which is not in the data"):
            choose(sets, TextSettings(label_words={"sst2": ["bad", "good"]}), 2, 0)

    def test_same_pairs_have_one_label(self):
        made = next(c for c in choose(phrase_sets(0, 50), TextSettings(), 2, 0) if c.name == "same topic")
        source = phrase_sets(0, 50)["topic"]["train"]
        label = dict(zip(source.texts, source.labels, strict=True))
        for (first, second), answer in zip(made.texts, made.labels, strict=True):
            assert first != second and (label[first,] == label[second,]) == bool(answer)

    def test_a_lonely_text_has_no_pair(self):
        sets = {**phrase_sets(0, 120), "odd": {"train": TextSet("odd", (("a",), ("b",)), (0, 1), ("x", "y"))}}
        with pytest.raises(McdiError, match="odd has one text only of some class"):
            choose(sets, TextSettings(), 2, 0)

    def test_what_does_not_fit_is_said(self):
        with pytest.raises(McdiError, match="fewer than way = 3"):
            tasks(way=3)
        with pytest.raises(McdiError, match=r"raise text\.examples"):
            tasks(examples=5)
        with pytest.raises(McdiError, match="lower shots or queries"):
            tasks(shots=(30,), queries=30, examples=60)
        with pytest.raises(McdiError, match="'mrpc' is not in the data"):
            tasks(sets=TextSettings(test=("mrpc",)))
        with pytest.raises(McdiError, match="unknown split"):
            tasks().sample("dev", [0])

    def test_sets_for_the_test_may_keep_more_than_others(self):
        kept = {c.name: len(c.labels) for c in choose(phrase_sets(0, 60), TextSettings(texts=20, test_texts=50), 2, 0)}
        assert kept["opinion"] == kept["same-opinion"] == 50 and kept["form"] == kept["topic"] == 20

    def test_held_rows_are_queries_alone(self):
        held = torch.arange(40) >= 20
        pool = Pool("p", torch.arange(40), torch.arange(40) % 2, torch.randn(40, 3), held, whole_set=True)
        family = TextTasks(Net(), {"test": [pool]}, way=2, shots=(4,), queries=6, examples=12)
        batch = family.sample("test", range(5))
        assert bool((batch.support.x < 20).all()) and bool((batch.query.x >= 20).all())
