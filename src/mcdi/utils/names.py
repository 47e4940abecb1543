"""Regular expressions for names of tensors."""

import re
from collections.abc import Sequence


def exactly(names: Sequence[str]) -> str:
    """One that matches these names and no others; "" for none."""
    return "^(" + "|".join(map(re.escape, names)) + ")$" if names else ""
