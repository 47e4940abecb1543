"""One rule for the labels and texts of all formats, with generated files."""

import csv
import io
import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcdi.errors import McdiError
from mcdi.networks.backbones.texts import as_texts
from mcdi.tasks.text.labelled import read_sets, read_texts, read_unlabelled
from mcdi.tasks.text.rows import label_key, label_name

ANY_TEXT = st.text(min_size=1).map(str.strip).filter(bool)  # with line breaks, tabs, quotes and control characters
WORD = st.text("abcdefgßéà", min_size=1, max_size=6).filter(lambda s: s != "nan")
NUMBER = st.integers(-10_000, 10_000)


def spellings(label):
    """What a reader would call the same label, as (JSON value, cell of a table)."""
    if isinstance(label, int):
        sign, digits = ("-", -label) if label < 0 else ("", label)
        more = [(f"{label}.", f"{sign}0{digits}"), (f"{sign}00{digits}.00", f"{label}e0"), (f"\ufeff{label}", f"{label}\u200b")]
        return [(label, f"{label}"), (float(label), f"{label}.0"), (str(label), f" {label} "), *more]
    return [
        (unicodedata.normalize("NFD", label.upper()), f"\u200b{label}"),
        (f"{label[:1]}\u00ad{label[1:]}", f"{label}\ufe0f"),
        (label, label),
        (label.upper() if label.upper().lower() == label else label, f" {label}"),
        (f"{label} ", label),
    ]


def table(rows, header=("text", "label")):
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([header, *rows])
    return out.getvalue().encode("utf-8", "surrogatepass")


class TestLabels:
    @given(
        labels=st.one_of(
            st.lists(NUMBER, min_size=2, max_size=30, unique=True), st.lists(WORD, min_size=2, unique_by=str.casefold)
        ),
        data=st.data(),
    )
    @settings(max_examples=60)
    def test_one_class_however_it_is_spelt_and_in_whatever_file(self, tmp_path_factory, labels, data):
        folder = tmp_path_factory.mktemp("sets")
        (folder / "set").mkdir()
        picks = data.draw(st.lists(st.sampled_from(labels), min_size=1, max_size=12))
        train = [(f"text {n}", label) for n, label in enumerate([*labels, *picks])]
        test = [(f"query {n}", label) for n, label in enumerate(reversed(picks))]
        cells = [(t, data.draw(st.sampled_from(spellings(label)))[1]) for t, label in train]
        (folder / "set/train.csv").write_bytes(table(cells))
        values = [{"text": t, "label": data.draw(st.sampled_from(spellings(label)))[0]} for t, label in test]
        (folder / "set/test.jsonl").write_text("\n".join(map(json.dumps, values)))
        found = read_sets(folder)["set"]
        assert found["train"].classes == found["test"].classes and len(found["train"].classes) == len(labels)
        of = {label: found["train"].labels[n] for n, label in enumerate(labels)}
        assert [of[label] for _, label in train] == list(found["train"].labels)
        assert [of[label] for _, label in test] == list(found["test"].labels)
        if isinstance(labels[0], int):
            assert [int(label_key(name)) for name in found["train"].classes] == sorted(labels)

    @given(st.text(), st.sampled_from([str.upper, str.lower, str.title, str.casefold]), st.sampled_from(["NFC", "NFD", "NFKC"]))
    @settings(max_examples=300)
    def test_letters_in_any_case_and_form(self, label, case, form):
        assert label_key(unicodedata.normalize(form, label)) == label_key(label)
        assert label_key(label_key(label)) == label_key(label)
        if case(label).casefold() == label.casefold():
            assert label_key(case(label)) == label_key(label)

    @given(st.decimals(allow_nan=False, allow_infinity=False), st.decimals(allow_nan=False, allow_infinity=False))
    def test_numbers_are_the_same_label_where_they_are_equal(self, first, second):
        if abs(first.adjusted()) < 900 and abs(second.adjusted()) < 900:
            assert (label_key(f"{first}") == label_key(f"{second}")) == (first == second)
            assert label_key(f"{first:f}") == label_key(f"{first}")

    @pytest.mark.parametrize("digits", [29, 5_000])
    def test_numbers_of_any_length(self, tmp_path, digits):
        (tmp_path / "a.csv").write_text(f"text,label\na,{'9' * digits}\nb,{'9' * digits}.0\nc,{'9' * (digits - 1)}8\n")
        (tmp_path / "a.jsonl").write_text(f'{{"text": "a", "label": {"9" * digits}}}\n{{"text": "b", "label": 2}}')
        assert read_texts(tmp_path / "a.csv").labels == (1, 1, 0)
        assert read_texts(tmp_path / "a.jsonl").classes == ("2", "9" * digits)

    @given(value=st.sampled_from([None, float("nan"), float("inf"), "", "  ", "NaN", "nan"]))
    def test_a_missing_label_has_no_name(self, value):
        assert label_name(value) == ""

    def test_truth_values_are_classes(self, tmp_path):
        (tmp_path / "a.jsonl").write_text(
            '{"text": "x", "label": true}\n{"text": "y", "label": "False"}\n{"text": "z", "label": false}'
        )
        assert read_texts(tmp_path / "a.jsonl").labels == (1, 0, 0)


