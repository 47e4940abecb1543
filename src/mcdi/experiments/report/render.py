"""HTML of reports: templates, plots as inline SVG, and tables. A page needs nothing from outside."""

import re
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_TEMPLATES = Environment(loader=PackageLoader("mcdi.experiments.report"), autoescape=True, trim_blocks=True)
STYLE: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}  # of all plots
_INK = "#010203"  # replaced by the page's text colour in plots, so that they follow light and dark


def render(template: str, **values: Any) -> Markup:
    """A template of this folder with values, which are escaped unless they are markup."""
    return Markup(_TEMPLATES.get_template(f"{template}.html").render(values))


def html_page(title: str, about: Sequence[str], sections: Mapping[str, str]) -> bytes:
    """A page: a title, paragraphs, and the sections (markup) that have a content."""
    return render("page", title=title, about=about, sections=sections).encode()


def html_table(header: Sequence[str], body: Sequence[Sequence[str]], kind: str = "", **more: Any) -> Markup:
    """A table. kind: a class of style.css. more: warning and note, above and below it; marked: first cells of bold lines."""
    return render("table", header=header, body=body, kind=kind, **more)


def drawn(draw: Callable[["Figure"], None], size: tuple[float, float], style: Any, **options: Any) -> bytes:
    """What `draw` puts on an empty figure of `size` inches, in a style (matplotlib's rc), saved with these options."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        buffer = BytesIO()
        figure.savefig(buffer, **options)
    return buffer.getvalue()


def html_figure(alt: str, note: str, height: float, draw: Callable[["Figure"], None]) -> Markup:
    """What `draw` puts on an empty figure, as inline SVG with a sentence below it; `height` in inches, of a width of 4.8."""
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK)
    salt = {"svg.fonttype": "none", "svg.hashsalt": alt}  # text stays text; ids of one figure differ from those of the next
    style: Any = {**ink, **salt, **STYLE, "axes.axisbelow": True, "text.parse_math": False}  # names from files are not formulae
    svg = drawn(draw, (4.8, height), style, format="svg", transparent=True).decode()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg[svg.index("<svg") :])  # the same ids come back in every figure of the page
    svg = svg.replace(_INK, "currentColor").removeprefix("<svg")
    return render("figure", alt=alt, note=note, svg=Markup(svg))


def legend(figure: "Figure") -> None:
    """One legend above all panels, each name once."""
    handles = dict(pair[::-1] for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True))
    columns = min(len(handles), max(1, 57 // (6 + max(map(len, handles), default=0))))  # what fits into the width
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=columns, fontsize=9, columnspacing=1)


def plain_numbers(axis: "Axis") -> None:
    """Numbers on a logarithmic axis without powers, which would need formulae."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
