"""Rows of text files (.tsv, .csv, .jsonl): texts and labels, by one rule for all formats."""

import csv
import io
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
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
VARIANTS = ("\ufe0e", "\ufe0f")  # of a sign: as text, or as a picture
EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)
SUFFIXES = (".tsv", ".csv", ".jsonl")
SEPARATORS = (",", ";", "\t")  # of .csv files: spreadsheets of some languages write semicolons
MISSING = ("", "nan", "<na>")  # as pandas writes them
WHOLE = re.compile(r"([+-]?\d+)\.0*")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?")


class Labelled(NamedTuple):
    """Texts of some rows, and their labels as they are written; no labels of a file that is to be classified."""

    texts: list[Sentences]
    labels: list[str]


def label_name(value: Any) -> str:
    """A label as it is shown: 1, 1.0, "1" and " 1.0 " are all "1"; "" where it is missing, as None and NaN are."""
    if isinstance(value, float) and not math.isfinite(value):
        return ""
    value = format(value, ".0f") if isinstance(value, float) and value.is_integer() else value
    name = " ".join(well_formed(json.dumps(value) if isinstance(value, bool) else str("" if value is None else value)).split())
    whole = WHOLE.fullmatch(name)
    return "" if name.lower() in MISSING else whole[1] if whole else name


def label_key(name: str) -> str:
    """What is equal for labels that a reader would call the same: those that differ in case, in the form of letters, in what is
    not seen, or in how a number is written, 01 and 1.0."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    seen = " ".join("".join(c for c in folded if unicodedata.category(c) != "Cf" and c not in VARIANTS).split())
    if not NUMBER.fullmatch(seen):
        return seen or name
    number = Decimal(seen).normalize(EXACT)
    return f"{number:f}" if number else "0"


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
    header = text.lstrip().partition("\n")[0]
    if path.suffix.lower() == ".tsv":  # as GLUE has it: quotes are characters like any other
        reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        separator = max(SEPARATORS, key=header.count)  # the first of them where there is one column
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # one for the process, which is only ever raised
    try:
        names = [name.strip() for name in next((cells for cells in reader if any(cells)), [])]
        _check_names(f"{path}", names)
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


def _check_names(where: str, names: Sequence[str]) -> None:
    if twice := [n for n, count in Counter(n.lower() for n in names if n).items() if count > 1]:
        raise McdiError(f"{where} has two columns called {twice[0]!r}: rename or delete one")


def _json_rows(path: Path, lines: list[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_int=_integer, object_pairs_hook=_Object)
        except (json.JSONDecodeError, RecursionError) as error:
            raise McdiError(f"{path}, row {number} is no JSON ({str(error)[:100]}): mend or delete the row") from error
        if not isinstance(row, _Object):
            raise McdiError(f'{path}, row {number} is no JSON object: write {{"sentence1": .., "label": ..}}')
        _check_names(f"{path}, row {number}", row.names)
        yield number, row


class _Object(dict[str, Any]):
    """A JSON object that knows all its names: a dictionary keeps one of equal ones."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.names = [name for name, _ in pairs]


def _integer(digits: str) -> int | str:
    """Python reads no integers of thousands of digits: such a one stays a string."""
    return int(digits) if len(digits) < 1000 else digits


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
    first = {name: None for _, row in lowered for name in row}  # rows of .jsonl may differ
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
            missing = value is None or value != value  # NaN
            values.append(label_name(value) if is_label else well_formed("" if missing else str(value)).strip())
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
