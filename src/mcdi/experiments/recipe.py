"""What is a recipe? One TOML file that decides a whole run: family, preparation, methods, evaluation."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from mcdi.errors import McdiError
from mcdi.methods import METHODS, Diffusion, make_method
from mcdi.tasks.registry import FamilySettings, family_settings
from mcdi.trajectories.prepare import Preparation
from mcdi.utils.settings import make


@dataclass(frozen=True)
class Evaluation:
    """tasks unseen tasks of the test split, the same for every method; validation tasks choose a diffusion's sampler;
    seeds: one generator is trained for each."""

    tasks: int = 600
    validation: int = 300
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Recipe:
    """`generator` holds what all learnt generators share; `method` holds a table for each method that differs."""

    name: str
    about: str = ""
    methods: tuple[str, ...] = ("prototypes", "adam", "reptile", "hypernetwork", "ocd", "tw-di", "mv-di", "mc-di")
    family: FamilySettings = field(default_factory=lambda: family_settings({}, "family"))
    preparation: Preparation = field(default_factory=Preparation)
    generator: Mapping[str, Any] = field(default_factory=dict)
    method: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def settings_of(self, name: str) -> dict[str, Any]:
        """The settings that method `name` is built with."""
        from mcdi.methods import DIFFUSIONS
        from mcdi.utils.settings import merged

        return merged(self.generator if name in DIFFUSIONS else {}, self.method.get(name, {}))


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(p.name.removesuffix(".toml") for p in resources.files("mcdi.recipes").iterdir() if p.name.endswith(".toml"))


def read_recipe(name: str) -> Recipe:
    """A shipped recipe by name, or a TOML file by path. Raises McdiError that lists everything wrong with it."""
    path = Path(name)
    if name in recipe_names():
        text = (resources.files("mcdi.recipes") / f"{name}.toml").read_text()
    elif path.suffix == ".toml" and path.is_file():
        text = path.read_text()
    else:
        raise McdiError(f"unknown recipe {name!r}: choose {', '.join(recipe_names())}, or give the path of a .toml file")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise McdiError(f"{name} is not valid TOML: {error}") from error
    return checked({"name": path.stem, **values}, name)


def checked(values: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from plain values, every method's settings tried at once."""
    recipe = _parsed(values, where)
    unknown = [m for m in (*recipe.methods, *recipe.method) if m not in METHODS]
    if unknown:
        raise McdiError(f"{where}: unknown method {unknown[0]!r}, choose {', '.join(METHODS)}")
    try:
        recipe.family.check()
    except McdiError as error:
        raise McdiError(f"{where}: {error}") from error
    for name in recipe.methods:
        method = make_method(name, recipe.settings_of(name))
        if not isinstance(method, Diffusion):
            continue
        traits = recipe.family.traits
        heads, rows_only = traits.condition_heads, traits.rows_only
        method.settings.check(traits.kind, heads=heads, rows_alone=rows_only, embedding=traits.embedding)
        if recipe.preparation.k % method.settings.k:
            raise McdiError(
                f"{where}: {name} takes k = {method.settings.k} targets evenly from preparation.k = {recipe.preparation.k}: "
                "make preparation.k a multiple of it"
            )
    if not (recipe.methods and recipe.evaluation.seeds):
        raise McdiError(f"{where}: methods and seeds need at least one entry each")
    if min(recipe.evaluation.tasks, recipe.evaluation.validation, recipe.preparation.tasks) < 1:
        raise McdiError(f"{where}: tasks and validation must be at least 1")
    return recipe


def _parsed(values: Mapping[str, Any], where: str) -> Recipe:
    """The recipe before it is checked: the source of data decides what its [family] table holds."""
    table, problems = values.get("family", {}), []
    if not isinstance(table, Mapping):
        problems.append(f"{where}.family = {table!r} must be a table")
    else:
        try:
            family = family_settings(table, f"{where}.family")
        except McdiError as error:
            problems.append(str(error))
    try:
        recipe = make(Recipe, {n: v for n, v in values.items() if n != "family"}, where)
    except McdiError as error:
        problems.append(str(error))
    if problems:
        raise McdiError("; ".join(problems))
    return replace(recipe, family=family)
