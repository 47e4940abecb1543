"""Recipes as TOML text, read and printed without torch: their names, and what a file says on top of its base."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from mcdi.errors import McdiError
from mcdi.utils.files import read_text
from mcdi.utils.settings import merged


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(p.name.removesuffix(".toml") for p in resources.files("mcdi.recipes").iterdir() if p.name.endswith(".toml"))


def read_tables(name: str, folder: Path = Path(), above: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a recipe says, its name included, on top of what its base says, table by table. Raises McdiError where there is no
    such recipe, it is not valid TOML, or bases form a circle.

    Args:
        name: a shipped recipe, or the path of a .toml file in `folder`. So is `base`, in the folder of the file that names it.
        above: the files that were read on the way to this base.
    """
    path = folder / name
    where = name if name in recipe_names() else str(path.resolve())
    if where in above:
        raise McdiError(f"{' -> '.join((*above, where))}: these bases form a circle; remove one of them")
    if name in recipe_names():
        text = (resources.files("mcdi.recipes") / f"{name}.toml").read_text()
    elif path.suffix == ".toml" and path.exists():
        text = read_text(path)
    else:
        unknown = f"{above[-1]}: unknown base" if above else "unknown recipe"
        raise McdiError(f"{unknown} {name!r}: choose {', '.join(recipe_names())}, or give the path of a .toml file")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise McdiError(f"{where} is not valid TOML: {error}") from error
    base = values.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise McdiError(f"{where}: base = {base!r} should be the name of a recipe or the path of a .toml file")
        values = merged(read_tables(base, path.parent, (*above, where)), {"name": path.stem, **values})
    return {"name": path.stem, **values}


def to_toml(values: Mapping[str, Any], table: str = "") -> Iterator[str]:
    """The lines of TOML that give `values` back; None, which TOML lacks, is left out and so takes its default."""
    yield from (f"{_key(n)} = {_inline(v)}" for n, v in values.items() if v is not None and not isinstance(v, Mapping))
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ("", f"[{table}{_key(name)}]", *to_toml(value, f"{table}{_key(name)}."))


def _key(name: str) -> str:
    return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else _inline(name)


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(n)} = {_inline(v)}" for n, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return str(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
