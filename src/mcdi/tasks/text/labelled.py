"""Labelled sentences: of a file, a folder of files, data sets that Hugging Face `datasets` saved, or of its hub."""

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from mcdi.errors import McdiError, explained, optional
from mcdi.tasks.text.rows import NUMBER, SUFFIXES, Labelled, Row, file_rows, label_key, label_sentence, labelled_rows
from mcdi.types import Sentences
from mcdi.utils.files import visible

PARTS = ("train", "validation", "dev", "test")  # how names of a set's files begin, where it has a file "train"
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves in the folder of a DatasetDict, of a Dataset
ENDS = ("low", "high")  # classes of a scale
HIDDEN = -1  # label of test examples whose class is not published


class TextSet(NamedTuple):
    """Labelled sentences, or pairs of them: texts and labels (indices into `classes`), one of each an example."""

    name: str
    texts: tuple[Sentences, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    @property
    def pairs(self) -> bool:
        return len(self.texts[0]) == 2


Splits = dict[str, TextSet]  # "train", "validation", "test": those that exist


def read_texts(path: Path) -> TextSet:
    """The examples of a .tsv (no quoting), .csv or .jsonl file, see `rows.labelled_rows`; labels that are numbers are classes.
    Raises McdiError naming the file, the row and the cure."""
    return classified(path, path.stem, {"": labelled_rows(path, file_rows(path))})[""]


def read_unlabelled(path: Path) -> tuple[Sentences, ...]:
    """The sentences, or pairs, of a file as `read_texts` takes it; labels are not needed. Raises McdiError as that does."""
    return tuple(labelled_rows(path, file_rows(path), labels=False).texts)


def label_texts(labelled: TextSet) -> tuple[Sentences, ...]:
    """The name of every class as an example of it. Raises McdiError for pairs, and for numbers, which say nothing."""
    if labelled.pairs:
        raise McdiError("names of labels are single sentences, and the examples are pairs: leave out --label-names")
    if mute := [name for name in labelled.classes if not re.search("[^\\W\\d_]{2}", name)]:
        raise McdiError(f"the label {mute[0]!r} has no word, and so it is no example: rename it, or leave out --label-names")
    return tuple((label_sentence(name),) for name in labelled.classes)


def classified(where: Path | str, name: str, parts: Mapping[str, Labelled], classes: Sequence[str] = ()) -> Splits:
    """The parts of one set with one list of classes, `classes` or sorted: a class has the same number in all parts. Of labels
    that a reader would call the same, the first spelling is the name. Raises McdiError for fewer than two classes."""
    names: dict[str, str] = {}
    for part in parts.values():
        for label in part.labels:
            names.setdefault(label_key(label), label)
    if len(names) < 2:
        only = next(iter(names.values()))
        raise McdiError(f"{where} has one label only, {only!r}: a classifier needs examples of two classes or more")
    kinds = {len(texts[0]) for texts, _ in parts.values()}
    if len(kinds) > 1:
        raise McdiError(f"{where} has files of single sentences and of pairs: make them of one kind")
    if not classes:
        numbers = all(NUMBER.fullmatch(key) for key in names)
        classes = [names[key] for key in sorted(names, key=Decimal)] if numbers else sorted(names.values())
    index = {label_key(label): number for number, label in enumerate(classes)}
    return {
        part: TextSet(name, tuple(texts), tuple(index[label_key(label)] for label in labels), tuple(classes))
        for part, (texts, labels) in parts.items()
    }


def ends_of_scale(where: Path | str, rows: Labelled) -> Labelled:
    """The lowest and the highest third of labels that are a scale, as the classes ENDS. Raises McdiError for a label
    that is no number."""
    with explained(f"{where} is to be a scale, and a label is no number", "leave the set out of scales", ValueError):
        values = [float(v) for v in rows.labels]
    order = sorted(values)
    low, high = order[len(order) // 3], order[-1 - len(order) // 3]
    used = [(t, ENDS[v > high]) for t, v in zip(rows.texts, values, strict=True) if v < low or v > high]
    return Labelled([t for t, _ in used], [y for _, y in used])


def read_sets(folder: Path, *, scales: Sequence[str] = ()) -> dict[str, Splits]:
    """{set: its splits} of a folder with a folder a set, as GLUE is usually laid out; a set may also be one file, or a folder
    that `save_to_disk` of Hugging Face `datasets` wrote. scales: sets whose labels are a scale, of which the ends are two
    classes. Raises McdiError where there is none."""
    if not folder.is_dir():
        raise McdiError(f"{folder} is no folder: give one that holds a folder or a file of labelled text for every data set")
    out: dict[str, Splits] = {}
    for path in sorted(p for p in folder.iterdir() if visible(p.name)):
        saved, name = any((path / mark).exists() for mark in SAVED), path.name if path.is_dir() else path.stem
        if saved:
            problem, cure = f"the data set saved in {path} cannot be read", "save_to_disk it again"
            found = _loaded("load_from_disk", problem, cure, str(path))
            parts = _labelled(path, found if isinstance(found, Mapping) else {"train": found})
        else:
            files = set_files(path)
            parts = {part: labelled_rows(file, file_rows(file)) for part, file in files.items()}
        if not parts:
            continue
        if name in scales:
            parts = {part: ends_of_scale(path, rows) for part, rows in parts.items()}
        out[name] = classified(path, name, parts, ENDS if name in scales else ())
    if not out:
        raise McdiError(f"{folder} holds no {', '.join(SUFFIXES)} file, nor a folder with one: check the path")
    if missing := [name for name in scales if name not in out]:
        raise McdiError(f"scales names the set {missing[0]!r}, which is not in {folder}: it has {', '.join(out)}")
    return out


def set_files(path: Path) -> dict[str, Path]:
    """The files of labelled text of one set by their part: a file itself is "train"; of a folder with a file "train" those that
    are named as PARTS, and of another folder all."""
    if not path.is_dir():
        return {"train": path} if path.suffix.lower() in SUFFIXES else {}
    files = {p.stem: p for p in sorted(path.iterdir()) if p.suffix.lower() in SUFFIXES and visible(p.name)}
    return {part: file for part, file in files.items() if part.startswith(PARTS)} if "train" in files else files


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
        out[short] = classified(name, Path(source).stem, _labelled(name, parts))
    return out


def _labelled(where: Path | str, parts: Mapping[str, Any]) -> dict[str, Labelled]:
    """GLUE has a validation split a genre ("validation_matched"): the first is it. Splits without labels are left out."""
    out: dict[str, Labelled] = {}
    for name, part in parts.items():
        rows = list(_saved_rows(part))
        short = name.partition("_")[0]
        if rows and short not in out:
            out[short] = labelled_rows(f"{where}, {name}", rows, strict=False)
    if not out:
        raise McdiError(f"{where} has no example with a label: it needs a column label, and columns as the files have them")
    return out


def _saved_rows(part: Any) -> Iterator[Row]:
    """Labels by their class names, where the data set has names."""
    names = getattr(part.features.get("label"), "names", None)
    for number, row in enumerate(part, 1):
        label = row.get("label")
        if label is not None and label != HIDDEN:
            yield number, row | ({"label": names[label]} if names else {})


def _loaded(function: str, problem: str, cure: str, *arguments: str | None) -> Any:
    """What a function of `datasets` gives. Raises McdiError where it fails or is not installed."""
    datasets = optional("datasets", "datasets", "a data set of Hugging Face")
    with explained(problem, cure):  # it raises whatever its many readers do
        return getattr(datasets, function)(*arguments)
