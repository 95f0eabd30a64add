"""Any `Document` as Dash components: the renderer of the viewer, beside those of terminal, Markdown and HTML.

React escapes every word. A plot is a `dcc.Graph`; a drawing (SVG, whose names are escaped where it is made) is put into
its place by `assets/view.js`, which also sorts the tables.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from dash import dcc, html
from dash.development.base_component import Component

from calibrate.report.document import Cell, Column, Document, Facts, Figure, Lines, Part, Section, Table, Text, shown

ASSETS = Path(__file__).with_name("assets")
PLOT = {"displaylogo": False, "responsive": True, "displayModeBar": False}
_draws = count()
"""Keys of drawn elements: React makes an element with a new key anew, whatever the script has done to the old one."""


def components(document: Document) -> list[Component]:
    """The parts of a page under its title."""
    return [html.H1(document.title), *_parts(tuple(shown(document.parts, "html")), 2)]


def _parts(parts: Iterable[Part], level: int) -> Iterator[Component]:
    for part in parts:
        if isinstance(part, Section):
            if inside := list(_parts(part.parts, level + 1)):
                about = {"id": part.name} if part.name else {}
                heading = html.Summary if part.folded else (html.H2, html.H3, html.H4)[min(level, 4) - 2]
                title = [heading(part.title)] if part.title else []
                tag = html.Details if part.folded else html.Section
                look = ("card " if level > 2 else "") + ("pair" if part.pair else "")
                yield tag([*title, *inside], className=look, **about)
        elif isinstance(part, Text):
            yield html.P(part.words, className=part.tone)
        elif isinstance(part, Lines):
            lines = html.Ul([html.Li(line) for line in part.lines], className=part.tone)
            yield html.Details([html.Summary(part.title), lines]) if part.title else lines
        elif isinstance(part, Facts):
            yield html.Dl([tag(words) for row in part.rows for tag, words in zip((html.Dt, html.Dd), row, strict=True)])
        elif isinstance(part, Table):
            yield _table(part)
        elif (picture := part.draw()) is not None:
            yield _figure(part, picture)


def _figure(part: Figure, picture: Any) -> Component:
    note = [html.P(part.note, className="faint")] if part.note else []
    if not isinstance(picture, go.Figure):
        about = {"data-svg": str(picture), "key": f"{part.name}-{next(_draws)}"}
        return html.Div([html.Div(className="drawing", **about), *note], className="figure")
    label = {"role": "img", "aria-label": part.note or part.name.replace("-", " ")}
    plot = dcc.Graph(id={"plot": part.name}, figure=picture, config=PLOT, responsive=True)
    height = picture.layout.height or picture.layout.template.layout.height
    return html.Div([html.Div(plot, style={"height": f"{height}px"}, **label), *note], className="figure")


def _table(part: Table) -> Component:
    keep = [i for i, column in enumerate(part.columns) if not column.bar]
    columns = [part.columns[i] for i in keep]
    buttons = [html.Button(column.header, type="button", title="Sort by this column") for column in columns]
    head = html.Tr([
        html.Th(button, className="words" if column.is_text else "", scope="col")
        for column, button in zip(columns, buttons, strict=True)
    ])  # fmt: skip

    def row(cells: Sequence[Cell]) -> Component:
        return html.Tr([_cell(column, cells[i]) for i, column in zip(keep, columns, strict=True)])

    foot = [html.Tfoot(row(part.total))] if part.total else []
    table = html.Table([html.Thead(head), html.Tbody([row(cells) for cells in part.rows]), *foot])
    about = {"role": "region", "aria-label": f"Table: {columns[0].header or 'figures'}"}
    return html.Div(table, className="scroll", key=f"table-{next(_draws)}", tabIndex="0", **about)


def _cell(column: Column[Any], cell: Cell) -> Component:
    looks = {"words": column.is_text, "bad": cell.bad, "wraps": column.wraps, "name": column.code}
    about: dict[str, Any] = {"className": " ".join(name for name, holds in looks.items() if holds)}
    if cell.value is not None:
        about["data-v"] = str(cell.value)
    if cell.hover:
        about["title"] = cell.hover
    if cell.fill is not None:
        about["style"] = {"--fill": f"{100 * min(max(cell.fill, 0), 1):.1f}%"}
    words = html.Code(cell.text) if column.code and cell.text else cell.text
    return html.Td(html.A(words, href=f"#{cell.target}") if cell.target else words, **about)
