"""Generators that come with the package, a folder each, and their cards; nothing here needs torch."""

import re
from pathlib import Path

from mcdi.errors import McdiError

READY_MADE = Path(__file__).parent
README = "README.md"  # the card, on the Hub too


def ready_made_names() -> list[str]:
    """In order."""
    return sorted(path.parent.name for path in READY_MADE.glob("*/config.json"))


def ready_made(model: str | Path) -> Path | None:
    """The folder of the ready-made generator of a name; None for all else, and where there is a folder of that name."""
    return READY_MADE / model if str(model) in ready_made_names() and not Path(model).exists() else None


def card_of(name: str) -> str:
    """The card of a ready-made generator. Raises McdiError where there is none of that name."""
    if name not in ready_made_names():
        raise McdiError(f"there is no ready-made generator {name!r}: choose {', '.join(ready_made_names())}")
    return (READY_MADE / name / README).read_text(encoding="utf-8")


def about(name: str) -> str:
    """The beginning of its card."""
    _title, text, *_ = card_of(name).split("\n\n")
    return re.split(r"[.:]\s", text.replace("\n", " "))[0]
