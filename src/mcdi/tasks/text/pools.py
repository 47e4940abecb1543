"""From sets of sentences to pools of tasks: which examples are used, which sets are for what, and sets made of others."""

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
TEXT, WORDS = "{text}", "{words}"  # placeholders of a template
COMMON = 0.05  # words in a larger fraction of the texts are those of any sentence
MOST_WORDS = 62  # classes are bits of a number


@dataclass(frozen=True)
class TextSettings:
    """Which sets are for what, and what is made of them.

    Attributes:
        test: sets that are never met in training.
        validation: sets that choose samplers and rates. All others are for training.
        pairs: kinds of sets of pairs made of every training set of single sentences: do two have one label ("same"), do two
            halves belong together ("halves").
        words: and one set whose classes are so many words, and whose texts lack them (SMLMT, 2009.08445). Labels are few; words
            are many kinds of tasks.
        templates: every training set comes again within each, where "{text}" is its text, of a pair the first, and "{words}"
            the words of its labels, "good, bad or plain"; such a set comes in two orders of them.
        scales: sets whose labels are a scale, of which the lowest and the highest third are two classes.
        label_words: {set: words of its classes, in their order}, where labels are no words.
        texts, test_texts: examples kept of a set, and of one for test; as many for its queries where it has a test or
            validation file.
        examples: texts a class that a training task is made of.
        hub: further data sets of Hugging Face's hub (labelled.read_hub), "owner/name" or "owner/name:configuration".
    """

    test: tuple[str, ...] = ("opinion", "same-opinion")
    validation: tuple[str, ...] = ("form", "same-topic")
    pairs: tuple[Literal["same", "halves"], ...] = ("same", "halves")
    words: int = 16
    templates: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()
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
                raise McdiError(f"the template {template!r} has no placeholder for a text: write {TEXT} in it")


class Chosen(NamedTuple):
    """A set as it is used: held_out are for queries only; separate_classes are never merged. `texts` are left out once their
    states are in the feature bank."""

    name: str
    split: Split
    labels: list[int]
    held_out: list[bool]
    texts: list[Sentences]
    separate_classes: bool = False


def choose(sets: Sets, settings: TextSettings, way: int, seed: int) -> list[Chosen]:
    """The examples of every set, with those that are for queries only. Raises McdiError for a set that is missing."""
    for name in (*settings.test, *settings.validation):
        if name not in sets:
            cure = "give --data a folder that has it, or set family.text.test and validation"
            raise McdiError(f"the set {name!r} is not in the data, which has {', '.join(sets)}: {cure}")
    unused = [name for name in settings.label_words if name not in sets]
    if unused:
        raise McdiError(f"label_words has the set {unused[0]!r}, which is not in the data: leave it out")
    out = []
    for name, parts in sets.items():
        split: Split = "test" if name in settings.test else "val" if name in settings.validation else "train"
        r = random.Random(f"{seed} {name}")
        source = next(parts[n] for n in ("train", "validation", "test", *parts) if n in parts)
        other = next((parts[n] for n in ("test", "validation") if n in parts and parts[n] is not source), None)
        most = settings.test_texts if split == "test" else settings.texts
        texts, labels = _some(source, most, r)
        held = [False] * len(texts)
        if split == "test" and other is not None:
            more = _some(other, most, r)
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
    words = [{word.lower() for word in WORD.findall(text[0])} for text in source.texts]
    count = Counter(word for of in words for word in of)
    frequent = [word for word, n in sorted(count.items()) if settings.examples <= n <= COMMON * len(words)]
    chosen = r.sample(frequent, min(settings.words, len(frequent)))
    masked: dict[str, list[str]] = {word: [] for word in chosen}
    seen: set[str] = set()  # two texts may be the same without their words, and then tell nothing
    for j in r.sample(range(len(words)), len(words)):
        inside = [word for word in chosen if word in words[j]]
        if len(inside) == 1 and len(words[j]) > 2 and len(masked[inside[0]]) < settings.examples:
            rest = re.sub(rf"\b{inside[0]}\b", "_", source.texts[j][0], flags=re.IGNORECASE | re.ASCII)
            if rest not in seen:
                seen.add(rest)
                masked[inside[0]].append(rest)
    full = [texts for texts in masked.values() if len(texts) == settings.examples]
    if len(full) < way:
        return []
    texts: list[Sentences] = [(rest,) for rests in full for rest in rests]
    labels = [c for c in range(len(full)) for _ in range(settings.examples)]
    return [Chosen(f"words {name}", "train", labels, [False] * len(labels), texts, separate_classes=True)]


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
        ids = torch.arange(first, first + len(c.labels))
        first += len(c.labels)
        labels, held_out, whole = torch.tensor(c.labels), torch.tensor(c.held_out), c.split == "test"
        pools[c.split].append(Pool(c.name, ids, labels, features[ids].float(), held_out, whole, c.separate_classes))
    return pools
