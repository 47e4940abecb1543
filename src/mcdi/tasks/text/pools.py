"""How do sets of sentences become pools of tasks? Chosen examples, their states in front of the tail, a split of the sets."""

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.tasks.text.labelled import TextSet
from mcdi.tasks.text.text_tasks import Pool
from mcdi.types import Sentences

Split = Literal["train", "val", "test"]
Sets = Mapping[str, Mapping[str, TextSet]]
WORD = re.compile(r"\b[a-z]{3,}\b", re.IGNORECASE | re.ASCII)
TEXT, WORDS = "{text}", "{words}"  # their places in a template
COMMON = 0.05  # words in a larger share of the texts are those of any sentence
MOST_WORDS = 62  # classes are bits of a number


@dataclass(frozen=True)
class TextSettings:
    """Which sets are for what. test: never met in training; validation: they tune; all others train, and `pairs` more sets are
    made of each set of single sentences: do two have one label ("same"), do two halves belong together ("halves"). words: and
    one whose classes are so many words, their texts without them: which was there (SMLMT, 2009.08445)? Labels are few,
    words are many kinds of tasks. templates: every training set comes again within each, where "{text}" is its text, of a
    pair the first, and "{words}" the words of its labels, "good, bad or plain"; such a set comes in two orders of them.
    label_words: {set: its classes' words, in their order}, where labels are no words.
    texts: examples kept of a set, test_texts: of one for test, and as many for its queries where it has
    a test or validation file; examples: texts a class that a training task is made of. hub: data sets of Hugging Face's hub
    beside those of --data (corpora.read_hub), "owner/name" or "owner/name:configuration".
    """

    test: tuple[str, ...] = ("opinion", "same-opinion")
    validation: tuple[str, ...] = ("form", "same-topic")
    pairs: tuple[Literal["same", "halves"], ...] = ("same", "halves")
    words: int = 16
    templates: tuple[str, ...] = ()
    label_words: Mapping[str, Any] = field(default_factory=dict)
    texts: int = 400
    test_texts: int = 400
    examples: int = 64
    hub: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.texts, self.test_texts, self.examples) < 1 or not (self.words == 0 or 2 <= self.words <= MOST_WORDS):
            given = f"texts = {self.texts}, test_texts = {self.test_texts}, examples = {self.examples}, words = {self.words}"
            raise McdiError(f"{given}: texts and examples must be at least 1, words 0 or 2 to {MOST_WORDS}")
        for template in self.templates:
            if TEXT not in template:
                raise McdiError(f"the template {template!r} has no place for a text: write {TEXT} where it shall stand")


class Chosen(NamedTuple):
    """A set as it is used; held: kept for queries; apart: no two of its classes make one. `texts` are left out once their
    states are in the bank."""

    name: str
    split: Split
    labels: list[int]
    held: list[bool]
    texts: list[Sentences]
    apart: bool = False


def choose(sets: Sets, settings: TextSettings, way: int, seed: int) -> list[Chosen]:
    """The examples of every set, with those that are held for queries. Raises McdiError for a set that is not there."""
    for name in (*settings.test, *settings.validation):
        if name not in sets:
            there = ", ".join(sets)
            why = f"the set {name!r} is not in the data: there are {there}"
            raise McdiError(f"{why}; give --data a folder that has it, or set family.text.test and validation")
    unused = [name for name in settings.label_words if name not in sets]
    if unused:
        raise McdiError(f"label_words has the set {unused[0]!r}, which is not in the data: leave it out")
    out = []
    for name, parts in sets.items():
        split: Split = "test" if name in settings.test else "val" if name in settings.validation else "train"
        r = random.Random(f"{seed} {name}")
        source = next(parts[n] for n in ("train", "validation", "test", *parts) if n in parts)
        apart = next((parts[n] for n in ("test", "validation") if n in parts and parts[n] is not source), None)
        most = settings.test_texts if split == "test" else settings.texts
        texts, labels = _some(source, most, r)
        held = [False] * len(texts)
        if split == "test" and apart is not None:
            more = _some(apart, most, r)
            texts, labels, held = texts + more[0], labels + more[1], held + [True] * len(more[0])
        elif split == "test":  # one file: half of it is for queries
            held = [2 * j >= len(texts) for j in range(len(texts))]
        plain = Chosen(name, split, labels, held, texts)
        out.append(plain)
        if split == "train" and not source.pairs:
            out += [_made(kind, name, texts, labels, r) for kind in settings.pairs]
            out += _words(name, source, settings, way, r)
        if split == "train":
            out += _within(settings, plain, source.classes, seed)
    return out


