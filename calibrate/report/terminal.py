"""Any `Document` on a console: no line is longer than the console is wide.

Where a table is too wide, names lose their middle and columns go, the highest `Column.drop` first. Nothing depends on
colour, so that a report can be piped.
"""

import re
import textwrap
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text as Words

from calibrate.report.document import Cell, Document, Facts, Lines, Part, Section, Table, Text, Tone, printable, shown
from roofline.units import aligned, shortened

GAP, NARROWEST, NARROWEST_BAR, WIDEST_BAR = 2, 20, 8, 40
"""Characters between two columns, of a column of words below which another column goes, and of a bar."""
FEW = 3
"""Lines of a titled list that are shown; the rest are counted."""
_STYLE: dict[Tone, str] = {"": "", "strong": "bold", "faint": "dim", "warning": "yellow", "bad": "bold red"}
_FIGURE = re.compile(r"(?<=\d) (?=(?:%|[nµmkMGTP]?(?:s|B|B/s|FLOP|FLOP/s))(?!\w))|(?<=±) ")
"""The space inside "82.1 ms" and "± 1.2 %"."""


def render(document: Document, console: Console) -> None:
    """Print the whole document."""
    _rule(console, document.title)
    _parts(tuple(shown(document.parts, "terminal")), console, 0)


def _parts(parts: Sequence[Part], console: Console, depth: int) -> None:
    for i, part in enumerate(parts):
        if isinstance(part, Section):
            if depth == 0:
                _rule(console, part.title)
            elif not isinstance(part.parts[0], Table):
                console.print()
                say(console, part.title, "bold")
            _parts(part.parts, console, depth + 1)
        elif isinstance(part, Table):
            if i > 0 or depth != 1:  # a rule stands above the first
                console.print()
            _table(part, console)
        elif isinstance(part, Facts):
            for name, words in part.rows:
                say(console, f"{name}: {words}", _STYLE[part.tone])
        elif isinstance(part, Lines):
            few = part.lines[:FEW] if part.title else part.lines
            more = f" and {len(part.lines) - len(few)} more" if len(few) < len(part.lines) else ""
            for line in [f"{part.title}: {', '.join(few)}{more}"] if part.title else few:
                say(console, line, _STYLE[part.tone])
        elif isinstance(part, Text):
            if part.tone == "strong" and i > 0:
                console.print()
            marked = part.tone == "warning" and not part.words.startswith("!")
            say(console, f"{'warning: ' if marked else ''}{part.words}", _STYLE[part.tone])


def _rule(console: Console, title: str) -> None:
    """A titled line across the console; a title without room stands below it."""
    console.print()
    line = printable(title)
    fits = len(line) + 4 <= console.width
    console.rule(Words(line if fits else "", style="bold"), align="left", characters="─", style="dim")
    if not fits:
        say(console, line, "bold")


def say(console: Console, sentence: str, style: str = "") -> None:
    """Print wrapped text, a figure and its unit on one line."""
    held = _FIGURE.sub("\u00a0", printable(sentence))
    for line in textwrap.wrap(held, console.width, break_on_hyphens=False):
        console.print(Words(line.replace("\u00a0", " "), style=style), no_wrap=True, overflow="crop")


def _table(table: Table, console: Console) -> None:
    texts, widths = _fitted(table, console.width)
    grid = Grid(
        box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0), show_footer=table.total is not None
    )
    for i, width in widths.items():
        column = table.columns[i]
        pad = str.ljust if column.is_text else str.rjust  # by rich it would lose what aligns the units
        texts[i] = [pad(text, width) for text in texts[i]]
        style = "cyan" if i == 0 and column.is_text else "bold" if column.strong else "dim" if column.is_text else ""
        grid.add_column(
            Words(pad(column.header, width), style="bold"),
            Words(texts[i][-1], style="bold") if table.total else "",
            style="green" if column.bar else style,
            no_wrap=not column.wraps,
            overflow="fold" if column.wraps else "crop",
            width=width,
        )
    for n, row in enumerate(table.rows):
        style = "red" if any(cell.bad for cell in row) else ""
        grid.add_row(*(Words(texts[i][n], style=style) for i in widths))
    for line in console.render_lines(grid, pad=False):
        words = Words.assemble(*((part.text, part.style or "") for part in line))
        words.rstrip()
        console.print(words, no_wrap=True, overflow="crop")


def _fitted(table: Table, width: int) -> tuple[dict[int, list[str]], dict[int, int]]:
    """The cells and the width of each column that there is room for; the total is the last cell."""
    rows = [*table.rows, *([table.total] if table.total else [])]
    bars = [i for i, column in enumerate(table.columns) if column.bar]
    texts = {i: [printable(row[i].text) for row in rows] for i in range(len(table.columns)) if i not in bars}
    texts = {i: cells if table.columns[i].is_text else aligned(cells) for i, cells in texts.items()}
    widths = {i: max(map(len, (table.columns[i].header, *cells))) for i, cells in texts.items()}
    spare = width - _needed(widths)
    for i in bars:
        if (room := min(spare - GAP, WIDEST_BAR)) >= NARROWEST_BAR:
            texts[i], widths[i] = [_bar(row[i], room) for row in rows], room
            spare -= room + GAP
    order = sorted((i for i in texts if table.columns[i].drop), key=lambda i: table.columns[i].drop)
    soft = {i for i in texts if table.columns[i].is_text and i not in bars}
    while _needed({i: min(w, NARROWEST) if i in soft else w for i, w in widths.items()}) > width and order:
        widths.pop(order.pop())
    cap = max((widths[i] for i in soft if i in widths), default=0)
    while _needed(widths) > width and cap > 1:
        cap -= 1
        widths |= {i: min(widths[i], cap) for i in soft if i in widths}
    for i in widths:
        if i in soft and not table.columns[i].wraps:
            ended = [cell if len(cell) <= widths[i] else f"{cell[: widths[i] - 1]}…" for cell in texts[i]]
            texts[i] = shortened(texts[i], widths[i]) if table.columns[i].code else ended
    return texts, dict(sorted(widths.items()))


def _needed(widths: dict[int, int]) -> int:
    return sum(widths.values()) + GAP * (len(widths) - 1)


def _bar(cell: Cell, room: int) -> str:
    """A bar from its start to its end; one that goes backwards is drawn light."""
    if cell.span is None:
        return ""
    start, end = cell.span
    left, right = sorted((round(start * room), round(end * room)))
    left = min(left, room - 1)
    return " " * left + ("░" if end < start else "█") * (max(right - left, 1) if end != start else 0)
