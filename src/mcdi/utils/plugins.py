"""Extensions in packages of their own: their entry points are loaded when a name is looked up for the first time."""

from functools import cache
from importlib.metadata import entry_points

from mcdi.errors import McdiError


@cache
def load_plugins(group: str) -> None:
    """Import every installed entry point of `group`, whose import registers what it offers.

    Args:
        group: "mcdi.methods", "mcdi.tasks" or "mcdi.networks".

    Raises:
        McdiError: a package that cannot be imported, with its name and the reason.
    """
    for point in entry_points(group=group):
        try:
            point.load()
        except Exception as error:  # whatever another package raises at its import
            raise McdiError(
                f"the extension {point.name!r} ({point.value}) of {group} cannot be imported: {error}; update or uninstall it"
            ) from error