def _within(settings: TextSettings, plain: Chosen, classes: Sequence[str], seed: int) -> list[Chosen]:
    """A training set within every template. Raises McdiError where its label words are not as many as its classes."""
    words = list(settings.label_words.get(plain.name, classes))
    if len(words) != len(classes) or not all(isinstance(word, str) for word in words):
        raise McdiError(f"label_words of {plain.name} must be {len(classes)} words, of {', '.join(classes)}: not {words}")
    random.Random(f"{seed} words {plain.name}").shuffle(words)
    out = []
    for number, template in enumerate(settings.templates, 1):
        for turn, order in enumerate((words, words[::-1]) if WORDS in template else (words,), 1):
            frame = template.replace(WORDS, f"{', '.join(order[:-1])} or {order[-1]}")
            texts = [(frame.replace(TEXT, text[0]), *text[1:]) for text in plain.texts]
            out.append(plain._replace(name=f"template {number}.{turn} {plain.name}", texts=texts))
    return out


def _words(name: str, source: TextSet, settings: TextSettings, way: int, r: random.Random) -> list[Chosen]:
    """A set whose classes are words of a source; none where fewer than `way` are frequent enough."""
    said = [{word.lower() for word in WORD.findall(text[0])} for text in source.texts]
    count = Counter(word for words in said for word in words)
    usual = [word for word, n in sorted(count.items()) if settings.examples <= n <= COMMON * len(said)]
    chosen = r.sample(usual, min(settings.words, len(usual)))
    holding: dict[str, list[str]] = {word: [] for word in chosen}
    known: set[str] = set()  # what two words leave of two texts may be the same, and says nothing
    for j in r.sample(range(len(said)), len(said)):
        mine = [word for word in chosen if word in said[j]]
        if len(mine) == 1 and len(said[j]) > 2 and len(holding[mine[0]]) < settings.examples:
            left = re.sub(rf"\b{mine[0]}\b", "_", source.texts[j][0], flags=re.IGNORECASE | re.ASCII)
            if left not in known:
                known.add(left)
                holding[mine[0]].append(left)
    full = [texts for texts in holding.values() if len(texts) == settings.examples]
    if len(full) < way:
        return []
    texts: list[Sentences] = [(left,) for lefts in full for left in lefts]
    labels = [c for c in range(len(full)) for _ in range(settings.examples)]
    return [Chosen(f"words {name}", "train", labels, [False] * len(labels), texts, apart=True)]


def _some(source: TextSet, count: int, r: random.Random) -> tuple[list[Sentences], list[int]]:
    rows = r.sample(range(len(source.texts)), min(count, len(source.texts)))
    return [source.texts[j] for j in rows], [source.labels[j] for j in rows]


def _made(kind: str, name: str, texts: Sequence[Sentences], labels: Sequence[int], r: random.Random) -> Chosen:
    """A set of pairs out of one of single sentences, half of each class."""
    pairs: list[Sentences] = []
    answers = [j % 2 for j in range(len(texts))]
    for j, answer in enumerate(answers):
        first = texts[j][0]
        if kind == "same":
            fitting = [k for k in range(len(texts)) if k != j and (labels[k] == labels[j]) == bool(answer)]
            if not fitting:
                raise McdiError(f"the set {name} has one text only of some class: add texts, or set family.text.pairs = []")
            pairs.append((first, texts[r.choice(fitting)][0]))
        else:
            other = first if answer else texts[(j + r.randrange(1, len(texts))) % len(texts)][0]
            pairs.append((_half(first, 0), _half(other, 1)))
    return Chosen(f"{kind} {name}", "train", answers, [False] * len(pairs), pairs)


def _half(sentence: str, which: int) -> str:
    words = sentence.split()
    middle = max(1, len(words) // 2)
    return " ".join(words[:middle] if which == 0 else words[middle:] or words)


def pools_of(chosen: Sequence[Chosen], features: Tensor) -> dict[str, list[Pool]]:
    """Pools by split; the sets' texts lie one after another, features (N, F) of all of them."""
    pools: dict[str, list[Pool]] = {"train": [], "val": [], "test": []}
    first = 0
    for c in chosen:
        bank = torch.arange(first, first + len(c.labels))
        first += len(c.labels)
        whole = c.split == "test"
        labels, held = torch.tensor(c.labels), torch.tensor(c.held)
        pools[c.split].append(Pool(c.name, bank, labels, features[bank].float(), held, whole, c.apart))
    return pools
