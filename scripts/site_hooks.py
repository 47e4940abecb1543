"""Hooks of mkdocs, which mkdocs.yml names: files of the repository outside docs/ become pages, and formulas become MathML.

Pages link to each other as GitHub shows them, for example to `../../results/steps-natural.md` in docs/results/. Such
files become pages of the site under results/tables/, and links to them follow. Browsers draw MathML without a script.
"""

import html
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# mkdocs would make a page README.md the index of its folder.
RENAMED = {"README.md": "readme.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
PLAIN = ("LICENSE", "CITATION.cff")
TABLES = "results/tables"  # apart from the pages of docs/results/
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")
FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


def _sources() -> dict[str, str]:
    """{path in the repository: path in the site} of the files outside docs/."""
    results = [p.name for p in sorted((ROOT / "results").iterdir()) if p.suffix in (".md", ".csv", ".png")]
    return {**RENAMED, **{n: n for n in PLAIN}, **{f"results/{n}": f"{TABLES}/{n}" for n in results}}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, target in _sources().items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that work on GitHub become links that work in the site."""
    targets = _sources()
    source = {target: name for name, target in targets.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def site_link(link: re.Match[str]) -> str:
        linked = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[2]))
        target = targets.get(linked, linked.removeprefix("docs/"))
        return link[1] + posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".") + link[3]

    return LINK.sub(site_link, markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas become MathML."""

    def mathml(formula: re.Match[str]) -> str:
        tex = html.unescape(formula[2]).strip()
        return convert(tex[2:-2], display="block" if formula[1] == "div" else "inline")

    return FORMULA.sub(mathml, content)
