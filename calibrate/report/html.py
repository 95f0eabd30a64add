"""Any `Document` as one HTML file that opens offline: style, script and plotly.js are inside, nothing is fetched.

The template lays it out and escapes every word; tables sort by a click on a header.

Example: ``Path("report.html").write_text(render(run_document(reports, run, spec)), encoding="utf-8")``
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from calibrate.report.document import Document, Figure, Part, Section, shown

TEMPLATE = "page.html.j2"

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that are no part of HTML."""


@dataclass(frozen=True)
class _Drawn:
    """A figure as markup."""

    markup: Markup
    note: str


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
    parts = _drawn(tuple(shown(document.parts, "html")))
    has_plots = any("plotly-graph-div" in markup for markup in _markup(parts))
    return environment.get_template(TEMPLATE).render(
        title=document.title, parts=parts, plotly_js=Markup(get_plotlyjs()) if has_plots else ""
    )


def _drawn(parts: tuple[Part, ...]) -> tuple["Part | _Drawn", ...]:
    """The parts with their figures drawn; what has no picture is left out."""
    made: list[Part | _Drawn] = []
    for part in parts:
        if isinstance(part, Section):
            if inside := _drawn(tuple(part.parts)):
                made.append(replace(part, parts=inside))
        elif not isinstance(part, Figure):
            made.append(part)
        elif (picture := part.draw()) is not None:
            made.append(_Drawn(_picture(picture, part.name), part.note))
    return tuple(made)


def _picture(picture: object, name: str) -> Markup:
    """A plotly figure, or SVG as it is; plotly.js is in the page once, not here."""
    if not isinstance(picture, go.Figure):
        return Markup(str(picture))
    config = {"displaylogo": False, "responsive": True, "displayModeBar": False}
    return Markup(picture.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=config))


def _markup(parts: "tuple[Part | _Drawn, ...]") -> list[str]:
    found = []
    for part in parts:
        found += _markup(tuple(part.parts)) if isinstance(part, Section) else []
        found += [part.markup] if isinstance(part, _Drawn) else []
    return found