class TestTexts:
    @given(texts=st.lists(ANY_TEXT, min_size=2, max_size=8))
    @settings(max_examples=80)
    def test_whatever_a_file_can_hold(self, tmp_path_factory, texts):
        folder = tmp_path_factory.mktemp("texts")
        (folder / "a.csv").write_bytes(table([(t, str(n)) for n, t in enumerate(texts)]))
        (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": t, "label": n}) for n, t in enumerate(texts)))
        for name in ("a.csv", "a.jsonl"):
            found = read_texts(folder / name)
            assert [t for (t,) in found.texts] == texts and len(found.classes) == len(texts)
            assert read_unlabelled(folder / name) == found.texts

    def test_long_cells_and_empty_lines_in_front(self, tmp_path):
        long = "word " * 50_000
        for name, separator in (("a.csv", ","), ("a.tsv", "\t")):
            (tmp_path / name).write_text(f"\n\ntext{separator}label\n{long}{separator}1\nb{separator}2\n")
            assert read_texts(tmp_path / name).texts == ((long.strip(),), ("b",))

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
    @pytest.mark.parametrize("separator", [",", ";", "\t"])
    def test_encodings_and_separators_of_spreadsheets(self, tmp_path, encoding, separator):
        (tmp_path / "a.csv").write_bytes(f"Text{separator}Label\r\nüber{separator}1\r\nzwei{separator}2\r\n".encode(encoding))
        found = read_texts(tmp_path / "a.csv")
        assert found.texts == (("über",), ("zwei",)) and found.classes == ("1", "2")

    def test_halves_of_surrogate_pairs_become_readable(self, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b", "label": 1}\n{"text": "\\ud83d\\ude00", "label": 2}')
        assert read_texts(tmp_path / "a.jsonl").texts == (("a\ufffdb",), ("\U0001f600",))
        assert as_texts(["a\ud800b"]) == [("a\ufffdb",)]


class TestInPython:
    @given(texts=st.lists(st.text(), max_size=6), pairs=st.booleans())
    def test_strings_are_texts_and_tuples_are_pairs(self, texts, pairs):
        given = [(t, t[::-1]) for t in texts] if pairs else texts
        want = [tuple(t) for t in given] if pairs else [(t,) for t in given]
        assert as_texts(given) == want == as_texts(tuple([*given, *given]))[: len(want)] or len(given) < 2
        assert as_texts(np.array(texts, dtype=object)) == [(t,) for t in texts]

    def test_tables_are_read_by_rows(self):
        pandas = pytest.importorskip("pandas")
        assert as_texts(pandas.Series(["a", "b"], index=[7, 5])) == [("a",), ("b",)]
        assert as_texts(pandas.DataFrame({"text": ["a", "b"]})) == [("a",), ("b",)]
        assert as_texts(pandas.DataFrame({"first": ["a", "b"], "second": ["c", "d"]})) == [("a", "c"), ("b", "d")]
        with pytest.raises(McdiError, match="text 0 is"):
            as_texts(pandas.DataFrame({"text": ["a"], "label": [1]}))

    def test_one_text_and_one_pair(self):
        assert as_texts("one two") == [("one two",)] and as_texts(("one", "two")) == [("one", "two")]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (7, "not int"),
            ({"a": 1}, "not dict"),
            (b"abc", "not bytes"),
            ([1, 2], "text 0 is '1', not a string"),
            (["a", None], "text 1 is 'None', not a string"),
            (["a", ("b", "c", "d")], "text 1 is .* not a string or a pair"),
            (["a", ("b", "c")], "text 1 is a pair, and text 0 is a single sentence"),
            ([("b", "c"), "a"], "text 1 is a single sentence, and text 0 is a pair"),
            ([{"a": "b"}], "text 0 is"),
            ({"a", "b"}, "not set"),
            ({"a": 1}.keys(), "not dict_keys"),
            ([{"a", "b"}], "text 0 is"),
            (np.array("a"), "not ndarray"),
        ],
    )
    def test_anything_else_is_refused(self, given, message):
        with pytest.raises(McdiError, match=message):
            as_texts(given)
