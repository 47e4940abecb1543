"""Which labelled sentences are there, and how are they read from a file?"""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from mcdi.errors import McdiError

Sentences = tuple[str, ...]  # one sentence, or a pair
FIRST, SECOND, LABEL = ("sentence1", "sentence", "text", "premise", "question"), ("sentence2", "hypothesis"), ("label",)
SUFFIXES = (".tsv", ".csv", ".jsonl")
MOST_CLASSES = 20


class TextSet(NamedTuple):
    """Labelled sentences, or pairs of them: texts and labels (indices into `classes`), one of each an example."""

    name: str
    texts: tuple[Sentences, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    @property
    def pairs(self) -> bool:
        return len(self.texts[0]) == 2


def read_texts(path: Path) -> TextSet:
    """The examples of a .tsv (no quoting), .csv or .jsonl file with columns sentence1 (or sentence, text), sentence2 where
    they are pairs, and label.

    More than 20 different labels that are numbers are a scale: its lowest and highest third become the classes "low" and
    "high", the third between is left out. Raises McdiError naming the file, the row and the cure.
    """
    texts, labels = _columns(path, labelled=True)
    return _classified(path, texts, labels)


def read_unlabelled(path: Path) -> tuple[Sentences, ...]:
    """The sentences, or pairs, of a file as `read_texts` takes it; labels are not needed. Raises McdiError as that does."""
    return tuple(_columns(path, labelled=False)[0])


def _columns(path: Path, *, labelled: bool) -> tuple[list[Sentences], list[str]]:
    rows = list(_rows(path))
    if not rows:
        raise McdiError(f"{path} holds no example: it needs a header and rows, or a JSON object a line")
    known = rows[0][1]
    names = [_column(known, FIRST, path), *[n for n in SECOND if n in known][:1]]
    if labelled:
        names.append(_column(known, LABEL, path))
    texts, labels = [], []
    for number, row in rows:
        values = [row.get(n, "").strip() for n in names]
        if "" in values:
            raise McdiError(f"{path}, row {number}: {names[values.index('')]} is empty; fill it in or delete the row")
        texts.append(tuple(values[:-1] if labelled else values))
        labels += values[-1:] if labelled else []
    return texts, labels


def _classified(path: Path, texts: list[Sentences], labels: list[str]) -> TextSet:
    classes = sorted(set(labels))
    if len(classes) > MOST_CLASSES:
        try:
            values = [float(v) for v in labels]
        except ValueError as error:
            raise McdiError(f"{path} has {len(classes)} different labels: a class needs several examples") from error
        order = sorted(values)
        low, high = order[len(order) // 3], order[-1 - len(order) // 3]
        kept = [(t, int(v > high)) for t, v in zip(texts, values, strict=True) if v < low or v > high]
        return TextSet(path.stem, tuple(t for t, _ in kept), tuple(y for _, y in kept), ("low", "high"))
    if len(classes) < 2:
        raise McdiError(f"{path} has one label only, {classes[0]!r}: a classifier needs examples of two classes or more")
    return TextSet(path.stem, tuple(texts), tuple(classes.index(v) for v in labels), tuple(classes))


def _rows(path: Path) -> Iterable[tuple[int, dict[str, str]]]:
    """(row number, {column: text}) of a file; the number counts lines from 1, the header's included."""
    if path.suffix not in SUFFIXES:
        raise McdiError(f"{path.name} is no file of labelled text: give a {', '.join(SUFFIXES)} file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise McdiError(f"{path} does not exist: check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise McdiError(f"{path} cannot be read as UTF-8 text ({error}): save it as UTF-8") from error
    if path.suffix == ".jsonl":
        yield from _json_rows(path, text.split("\n"))
        return
    plain = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    reader = csv.reader(io.StringIO(text, newline=""), **(plain if path.suffix == ".tsv" else {"strict": True}))
    try:
        header = next(reader, [])
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise McdiError(
                    f"{path}, row {reader.line_num}: {len(cells)} cells under {len(header)} columns ({', '.join(header)}); "
                    "mend the row, or quote text that holds the separator (.csv)"
                )
            yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise McdiError(f"{path}, row {reader.line_num}: {error}; mend its quotes") from error


def _json_rows(path: Path, lines: list[str]) -> Iterable[tuple[int, dict[str, str]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise McdiError(f"{path}, row {number} is no JSON ({error.msg}): mend or delete the row") from error
        if not isinstance(row, dict):
            raise McdiError(f'{path}, row {number} is no JSON object: write {{"sentence1": .., "label": ..}}')
        yield number, {str(n): str(v) for n, v in row.items() if v is not None}


def _column(row: Mapping[str, str], names: tuple[str, ...], path: Path) -> str:
    found = next((n for n in names if n in row), None)
    if found is None:
        raise McdiError(f"{path} has no column {' or '.join(names)}; it has {', '.join(row)}: rename one")
    return found


def read_sets(folder: Path) -> dict[str, dict[str, TextSet]]:
    """{set: {"train" | "validation" | "test": texts}} of a folder with a folder a set, as GLUE is usually laid out; a set may
    also be one file. Raises McdiError where there is none."""
    if not folder.is_dir():
        raise McdiError(f"{folder} is no folder: give one that holds a folder or a file of labelled text for every data set")
    out: dict[str, dict[str, TextSet]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            parts = {p.stem: read_texts(p) for p in sorted(path.iterdir()) if p.suffix in SUFFIXES}
            if parts:
                out[path.name] = parts
        elif path.suffix in SUFFIXES:
            out[path.stem] = {"train": read_texts(path)}
    if not out:
        raise McdiError(f"{folder} holds no {', '.join(SUFFIXES)} file, nor a folder with one: check the path")
    return out
