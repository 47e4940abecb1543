"""Labelled sentences: of a file, a folder of files, data sets that Hugging Face `datasets` saved, or of its hub."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mcdi.errors import McdiError, explained, optional
from mcdi.types import Sentences
from mcdi.utils.files import read_text

Row = tuple[int, Mapping[str, str]]  # its number in the file, {column: text}
# Columns of pairs, as GLUE and its like name them, then those of single sentences.
PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"))
SINGLE, LABEL = ("sentence1", "sentence", "text", "premise", "question"), ("label",)
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
    """The examples of a .tsv (no quoting), .csv or .jsonl file with a column label and one of SINGLE, or two of PAIRS.
    More than 20 different labels that are numbers are a scale: its lowest and highest third become the classes "low"
    and "high", the third between is left out. Raises McdiError naming the file, the row and the cure."""
    return classified(path, path.stem, _rows(path))


def read_unlabelled(path: Path) -> tuple[Sentences, ...]:
    """The sentences, or pairs, of a file as `read_texts` takes it; labels are not needed. Raises McdiError as that does."""
    return tuple(_columns(path, list(_rows(path)), labelled=False)[0])


def _columns(where: Path | str, rows: list[Row], *, labelled: bool, strict: bool = True) -> tuple[list[Sentences], list[str]]:
    if not rows:
        raise McdiError(f"{where} holds no example: it needs a header and rows, or a JSON object a line")
    first = rows[0][1]
    pair = next((p for p in PAIRS if set(p) <= set(first)), None)
    names = list(pair or [_column(first, SINGLE, where)])
    if labelled:
        names.append(_column(first, LABEL, where))
    texts, labels = [], []
    for number, row in rows:
        values = [row.get(n, "").strip() for n in names]
        if "" in values and not strict:
            continue
        if "" in values:
            raise McdiError(f"{where}, row {number}: {names[values.index('')]} is empty; fill it in or delete the row")
        texts.append(tuple(values[:-1] if labelled else values))
        labels += values[-1:] if labelled else []
    return texts, labels


def classified(where: Path | str, name: str, rows: Iterable[Row], *, strict: bool = True) -> TextSet:
    """The set of these rows. where: their file, for errors. strict: an empty cell is an error, else its row is left
    out. Raises McdiError as `read_texts` does."""
    texts, labels = _columns(where, list(rows), labelled=True, strict=strict)
    classes = sorted(set(labels))
    if len(classes) > MOST_CLASSES:
        try:
            values = [float(v) for v in labels]
        except ValueError as error:
            raise McdiError(f"{where} has {len(classes)} different labels: a class needs several examples") from error
        order = sorted(values)
        low, high = order[len(order) // 3], order[-1 - len(order) // 3]
        kept = [(t, int(v > high)) for t, v in zip(texts, values, strict=True) if v < low or v > high]
        return TextSet(name, tuple(t for t, _ in kept), tuple(y for _, y in kept), ("low", "high"))
    if len(classes) < 2:
        raise McdiError(f"{where} has one label only, {classes[0]!r}: a classifier needs examples of two classes or more")
    return TextSet(name, tuple(texts), tuple(classes.index(v) for v in labels), tuple(classes))


def _rows(path: Path) -> Iterable[tuple[int, dict[str, str]]]:
    """(row number, {column: text}) of a file; the number counts lines from 1, the header's included."""
    if path.suffix not in SUFFIXES:
        raise McdiError(f"{path.name} is no file of labelled text: give a {', '.join(SUFFIXES)} file")
    text = read_text(path)
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
                given = f"{len(cells)} cells under {len(header)} columns ({', '.join(header)})"
                cure = "mend the row, or quote text that holds the separator (.csv)"
                raise McdiError(f"{path}, row {reader.line_num}: {given}; {cure}")
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


def _column(row: Mapping[str, str], names: tuple[str, ...], where: Path | str) -> str:
    column = next((n for n in names if n in row), None)
    if column is None:
        raise McdiError(f"{where} has no column {' or '.join(names)}; it has {', '.join(row)}: rename one")
    return column


Splits = dict[str, TextSet]  # "train", "validation", "test": those that exist
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves in the folder of a DatasetDict, of a Dataset
HIDDEN = -1  # label of test examples whose class is not published


def read_sets(folder: Path) -> dict[str, Splits]:
    """{set: its splits} of a folder with a folder a set, as GLUE is usually laid out; a set may also be one file, or a folder
    that `save_to_disk` of Hugging Face `datasets` wrote. Raises McdiError where there is none."""
    if not folder.is_dir():
        raise McdiError(f"{folder} is no folder: give one that holds a folder or a file of labelled text for every data set")
    out: dict[str, Splits] = {}
    for path in sorted(folder.iterdir()):
        if any((path / mark).exists() for mark in SAVED):
            problem, cure = f"the data set saved in {path} cannot be read", "save_to_disk it again"
            parts = _loaded("load_from_disk", problem, cure, str(path))
            out[path.name] = _splits(path, parts if isinstance(parts, Mapping) else {"train": parts})
        elif path.is_dir():
            parts = {p.stem: read_texts(p) for p in sorted(path.iterdir()) if p.suffix in SUFFIXES}
            if parts:
                out[path.name] = parts
        elif path.suffix in SUFFIXES:
            out[path.stem] = {"train": read_texts(path)}
    if not out:
        raise McdiError(f"{folder} holds no {', '.join(SUFFIXES)} file, nor a folder with one: check the path")
    return out


def read_hub(names: Sequence[str]) -> dict[str, Splits]:
    """{set: its splits} of data sets on Hugging Face's hub, "owner/name" or "owner/name:configuration" (the set is called as
    what comes last), or of what else `load_dataset` takes. Raises McdiError naming the data set and the cure."""
    out: dict[str, Splits] = {}
    for name in names:
        source, _, configuration = name.partition(":")
        cure = "check its name, or load it on a machine with a net, save_to_disk it into a folder, and give --data that folder"
        parts = _loaded("load_dataset", f"the data set {name} could not be loaded", cure, source, configuration or None)
        short = configuration or Path(source).name
        if short in out:
            raise McdiError(f"two data sets of family.text.hub are called {short}: leave one out, or save one renamed")
        out[short] = _splits(name, parts)
    return out


def _splits(where: Path | str, parts: Mapping[str, Any]) -> Splits:
    """GLUE has a validation split a genre ("validation_matched"): the first is it. Splits without labels are left out."""
    out: Splits = {}
    for name, part in parts.items():
        rows = list(_saved_rows(part))
        short = name.partition("_")[0]
        if rows and short not in out:
            out[short] = classified(f"{where}, {name}", Path(str(where).partition(":")[0]).stem, rows, strict=False)
    if not out:
        raise McdiError(f"{where} has no example with a label: it needs a column label, and columns as the files have them")
    return out


def _saved_rows(part: Any) -> Iterator[Row]:
    """Labels by their class names, where the data set has names."""
    names = getattr(part.features.get("label"), "names", None)
    for number, row in enumerate(part, 1):
        label = row.get("label")
        if label is None or label == HIDDEN:
            continue
        values = {n: v if isinstance(v, str) else str(v) for n, v in row.items() if v is not None}
        yield number, values | ({"label": names[label]} if names else {})


def _loaded(function: str, problem: str, cure: str, *arguments: str | None) -> Any:
    """What a function of `datasets` gives. Raises McdiError where it fails or is not installed."""
    datasets = optional("datasets", "datasets", "a data set of Hugging Face")
    with explained(problem, cure):  # it raises whatever its many readers do
        return getattr(datasets, function)(*arguments)
