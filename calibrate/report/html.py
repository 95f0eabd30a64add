"""Any `Document` as one HTML file that opens offline: style, script and plotly.js are inside, nothing is fetched.

The template lays it out and escapes every word; tables sort by a click on a header.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from calibrate.report.document import Document, Figure, Part, Section, shown

TEMPLATE = "page.html.j2"
PLOT = "plotly-graph-div"
"""Class of the element of a plot."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that are no part of HTML."""


def render(document: Document) -> str:
    """The whole page; plotly.js is in it once, where there is a plot."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: _CONTROL.sub("�", value) if type(value) is str else value,
    )
    environment.tests["section"] = lambda part: isinstance(part, Section)
    pictures: list[str] = []
    parts = tuple(_drawn(shown(document.parts, "html"), pictures))
    plotly_js = Markup(get_plotlyjs()) if any(PLOT in picture for picture in pictures) else ""
    return environment.get_template(TEMPLATE).render(title=document.title, parts=parts, plotly_js=plotly_js)


def _drawn(parts: Iterable[Part], pictures: list[str]) -> Iterator[Part]:
    """The parts with their figures drawn as markup, which is added to `pictures`; empty figures are left out."""
    for part in parts:
        if isinstance(part, Section):
            if inside := tuple(_drawn(part.parts, pictures)):
                yield replace(part, parts=inside)
        elif not isinstance(part, Figure):
            yield part
        elif (picture := part.draw()) is not None:
            pictures.append(_picture(picture, part.name))
            yield replace(part, draw=partial(Markup, pictures[-1]))


def _picture(picture: object, name: str) -> str:
    """A plotly figure, or SVG as it is; plotly.js is in the page once, not here."""
    if not isinstance(picture, go.Figure):
        return str(picture)
    config = {"displaylogo": False, "responsive": True, "displayModeBar": False}
    markup: str = picture.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=config)
    return markup
