"""Labels, colours and markers of methods, the same in every report and plot."""

import itertools
from collections.abc import Iterable
from typing import Literal

from mcdi.methods import all_methods

Style = tuple[str, str]  # colour, marker
_FREE = (("#8a8f2a", "<"), ("#7a8290", ">"), ("#7f1d1d", "^"), ("#14532d", "v"), ("#7c3aed", "s"), ("#0369a1", "D"))


def label_of(method: str) -> str:
    """The name of a method in prose; of one that is not installed, its name."""
    return all_methods()[method].label if method in all_methods() else method


def labels_of(trait: Literal["proposed", "baseline"]) -> set[str]:
    """The labels of the methods whose specs say so."""
    return {spec.label for spec in all_methods().values() if getattr(spec, trait)}


def plot_style(method: str) -> Style:
    """Of a method as its spec says; methods without a colour take the free ones in the order of their names."""
    specs = all_methods()
    if method in specs and specs[method].colour:
        return specs[method].colour, specs[method].marker or "o"
    others = sorted({method, *(n for n, spec in specs.items() if not spec.colour)})
    return _FREE[others.index(method) % len(_FREE)]


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """Of things that are no methods, one after the other."""
    palette = [(spec.colour, spec.marker or "o") for spec in all_methods().values() if spec.colour]
    return dict(zip(names, itertools.cycle(palette), strict=False))
