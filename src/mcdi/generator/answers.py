"""Answers of a generated network as lines that other programs read."""

import json
from collections.abc import Iterator, Sequence
from typing import Literal

from torch import Tensor

Lines = Literal["tsv", "jsonl"]
ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def answer_lines(queries: Sequence[Sequence[str]], logits: Tensor, names: Sequence[str], form: Lines) -> Iterator[str]:
    r"""One line for every query.

    Args:
        queries: of each a file, a text, or both texts of a pair.
        logits: (queries, classes).
        names: of the classes.
        form: "tsv": the query and its class, with \t, \n, \r and \\ for tabs, line breaks and backslashes; "jsonl": an object
            with query (a string, or a list of two), label, probability, and logit, which is small for queries of no class.
    """
    probabilities, choices = logits.softmax(-1).max(-1)
    largest = logits.amax(-1).tolist()
    for query, p, choice, logit in zip(queries, probabilities.tolist(), choices.tolist(), largest, strict=True):
        if form == "tsv":
            yield "\t".join(part.translate(ESCAPES) for part in (*query, names[choice]))
        else:
            shown = query[0] if len(query) == 1 else list(query)
            answer = {"query": shown, "label": names[choice], "probability": round(p, 4), "logit": round(logit, 3)}
            yield json.dumps(answer, ensure_ascii=False)
