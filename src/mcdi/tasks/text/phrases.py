"""Generated sets of labelled sentences, for text tasks without data. All words are this package's own."""

import random

from mcdi.tasks.text.labelled import TextSet
from mcdi.types import Sentences

TOPICS = {
    "kitchen": ("soup", "oven", "bread", "spoon", "kettle", "recipe", "salad", "butter", "pan", "sauce"),
    "sea": ("boat", "harbour", "wave", "sailor", "anchor", "tide", "island", "net", "captain", "beach"),
    "school": ("teacher", "lesson", "pencil", "exam", "pupil", "blackboard", "homework", "library", "essay", "class"),
    "garden": ("rose", "spade", "hedge", "seed", "lawn", "bee", "tulip", "soil", "fence", "pond"),
    "office": ("printer", "meeting", "manager", "desk", "invoice", "email", "colleague", "contract", "budget", "report"),
    "music": ("violin", "song", "concert", "drummer", "melody", "piano", "choir", "rhythm", "guitar", "singer"),
}
GOOD = ("lovely", "excellent", "cheerful", "reliable", "brilliant", "pleasant", "delightful", "superb")
BAD = ("dreadful", "broken", "gloomy", "useless", "awful", "dull", "disappointing", "terrible")
PLAIN = ("old", "new", "large", "small", "red", "wooden", "second", "other")
PEOPLE = ("my aunt", "the neighbour", "a friend", "our guest", "the visitor", "her brother", "this man", "the young woman")
PAST, FUTURE = ("yesterday", "last week", "years ago", "this morning"), ("tomorrow", "next week", "soon", "in a year")
Row = tuple[Sentences, str]


def _noun(r: random.Random, topic: str) -> str:
    return r.choice(TOPICS[topic])


def _sentence(r: random.Random, topic: str, word: str) -> str:
    forms = (
        f"{r.choice(PEOPLE)} talked about the {word} {_noun(r, topic)} and the {_noun(r, topic)}",
        f"near the {_noun(r, topic)} there is a {word} {_noun(r, topic)}",
        f"the {_noun(r, topic)} was {word}, said {r.choice(PEOPLE)}",
        f"{r.choice(PEOPLE)} found a {word} {_noun(r, topic)}",
    )
    return r.choice(forms)


def _topic(r: random.Random) -> Row:
    topic = r.choice(tuple(TOPICS))
    return (_sentence(r, topic, r.choice(GOOD + BAD + PLAIN)),), topic


def _opinion(r: random.Random) -> Row:
    label = r.choice(("negative", "positive"))
    return (_sentence(r, r.choice(tuple(TOPICS)), r.choice(GOOD if label == "positive" else BAD)),), label


def _tense(r: random.Random) -> Row:
    label, noun = r.choice(("future", "past")), _noun(r, r.choice(tuple(TOPICS)))
    if label == "past":
        return (f"{r.choice(PAST)} {r.choice(PEOPLE)} bought the {r.choice(PLAIN)} {noun}",), label
    return (f"{r.choice(FUTURE)} {r.choice(PEOPLE)} will buy the {r.choice(PLAIN)} {noun}",), label


def _form(r: random.Random) -> Row:
    label, sentence = r.choice(("question", "statement")), _sentence(r, r.choice(tuple(TOPICS)), r.choice(PLAIN))
    return (f"is it true that {sentence}?" if label == "question" else f"it is true that {sentence}.",), label


def _same_topic(r: random.Random) -> Row:
    label, topic = r.choice(("different", "same")), r.choice(tuple(TOPICS))
    other = topic if label == "same" else r.choice([t for t in TOPICS if t != topic])
    return (_sentence(r, topic, r.choice(PLAIN)), _sentence(r, other, r.choice(PLAIN))), label


def _same_opinion(r: random.Random) -> Row:
    (first,), mood = _opinion(r)
    (second,), other = _opinion(r)
    return (first, second), "agree" if mood == other else "disagree"


WRITERS = {"topic": _topic, "tense": _tense, "form": _form, "same-topic": _same_topic}
WRITERS |= {"opinion": _opinion, "same-opinion": _same_opinion}


def phrase_sets(seed: int, size: int = 2000) -> dict[str, dict[str, TextSet]]:
    """{set: {"train": texts}}, `size` examples each, decided by the seed."""
    out = {}
    for name, write in WRITERS.items():
        r = random.Random(f"{seed} {name}")
        rows = [write(r) for _ in range(size)]
        classes = tuple(sorted({label for _, label in rows}))
        texts, labels = tuple(t for t, _ in rows), tuple(classes.index(y) for _, y in rows)
        out[name] = {"train": TextSet(name, texts, labels, classes)}
    return out
