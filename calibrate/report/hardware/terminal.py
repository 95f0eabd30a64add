"""A characterisation on the terminal: the device and what was seen of it, and its figures in groups.

Lines never exceed the console's width: columns that matter least are left out. Long lists are shortened
(`calibrate.report.hardware.table`); report.md and report.html have every figure. Marks are characters, not colours.

Example: ``render(spec, measurements, run, rich.console.Console(width=120))``
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich.console import Console

from calibrate.report.grid import Column, grid, needed, rule, say
from calibrate.report.hardware import table, wording
from calibrate.report.hardware.rows import Group, groups
from calibrate.report.units import aligned
from profiler.record.measurement import Measurement
from profiler.record.run import Run
from roofline.hardware.spec import HardwareSpec

LEFT_OUT_FIRST = (
    "flops",
    "typical",
    "variation",
    "beside",
    "bytes",
    "datasheet",
    "at_clock",
    "roofline",
    "of",
    "dtype",
)
"""Columns in the order they go when the console is narrow; figure, value, interval and notes stay."""


def render(spec: HardwareSpec, measurements: Sequence[Measurement], run: Run, console: Console) -> None:
    """Print it all; nothing is computed here but the layout."""
    found = groups(spec, measurements, run)
    rule(console, run.environment.device)
    for fact in wording.facts(spec, measurements, run):
        say(console, f"{fact.name}: {fact.value}")
    for note in run.environment.notes:
        say(console, f"warning: {note}", "yellow")
    if text := wording.headline(found):
        console.print()
        say(console, text, "bold")
    short = [table.shortened(group) for group in found]
    shown = [row for one in short for line in one.lines for row in (line.row, line.beside) if row is not None]
    notes, letters = wording.footnotes(shown)
    for group, one in zip(found, short, strict=True):
        _group(group, one, letters, console)
    if not found:
        say(console, "no figure has been measured in this run")
    _after(spec, found, notes, console)


def _group(group: Group, short: table.Shortened, letters: Mapping[str, tuple[str, ...]], console: Console) -> None:
    console.print()
    lines = [_noted(line, letters) for line in short.lines]
    columns = []
    for column in table.present(lines):
        cells = [column.cell(line) for line in lines]
        header = {"figure": group.title, "beside": short.beside}.get(column.key, column.header)
        shown = cells if column.text else aligned(cells)
        columns.append((column.key, (header, shown, column.style, column.text)))
    for key in LEFT_OUT_FIRST:
        if needed([column for _, column in columns]) <= console.width:
            break
        columns = [column for column in columns if column[0] != key]
    plain: list[Column] = [column for _, column in columns]
    if lines:
        marked = [any(c.endswith(" !") for c in (column.cell(line) for column in table.COLUMNS)) for line in lines]
        grid(console, plain, shrink=0, marked=marked)
    else:
        say(console, group.title, "bold")
    for sentence in short.sentences:
        say(console, sentence, "dim")
    for what, reason in short.failed:
        say(console, f"no {what}: {reason}", "red")


def _noted(line: table.Line, letters: Mapping[str, tuple[str, ...]]) -> table.Line:
    rows = [row for row in (line.row, line.beside) if row is not None]
    found = dict.fromkeys(letter for row in rows for letter in letters[wording.identity(row)])
    return replace(line, notes=",".join(found))


def _after(spec: HardwareSpec, found: Sequence[Group], notes: Mapping[str, str], console: Console) -> None:
    if notes:
        rule(console, "notes")
        for letter, text in notes.items():
            say(console, f"{letter}: {text}", "yellow")
    prices, absent = wording.prices(spec), wording.left_out(spec)
    if prices or absent:
        rule(console, "peaks that price operations")
        say(console, prices or "none were measured")
    for line in absent:
        say(console, f"left out: {line}", "dim")
    rule(console, "words")
    for word, text in wording.words(found).items():
        say(console, f"{word}: {text}", "dim")
