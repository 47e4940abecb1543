"""The recipe of a run, checked as a whole: family, preparation, methods, evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mcdi.errors import McdiError
from mcdi.experiments.recipe_files import read_tables
from mcdi.methods import METHODS, method_spec
from mcdi.methods.base import ChecksNetwork
from mcdi.tasks.registry import FamilySettings, family_settings
from mcdi.trajectories.prepare import Preparation
from mcdi.utils.settings import make, merged


@dataclass(frozen=True)
class Evaluation:
    """tasks: unseen tasks of the test split, the same for every method. validation: tasks on which a sampler is selected.
    seeds: one generator is trained with each."""

    tasks: int = 600
    validation: int = 300
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Recipe:
    """What decides a run. generator: settings shared by the methods that train a denoiser. method: a table for each."""

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
        return merged(self.generator if method_spec(name).shared_settings else {}, self.method.get(name, {}))


def read_recipe(name: str) -> Recipe:
    """A shipped recipe by name, or a TOML file by path, with its base. Raises McdiError that lists everything wrong with it."""
    return checked(read_tables(name), name)


def checked(values: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from plain values; `where` names them in errors. Every method is built, so that its settings are checked too."""
    rest, problems = dict(values), []
    table = rest.pop("family", {})  # the source of data decides what it holds
    try:
        if not isinstance(table, Mapping):
            raise McdiError(f"{where}.family = {table!r} must be a table")
        family = family_settings(table, f"{where}.family")
    except McdiError as error:
        problems.append(str(error))
    try:
        recipe = make(Recipe, rest, where)
    except McdiError as error:
        problems.append(str(error))
    if problems:
        raise McdiError("; ".join(problems))
    recipe = replace(recipe, family=family)
    unknown = [m for m in (*recipe.methods, *recipe.method) if m not in METHODS]
    if unknown:
        raise McdiError(f"{where}: unknown method {unknown[0]!r}, choose {', '.join(METHODS)}")
    try:
        recipe.family.check()
    except McdiError as error:
        raise McdiError(f"{where}: {error}") from error
    start = recipe.preparation.start
    for name in (*recipe.methods, *([] if start == "drawn" else [start])):
        method = method_spec(name).build(recipe.settings_of(name))
        if isinstance(method, ChecksNetwork):
            method.check_network(recipe.family.traits)
            if (k := recipe.preparation.k) % method.local_targets:
                wants = f"{name} takes k = {method.local_targets} targets evenly from preparation.k = {k}"
                raise McdiError(f"{where}: {wants}: make preparation.k a multiple of it")
    if not (recipe.methods and recipe.evaluation.seeds):
        raise McdiError(f"{where}: methods and seeds need at least one entry each")
    if min(recipe.evaluation.tasks, recipe.evaluation.validation, recipe.preparation.tasks) < 1:
        raise McdiError(f"{where}: tasks and validation must be at least 1")
    return recipe
