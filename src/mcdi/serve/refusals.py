"""How is a request refused? With a status and one sentence."""

from collections.abc import Mapping

from mcdi.errors import McdiError


class Refused(McdiError):  # noqa: N818 - it says what happened
    """An error whose HTTP status is known; any other McdiError is a 422."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, dict(headers or {})


def busy(status: int, sentence: str) -> Refused:
    """One that may succeed in a second."""
    return Refused(status, sentence, {"Retry-After": "1"})
