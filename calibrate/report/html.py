"""Any `Document` as one HTML file that opens offline: style, script and plotly.js are inside, nothing is fetched.

The template lays it out and escapes every word; `page.js` sorts, filters and folds tables, draws plots once they come
into view, opens the details of a row, and keeps what the reader chose in the address.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from calibrate.report.document import Detail, Document, Figure, Part, Section, Table, Text, shown

HERE = Path(__file__).parent
TEMPLATE, STYLE, SCRIPT = "page.html.j2", "page.css", "page.js"
PLOT = 'class="plot"'
"""Marks the element of a plot."""
NAME, SENTENCE = 120, 600
"""Characters of a name in a cell or a title, and of a sentence, that are shown; the whole is in the element's title."""
MOST_ROWS = 2000
"""Rows of a table in a page: 16 columns of so many take 2 MB, and a page should be small enough to send."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that are no part of HTML, and those that turn the direction of the text after them."""


def render(document: Document) -> str:
    """The whole page; plotly.js is in it once, where there is a plot."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: _CONTROL.sub("�", value) if type(value) is str else value,
    )
    environment.tests["section"] = lambda part: isinstance(part, Section)
    environment.filters["brief"] = brief
    environment.filters["details"] = _details
    environment.filters["next"] = next
    pictures: list[str] = []
    parts = tuple(_drawn(shown(document.parts, "html"), pictures))
    plotly_js = Markup(get_plotlyjs()) if any(PLOT in picture for picture in pictures) else ""
    return environment.get_template(TEMPLATE).render(
        title=document.title,
        parts=parts,
        plotly_js=plotly_js,
        style=Markup((HERE / STYLE).read_text(encoding="utf-8")),
        script=Markup((HERE / SCRIPT).read_text(encoding="utf-8")),
        number=count(),
        name=NAME,
        sentence=SENTENCE,
    )


def brief(words: str, most: int) -> str:
    """The words without their middle where they are longer than `most` characters."""
    return words if len(words) <= most else f"{words[: most * 2 // 3]}…{words[-(most // 3) :]}"


def script_json(value: object) -> Markup:
    """JSON for a script element: "<" is written so that no text can end the element."""
    return Markup(_safe(json.dumps(value, separators=(",", ":"), allow_nan=False)))


def _safe(text: str) -> str:
    return text.replace("<", "\\u003c")


def _drawn(parts: Iterable[Part], pictures: list[str]) -> Iterator[Part]:
    """The parts with their figures drawn as markup, which is added to `pictures`; empty figures are left out."""
    for part in parts:
        if isinstance(part, Section):
            if inside := tuple(_drawn(part.parts, pictures)):
                yield replace(part, parts=inside)
        elif isinstance(part, Table):
            yield from _within(part)
        elif not isinstance(part, Figure):
            yield part
        elif (picture := part.draw()) is not None:
            pictures.append(_picture(picture, part))
            yield replace(part, draw=partial(Markup, pictures[-1]))


def _within(table: Table) -> Iterator[Part]:
    """The first `MOST_ROWS` rows of a table, and a sentence on the others."""
    if len(table.rows) <= MOST_ROWS:
        yield table
        return
    groups = [
        replace(group, rows=kept) for group in table.groups if (kept := [row for row in group.rows if row < MOST_ROWS])
    ]
    yield replace(table, rows=table.rows[:MOST_ROWS], details=table.details[:MOST_ROWS], groups=groups)
    yield Text(
        f"The first {MOST_ROWS:,} of {len(table.rows):,} rows; `show RUN --csv FILE` writes all of them.", "faint"
    )


def _details(details: Iterable[Detail]) -> Markup:
    return script_json([[d.key, d.title, d.facts, d.bars, d.names, d.command] for d in details])


def _picture(picture: object, figure: Figure) -> str:
    """The place of a plotly figure with its data, or SVG as it is; plotly.js is in the page once, not here."""
    if not isinstance(picture, go.Figure):
        return str(picture)
    height = picture.layout.height or picture.layout.template.layout.height or 450
    label = figure.note or figure.name.replace("-", " ")
    return (
        f'<div {PLOT} id="{escape(figure.name)}" role="img" aria-label="{escape(label)}" '
        f'style="min-height:{height:g}px"></div>'
        f'<script type="application/json" data-plot>{_safe(picture.to_json())}</script>'
    )
