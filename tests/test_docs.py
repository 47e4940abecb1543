"""What the documents tell a reader to type does what they say: Python blocks run, commands are commands of the program."""

import copy
import re
import shlex
from pathlib import Path

import pytest
import torch
import typer

import mcdi
from mcdi.cli.main import app
from mcdi.experiments.recipe_files import recipe_names
from mcdi.experiments.studies import STUDIES
from mcdi.methods import METHODS
from mcdi.networks.registry import NETWORKS
from mcdi.tasks.registry import SOURCES

ROOT = Path(__file__).parents[1]
PAGES = sorted(p for p in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")) if p.exists())
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?P<kind>\w+)\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<!`)`(mcdi [a-z][^`\n]*)`(?!`)")
SEVERAL = re.compile(r"[|\[]|, |COMMAND")  # `mcdi store info, verify` is no command
pytestmark = pytest.mark.skipif(
    not (ROOT / "docs").exists(), reason="docs/ is in the repository, not in the source distribution"
)


def named(paths, slow=()):
    marks = {name: pytest.mark.slow for name in slow}
    return [pytest.param(p, id=str(p.relative_to(ROOT)), marks=marks.get(p.name, ())) for p in paths]


def blocks(page, kind):
    return [b for b in BLOCK.finditer(page.read_text()) if b["kind"] == kind]


def commands(page):
    """Lines that begin with `mcdi` in bash blocks, and what the text says as `mcdi ...`, with whether it is such a mention."""
    lines = [line.strip() for block in blocks(page, "bash") for line in block["code"].splitlines()]
    mentions = [c for c in INLINE.findall(BLOCK.sub("", page.read_text())) if not SEVERAL.search(c)]
    return [(line, False) for line in lines if line.startswith("mcdi ")] + [(c, True) for c in mentions]


def parse(line, mention=False):
    """As the program would, up to values: sub-command, names of options, arguments, recipes and studies. A mention may leave
    out what a command needs."""
    command, words = typer.main.get_command(app), shlex.split(line, comments=True)[1:]
    while hasattr(command, "commands"):
        if not words and mention:
            return
        name = words.pop(0) if words else None
        assert name in command.commands, f"{line}: no command {name!r}"
        command = command.commands[name]
    context = typer.Context(command)
    try:
        values, rest, _ = command.make_parser(context).parse_args(words)
    except Exception as error:  # typer brings its own click, whose errors have no public name
        raise AssertionError(f"{line}: {error.format_message()}") from error
    assert not rest, f"{line}: {rest} is too much"
    missing = [p.name for p in command.params if p.required and not values.get(p.name)]
    assert mention or not missing, f"{line}: {missing} is missing"
    recipe = values.get("recipe")
    known = (*recipe_names(), "RECIPE", "NAME")
    assert not isinstance(recipe, str) or recipe.endswith(".toml") or recipe in known, f"{line}: no such recipe"
    study = values.get("study")
    assert not isinstance(study, str) or study in ("list", "STUDY", *STUDIES), f"{line}: no such study"


@pytest.fixture(scope="module")
def fit_once():
    """`mcdi.fit(tasks)` that remembers: README.md and the page that it leads to make the same generator of the same tasks."""
    fit, made = mcdi.fit, {}

    def remembered(tasks, *arguments, **options):
        if arguments or options:
            return fit(tasks, *arguments, **options)
        key = (tasks.name, tasks.shots)  # the name is a digest of examples and module
        if key not in made:
            made[key] = fit(tasks)
        return copy.deepcopy(made[key])

    return remembered


@pytest.fixture
def _registries():
    """What a page registers is gone for other tests."""
    yield
    for registry in (METHODS, NETWORKS, SOURCES):
        for name in set(registry._specs) - set(registry._built_in):
            del registry._specs[name]


@pytest.mark.usefixtures("_registries")
@pytest.mark.parametrize("page", named((p for p in PAGES if blocks(p, "python")), slow=["own-module.md"]))
def test_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch, fit_once):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mcdi, "fit", fit_once)
    names = {"__name__": "docs"}
    for block in blocks(page, "python"):
        line = page.read_text()[: block.start("code")].count("\n")
        code = compile("\n" * line + block["code"], str(page), "exec")  # so that an error names the line of the page
        if not block["reason"]:
            exec(code, names)
    check = CHECKS.get(page.name)
    if check:
        check(names)


def _preparation(names):
    store = names["store"]
    scores = store.read().scores.mean(0)
    assert len(store) == 200 and bool((scores[1:] >= scores[:-1]).all()) and float(scores[-1]) > 0.9
    assert torch.equal(names["part"].seeds, torch.tensor([3, 141, 7]))


def _refine(names):
    assert names["accuracy"] > 0.7 and names["one"]["weight"].shape == (2, 2)
    assert all(torch.equal(w, names["weights"][n]) for n, w in names["again"].generate(names["support"]).items())


def _own_module(names):
    scores = [names["accuracy"](names[which]) for which in ("generated", "trained", "start")]
    assert scores[0] > 0.93 > 0.9 > scores[1] > scores[2], scores
    assert names["read"]["generated"] > 0.84 > names["read"]["Adam"], names["read"]
    assert (Path("tutorial.png")).stat().st_size > 10_000


def _first_generator(names):
    truth, found = names["y"][450:], names["generator"].predict(names["weights"], names["x"][450])
    assert (found - truth[0]).square().mean() < 0.3 * truth[0].square().mean()


CHECKS = {
    "prepare-at-scale.md": _preparation,
    "refine-and-average.md": _refine,
    "own-module.md": _own_module,
    "first-generator.md": _first_generator,
    "README.md": _first_generator,
}


@pytest.mark.parametrize("page", named(p for p in PAGES if commands(p)))
def test_commands_of_a_page_are_commands(page):
    for line, mention in commands(page):
        parse(line, mention)


@pytest.mark.parametrize("page", named(PAGES))
def test_prose_of_a_page_is_at_most_120_characters_wide(page):
    text = re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), page.read_text(), flags=re.DOTALL | re.MULTILINE)
    free = ("|", "![", "$$")  # rows of tables, pictures and formulas cannot be broken
    wide = [n for n, line in enumerate(text.splitlines(), 1) if len(line) > 120 and not line.startswith(free)]
    assert not wide, f"{page.name}: lines {wide}"


@pytest.mark.parametrize(
    "line, wrong",
    [
        ("mcdi fly natural", "no command 'fly'"),
        ("mcdi run natural --wings 2", "No such option"),
        ("mcdi run natural --data", "requires an argument"),
        ("mcdi store info a b", "too much"),
        ("mcdi generate model", "['support'] is missing"),
        ("mcdi store", "no command None"),
        ("mcdi run nowhere", "no such recipe"),
        ("mcdi reproduce nothing natural", "no such study"),
    ],
)
def test_a_wrong_command_would_be_noticed(line, wrong):
    with pytest.raises(AssertionError, match=re.escape(wrong)):
        parse(line)
