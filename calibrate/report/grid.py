"""Tables and sentences on a console: no line is longer than the console is wide.

Example: ``grid(console, [("layer", paths, "cyan", True), ("time", times, "bold", False)], shrink=0)``
"""

import re
import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from calibrate.report.paths import shortened

Column = tuple[str, Sequence[str], str, bool]
"""Header, cells, style, and whether it is aligned to the left."""

GAP = 2
"""Characters between two columns."""

_FIGURE = re.compile(r"(?<=\d) (?=(?:%|[nµmkMGTP]?(?:s|B|B/s|FLOP|FLOP/s))(?!\w))|(?<=±) ")
"""The space inside "82.1 ms" and "± 1.2 %"."""


def grid(
    console: Console,
    columns: Sequence[Column],
    shrink: int,
    marked: Sequence[bool] = (),
    rule_before_last: bool = False,
) -> None:
    """Print (header, cells, style, left-aligned) columns; the one numbered `shrink` gives way, then the right edge."""
    widths = [characters(header, cells) for header, cells, _, _ in columns]
    spare = console.width - sum(widths) - GAP * (len(widths) - 1)
    widths[shrink] = max(min(widths[shrink], widths[shrink] + spare), 1)
    names = shortened(columns[shrink][1], widths[shrink])
    lines = [
        Text(
            (" " * GAP).join(
                _pad(header, width, left) for (header, _, _, left), width in zip(columns, widths, strict=True)
            ),
            style="bold",
        )
    ]
    for i in range(len(names)):
        line = Text()
        for j, ((_, cells, style, left), width) in enumerate(zip(columns, widths, strict=True)):
            cell = _pad(names[i] if j == shrink else cells[i], width, left)
            line.append(" " * GAP if j else "").append(cell, style="red" if i < len(marked) and marked[i] else style)
        lines.append(line)
    ruled = {1, len(lines) - 1} if rule_before_last else {1}
    for i, line in enumerate(lines):
        line.rstrip()
        if i in ruled:
            console.print(Text("─" * min(sum(widths) + GAP * (len(widths) - 1), console.width), style="dim"))
        console.print(line, no_wrap=True, overflow="crop", crop=True)


def rule(console: Console, title: str) -> None:
    """A titled line across the console."""
    console.print()
    console.rule(Text(title, style="bold"), align="left", characters="─", style="dim")


def say(console: Console, sentence: str, style: str = "") -> None:
    """Print wrapped text, a figure and its unit on one line."""
    held = _FIGURE.sub("\u00a0", sentence)
    for line in textwrap.wrap(held, console.width, break_on_hyphens=False):
        console.print(Text(line.replace("\u00a0", " "), style=style), no_wrap=True, overflow="crop")


def needed(columns: Sequence[Column]) -> int:
    """Characters of a line of the table, if nothing gives way."""
    return sum(characters(header, cells) + GAP for header, cells, _, _ in columns) - GAP


def characters(header: str, cells: Sequence[str]) -> int:
    """Characters of a column."""
    return max(map(len, (header, *cells)))


def _pad(text: str, width: int, left: bool) -> str:
    return text.ljust(width) if left else text.rjust(width)
