"""Texts as users give them: strings and pairs of strings, checked before a tokenizer reads them."""

from collections.abc import Iterable, Set
from typing import Any

from torch import Tensor

from mcdi.errors import McdiError
from mcdi.types import Sentences


def well_formed(text: str) -> str:
    """The text with U+FFFD for halves of surrogate pairs, which JSON can hold and tokenizers refuse."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_text(x: Any) -> bool:
    """Whether this is one example: a string, or a tuple of one or two."""
    return isinstance(x, str) or (isinstance(x, tuple) and 0 < len(x) <= 2 and all(isinstance(s, str) for s in x))


def as_texts(x: Any) -> list[Sentences]:
    """Single sentences or pairs.

    Args:
        x: a string or a tuple of two, which are one example; or a list, array, column or other ordered iterable of them. A
            table has a text, or two, in every row.

    Returns:
        (sentence,) or (sentence, sentence) each, all of one kind.

    Raises:
        McdiError: anything else, named by its position; single sentences among pairs.
    """
    x = [x] if is_text(x) else x.to_numpy() if hasattr(x, "to_numpy") else x  # a table of pandas would give its columns
    if isinstance(x, dict | bytes | Set) or not isinstance(x, Iterable) or getattr(x, "ndim", 1) == 0:
        raise McdiError(f"texts are a list of strings, or of pairs of strings, not {type(x).__name__}: convert them")
    out: list[Sentences] = []
    for number, item in enumerate(x):
        parts = (item,) if isinstance(item, str) else tuple(item) if isinstance(item, Iterable) else ()
        if isinstance(item, dict | bytes | Set) or not 1 <= len(parts) <= 2 or not all(isinstance(p, str) for p in parts):
            raise McdiError(f"text {number} is {str(item)[:60]!r}, not a string or a pair of strings: convert it")
        if out and len(parts) != len(out[0]):
            raise McdiError(
                f"text {number} is {_kind(len(parts))}, and text 0 is {_kind(len(out[0]))}: give examples of one kind"
            )
        out.append(tuple(well_formed(str(part)) for part in parts))
    return out


def sentences_in(x: Any) -> int:
    """How many sentences an example of a support set, or of queries, has; 0 for tensors."""
    return 0 if isinstance(x, Tensor) else len(x[0])


def check_same_kind(support: int, queries: int) -> None:
    """Raises McdiError for single sentences that are to be classified after pairs, or the reverse, see `sentences_in`."""
    if support != queries:
        raise McdiError(f"a query is {_kind(queries)}, and an example is {_kind(support)}: give both of one kind")


def _kind(sentences: int) -> str:
    return "a pair" if sentences == 2 else "a single sentence"
