"""Rows of text files (.tsv, .csv, .jsonl): texts and labels, by one rule for all formats."""

import csv
import io
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mcdi.errors import McdiError
from mcdi.networks.backbones.texts import well_formed
from mcdi.types import Sentences
from mcdi.utils.files import read_raw_text

Row = tuple[int, Mapping[str, Any]]  # its number in the file, {column: value}
# Columns of pairs, as GLUE and its like name them, then those of single sentences.
PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"))
SINGLE = ("sentence1", "sentence", "text", "premise", "question", "utterance", "query")
LABEL = ("label", "intent", "category")
SUFFIXES = (".tsv", ".csv", ".jsonl")
SEPARATORS = (",", ";", "\t")  # of .csv files: spreadsheets of some languages write semicolons
MISSING = ("", "nan")
WHOLE = re.compile(r"([+-]?\d+)\.0*")


class Labelled(NamedTuple):
    """Texts of some rows, and their labels as they are written; no labels of a file that is to be classified."""

    texts: list[Sentences]
    labels: list[str]


def label_name(value: Any) -> str:
    """A label as it is shown: 1, 1.0, "1" and " 1.0 " are all "1"; "" where it is missing, as None and NaN are."""
    if isinstance(value, float) and not math.isfinite(value):
        return ""
    name = " ".join(well_formed(json.dumps(value) if isinstance(value, bool) else str("" if value is None else value)).split())
    whole = WHOLE.fullmatch(name)
    return "" if name.lower() in MISSING else str(int(whole[1])) if whole else name


def label_key(name: str) -> str:
    """What is equal for labels that a reader would call the same: those that differ in case or in the form of letters only."""
    return unicodedata.normalize("NFKC", name).casefold()


def label_sentence(name: str) -> str:
    """A label's name as a sentence encoder reads it: "card_arrival" and "CardArrival" are "card arrival"."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return " ".join(re.sub(r"[_\-/.:]+", " ", words).split()).lower()


def file_rows(path: Path) -> Iterator[Row]:
    """(row number, {column: value}) of a file; the number counts lines from 1, the header's included. Raises McdiError."""
    if path.suffix.lower() not in SUFFIXES:
        raise McdiError(f"{path.name} is no file of labelled text: give a {', '.join(SUFFIXES)} file")
    text = read_raw_text(path)
    yield from _json_rows(path, text.split("\n")) if path.suffix.lower() == ".jsonl" else _table_rows(path, text)


def _table_rows(path: Path, text: str) -> Iterator[Row]:
    header = text.partition("\n")[0]
    if path.suffix.lower() == ".tsv":  # as GLUE has it: quotes are characters like any other
        reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        separator = max(SEPARATORS, key=header.count)  # the first of them where there is one column
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        if twice := [n for n, count in Counter(n.lower() for n in names if n).items() if count > 1]:
            raise McdiError(f"{path} has two columns called {twice[0]!r}: rename or delete one")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(names):
                given = f"{len(cells)} cells under {len(names)} columns ({', '.join(names)})"
                cure = "mend the row, or quote text that holds the separator (.csv)"
                raise McdiError(f"{path}, row {reader.line_num}: {given}; {cure}")
            yield reader.line_num, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise McdiError(f"{path}, row {reader.line_num}: {error}; mend its quotes") from error


def _json_rows(path: Path, lines: list[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise McdiError(f"{path}, row {number} is no JSON ({str(error)[:100]}): mend or delete the row") from error
        if not isinstance(row, dict):
            raise McdiError(f'{path}, row {number} is no JSON object: write {{"sentence1": .., "label": ..}}')
        yield number, row


def labelled_rows(where: Path | str, rows: Iterable[Row], *, labels: bool = True, strict: bool = True) -> Labelled:
    """The texts and labels of rows.

    Args:
        where: their file, for errors.
        rows: with a column of LABEL and one of SINGLE, or two of PAIRS; the case of names does not matter.
        labels: whether they are needed.
        strict: an empty cell is an error; otherwise its row is left out.

    Raises:
        McdiError: a column that is missing; a list or an object where a text or a label should be; an empty cell.
    """
    lowered = [(number, {str(n).lower(): v for n, v in row.items()}) for number, row in rows]
    if not lowered:
        raise McdiError(f"{where} holds no example: it needs a header and rows, or a JSON object a line")
    first = lowered[0][1]
    pair = next((p for p in PAIRS if set(p) <= set(first)), None)
    names = [*(pair or [_column(first, SINGLE, where)]), *([_column(first, LABEL, where)] if labels else [])]
    out = Labelled([], [])
    for number, row in lowered:
        values = []
        for place, name in enumerate(names):
            value = row.get(name)
            is_label = labels and place == len(names) - 1
            if isinstance(value, list | dict) or (isinstance(value, bool) and not is_label):
                given = f"{name} is {json.dumps(value)[:60]}, not a {'label' if is_label else 'text'}"
                raise McdiError(f"{where}, row {number}: {given}; write one string")
            values.append(label_name(value) if is_label else well_formed("" if value is None else str(value)).strip())
        if "" in values:
            if strict:
                raise McdiError(f"{where}, row {number}: {names[values.index('')]} is empty; fill it in or delete the row")
            continue
        out.texts.append(tuple(values[: len(names) - labels]))
        out.labels.extend(values[-1:] if labels else [])
    return out


def _column(row: Mapping[str, Any], names: Sequence[str], where: Path | str) -> str:
    column = next((n for n in names if n in row), None)
    if column is None:
        raise McdiError(f"{where} has no column {' or '.join(names)}; it has {', '.join(row)}: rename one")
    return column
