"""Errors with an HTTP status."""

from collections.abc import Mapping

from mcdi.errors import McdiError


class Refused(McdiError):  # noqa: N818 - a refused request
    """An error with its own HTTP status; any other McdiError has status 422."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})


def busy(status: int, message: str) -> Refused:
    """A refusal that asks the client to retry after a second."""
    return Refused(status, message, {"Retry-After": "1"})
