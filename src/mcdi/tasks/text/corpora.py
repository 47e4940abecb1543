"""Sets of labelled text: a folder of files, data sets that Hugging Face `datasets` saved, or data sets of its hub."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mcdi.errors import McdiError, explained, optional
from mcdi.tasks.text.labelled import SUFFIXES, Row, TextSet, classified, read_texts

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
            out[path.name] = _read_saved(path)
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


def _read_saved(path: Path) -> Splits:
    parts = _loaded("load_from_disk", f"the data set saved in {path} cannot be read", "save_to_disk it again", str(path))
    return _splits(path, parts if isinstance(parts, Mapping) else {"train": parts})


def _splits(where: Path | str, parts: Mapping[str, Any]) -> Splits:
    """GLUE has a validation split a genre ("validation_matched"): the first is it. Splits without labels are left out."""
    out: Splits = {}
    for name, part in parts.items():
        rows = list(_rows(part))
        short = name.partition("_")[0]
        if rows and short not in out:
            out[short] = classified(f"{where}, {name}", Path(str(where).partition(":")[0]).stem, rows, strict=False)
    if not out:
        raise McdiError(f"{where} has no example with a label: it needs a column label, and columns as the files have them")
    return out


def _rows(part: Any) -> Iterator[Row]:
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
