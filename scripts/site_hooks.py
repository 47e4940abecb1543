"""What does the site need that is no page of docs/? Hooks of mkdocs: files of the repository beside docs/, and mathematics.

Pages link to each other as GitHub shows them: `../results/steps-natural.md` in docs/studies.md. Here such files become pages of
the site, and links to them follow. Formulas become MathML, which browsers draw themselves: no script, no other host.
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
# A page README.md would be the index of its folder.
BESIDE = {"README.md": "readme.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
PLAIN = ("LICENSE", "CITATION.cff")
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")
FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


def _sources() -> dict[str, str]:
    """{path in the repository: path in the site} of what lies beside docs/."""
    results = [f"results/{p.name}" for p in sorted((ROOT / "results").iterdir()) if p.suffix in (".md", ".csv", ".png")]
    return {**BESIDE, **{n: n for n in (*PLAIN, *results)}}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, place in _sources().items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of GitHub -> links of the site."""
    source = {place: name for name, place in _sources().items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[2]))
        place = BESIDE.get(target, target.removeprefix("docs/"))
        return link[1] + posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".") + link[3]

    return LINK.sub(moved, markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    def drawn(formula: re.Match[str]) -> str:
        tex = html.unescape(formula[2]).strip()
        return convert(tex[2:-2], display="block" if formula[1] == "div" else "inline")

    return FORMULA.sub(drawn, content)
