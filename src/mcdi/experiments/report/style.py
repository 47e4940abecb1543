"""What does a method look like? The same colour and marker in every plot and every report."""

import itertools
import zlib
from collections.abc import Sequence

KNOWN = {
    "mc-di": ("#3b82c4", "o"),
    "mv-di": ("#e07b24", "s"),
    "tw-di": ("#2a9d6f", "D"),
    "ocd": ("#9467bd", "^"),
    "adam": ("#d1495b", "v"),
    "prototypes": ("#9c6b4f", "P"),
    "hypernetwork": ("#c85fa8", "X"),
    "reptile": ("#1fa3b5", "*"),
    "linear-probe": ("#c9a227", "h"),
    "meta-baseline": ("#1f4e79", "p"),
    "maml": ("#6b8e23", "d"),
    "vae": ("#5d3a9b", "8"),
    "meta-hypernetwork": ("#3f5b1a", "d"),
    "metadiff": ("#b5651d", "H"),
    "p-diff": ("#a9a9a9", "<"),
    "d2nwg": ("#444444", ">"),
    "ocd-residual": ("#6f4aa0", "^"),
    "ghn-3": ("#0f766e", "s"),
    "icis": ("#d98cb3", "X"),
}
OTHERS = (("#8a8f2a", "<"), ("#7a8290", ">"))


def look(method: str) -> tuple[str, str]:
    """Colour and marker of a method; of one that is not known, by its name."""
    return KNOWN[method] if method in KNOWN else OTHERS[zlib.crc32(method.encode()) % len(OTHERS)]


def among(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colours and markers of things that are no methods, one after the other."""
    return dict(zip(names, itertools.cycle(KNOWN.values()), strict=False))
