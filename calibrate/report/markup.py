"""The parts of an HTML report: the page itself, cards, sortable tables, and plots.

What is called text is escaped here; what is called content is markup already.

Example: ``card("Peaks", table(("peak", "rate"), [[plain("HBM"), figure("4.80 TB/s", 4.8e12)]], left=(0,)))``
"""

from collections.abc import Iterable, Sequence
from html import escape

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from calibrate.report.page import SCRIPT, STYLE

Cell = tuple[str, str]
"""(markup, attributes) of a table's cell."""


def document(title: str, body: Iterable[str]) -> str:
    """The whole page around its parts; plotly.js is in it once."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><script>{get_plotlyjs()}</script></head>\n"
        f"<body><main>{''.join(body)}</main><script>{SCRIPT}</script></body></html>\n"
    )


def listed(title: str, items: Sequence[str]) -> str:
    """A folded list; "" where there is nothing to list."""
    return details(title, f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>") if items else ""


def details(title: str, content: str) -> str:
    """A card that is closed at first."""
    return f'<details class="card"><summary>{escape(title)}</summary>{content}</details>'


def card(title: str, *content: str) -> str:
    """A titled box around markup."""
    return f'<div class="card"><h3>{escape(title)}</h3>{"".join(content)}</div>'


def chart(drawn: go.Figure, name: str) -> str:
    """A plotly figure; plotly.js is in the page once, not here."""
    markup: str = drawn.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={"displaylogo": False, "responsive": True, "displayModeBar": False},
    )
    return markup


def plain(text: str) -> Cell:
    """A cell of words, escaped."""
    return escape(text), ""


def figure(text: str, value: float | None) -> Cell:
    """A cell of a figure, that sorts by its value."""
    return escape(text), f' data-v="{"" if value is None else value}"'


def table(
    header: Iterable[str],
    rows: Iterable[Sequence[Cell]],
    left: Sequence[int],
    foot: Sequence[Cell] | None = None,
    tall: bool = False,
) -> str:
    """A table; columns numbered in `left` hold words, the others figures."""
    head = "".join(f"<th{_side(i, left)}>{escape(name)}</th>" for i, name in enumerate(header))
    body = "".join(_row(cells, left) for cells in rows)
    end = f"<tfoot>{_row(foot, left)}</tfoot>" if foot else ""
    return (
        f'<div class="scroll{" tall" if tall else ""}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody>{end}</table></div>"
    )


def _row(cells: Sequence[Cell], left: Sequence[int]) -> str:
    inside = "".join(f"<td{_side(i, left, attributes)}>{markup}</td>" for i, (markup, attributes) in enumerate(cells))
    return f"<tr>{inside}</tr>"


def _side(i: int, left: Sequence[int], attributes: str = "") -> str:
    """The attributes of a cell, which is of class "words" besides where its column holds words."""
    if i not in left:
        return attributes
    if ' class="' in attributes:
        return attributes.replace(' class="', ' class="words ')
    return attributes + ' class="words"'
