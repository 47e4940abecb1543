"""What went wrong, in one sentence that names the value and the cure."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


class McdiError(ValueError):
    """An error that a user can cause and cure; the CLI prints its message without a traceback."""


class McdiWarning(UserWarning):
    """What a user should know, and what is no error; the CLI prints it as a note."""


class Interrupted(BaseException):
    """Ctrl-C at the CLI, with the line that is printed. It is no KeyboardInterrupt, which libraries catch and report in their
    own words."""


@contextmanager
def explained(problem: str, cure: str, *kinds: type[Exception]) -> Iterator[None]:
    """Failures of these kinds, or of any but McdiError, as one sentence: problem (reason): cure."""
    caught = kinds or (Exception,)
    try:
        yield
    except McdiError:
        raise
    except caught as error:
        text = getattr(error, "strerror", None) or str(error)
        reason = next((line.strip() for line in text.splitlines() if line.strip()), "")
        name = type(error).__name__  # shown where any kind is caught, or the error has no text
        reason = reason[:200] if kinds and reason else f"{name}: {reason[:200]}" if reason else name
        raise McdiError(f"{problem} ({reason}): {cure}") from error


def optional(name: str, extra: str, user: str) -> Any:
    """A module of an extra of this package. Raises McdiError, for what uses it, where it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise McdiError(f"{user} needs {name} ({error}): pip install 'mcdi[{extra}]'") from error
