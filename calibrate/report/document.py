"""A report before it is laid out: sections of sentences, facts, tables, figures and lists, in the order of reading.

Each product builds one `Document`; `terminal`, `markdown` and `html` render any. What a terminal shows shorter than a
file is there twice, each part with the views that it is for. Text is plain: each renderer escapes what it must.

Example::

    columns = (Column("layer", lambda row: row.path, words=True), Column("time", lambda row: seconds(row.time_s)))
    Document("llama on h200", (Section("Layers", (table(columns, rows),)),))
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Generic, Literal, TypeVar

from roofline.units import UNKNOWN, seconds

View = Literal["terminal", "markdown", "html"]
TERMINAL: frozenset[View] = frozenset({"terminal"})
PAGE: frozenset[View] = frozenset({"html"})
FILES: frozenset[View] = frozenset({"markdown", "html"})
EVERYWHERE: frozenset[View] = TERMINAL | FILES

Tone = Literal["", "strong", "faint", "warning", "bad"]
"""The weight of a sentence: a headline, an aside, a doubt about figures, or an error in them."""
Row = TypeVar("Row")


@dataclass(frozen=True)
class Text:
    """One sentence."""

    words: str
    tone: Tone = ""
    views: frozenset[View] = EVERYWHERE


@dataclass(frozen=True)
class Lines:
    """A list; files have every line, a terminal the first few of a titled list."""

    lines: Sequence[str]
    title: str = ""
    tone: Tone = ""
    views: frozenset[View] = EVERYWHERE


@dataclass(frozen=True)
class Facts:
    """Names with their values."""

    rows: Sequence[tuple[str, str]]
    tone: Tone = ""
    views: frozenset[View] = EVERYWHERE


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    value: float | str | None = None
    """The value that a reader sorts by; the text where it is None."""
    bad: bool = False
    """Whether every view marks the cell."""
    hover: str = ""
    target: str = ""
    """Name of the section that the cell links to."""
    fill: float | None = None
    """Share of the cell that a page fills with colour."""
    span: tuple[float, float] | None = None
    """Where a bar starts and ends, as shares of its column."""


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column, and how a row fills it."""

    header: str
    cell: Callable[[Row], Cell | str]
    words: bool = False
    """Whether cells are words, which are aligned left, and not figures."""
    code: bool = False
    """Whether cells are names of modules or kernels; a terminal leaves out the middle of long ones."""
    wraps: bool = False
    """Whether cells are sentences, which may take several lines."""
    bar: bool = False
    """Whether cells are bars of characters, which a terminal draws in the room that is left."""
    strong: bool = False
    optional: bool = False
    """Whether the column is left out where all its cells are empty."""
    drop: int = 0
    """Order in which a narrow terminal leaves columns out, the highest number first; 0 stays."""
    views: frozenset[View] = EVERYWHERE

    @property
    def is_text(self) -> bool:
        return self.words or self.code or self.wraps or self.bar


@dataclass(frozen=True)
class Detail:
    """Facts that a page shows of one row after a click on the row, or on a mark of a figure whose id is the `key`."""

    key: str
    """Unique in the section that holds the table."""
    title: str
    facts: Sequence[tuple[str, str]] = ()
    bars: Sequence[tuple[str, float, str]] = ()
    """Name, signed length and text of each bar; a bar starts where the one before it ends."""
    names: Sequence[str] = ()
    """The kernels that ran it, or the operations that are in it."""
    command: str = ""
    """The command that measures it again."""


@dataclass(frozen=True)
class Group:
    """Rows that a page can fold into one."""

    cells: Sequence[Cell]
    """The row that stands for them."""
    rows: Sequence[int]
    """Their places in the table."""


@dataclass(frozen=True)
class Table:
    """Rows of cells under their columns; `total` is the last row, apart from the others."""

    columns: Sequence[Column[Any]]
    rows: Sequence[Sequence[Cell]]
    total: Sequence[Cell] | None = None
    views: frozenset[View] = EVERYWHERE
    details: Sequence[Detail] = ()
    """One for each row, or none."""
    groups: Sequence[Group] = ()

    def __post_init__(self) -> None:
        for row in (*self.rows, *([self.total] if self.total else []), *(group.cells for group in self.groups)):
            if len(row) != len(self.columns):
                raise ValueError(f"a row has {len(row)} cells, the table has {len(self.columns)} columns")
        if self.details and len(self.details) != len(self.rows):
            raise ValueError(f"{len(self.details)} details for {len(self.rows)} rows; each row needs one")

    def select(self, keep: Sequence[int]) -> "Table":
        """The table with these columns only."""
        rows = [[row[i] for i in keep] for row in self.rows]
        total = [self.total[i] for i in keep] if self.total else None
        groups = [replace(group, cells=[group.cells[i] for i in keep]) for group in self.groups]
        return replace(self, columns=[self.columns[i] for i in keep], rows=rows, total=total, groups=groups)


@dataclass(frozen=True)
class Figure:
    """A picture of a page: `draw` gives a plotly figure, SVG, or None where there is nothing to draw."""

    name: str
    """Unique in the document."""
    draw: Callable[[], Any]
    note: str = ""
    """A sentence that says how the figure is to be read."""
    views: frozenset[View] = PAGE


def chart(name: str, *of: object) -> Callable[[], Any]:
    """A `Figure.draw` that calls "module.function" of this folder; only then is it imported, for plotly takes long."""

    def draw() -> Any:
        module, _, function = name.partition(".")
        return getattr(import_module(f"calibrate.report.{module}"), function)(*of)

    return draw


@dataclass(frozen=True)
class Section:
    """Titled parts; sections in a section are its cards."""

    title: str
    parts: Sequence["Part"]
    name: str = ""
    """Name that links lead to; unique in the document."""
    folded: bool = False
    """Whether the section is closed at first on a page."""
    pair: bool = False
    """Whether a wide page shows the first part beside the others."""
    views: frozenset[View] = EVERYWHERE


Block = Text | Lines | Facts | Table | Figure
Part = Block | Section


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    parts: Sequence[Part]


def table(
    columns: Iterable[Column[Row]],
    rows: Iterable[Row],
    total: Row | None = None,
    views: frozenset[View] = EVERYWHERE,
    *,
    details: Sequence[Detail] = (),
    groups: Iterable[tuple[Row, Sequence[int]]] = (),
) -> Table:
    """The cells of `rows`, without the optional columns that say nothing.

    `groups`: each with the row that stands for it, and the places of its rows.
    """
    columns, rows = tuple(columns), tuple(rows)
    cells = [[_cell(column, row) for column in columns] for row in rows]
    keep = [
        i for i, column in enumerate(columns) if not column.optional or {row[i].text for row in cells} - {"", UNKNOWN}
    ]
    last = None if total is None else [_cell(column, total) for column in columns]
    folded = [Group([_cell(column, sum_) for column in columns], members) for sum_, members in groups]
    return Table(columns, cells, last, views, details, folded).select(keep)


def figure(value: float | None, show: Callable[[float | None], str] = seconds) -> Cell:
    """A cell that sorts by its value."""
    return Cell(show(value), value)


def brief(
    columns: Iterable[Column[Row]],
    few: Sequence[Row],
    rows: Sequence[Row],
    total: Row | None = None,
    *,
    details: Sequence[Detail] = (),
    groups: Sequence[tuple[Row, Sequence[int]]] = (),
) -> tuple[Table, ...]:
    """A table of which a terminal shows `few` rows, and a file all of them; `details` and `groups` as `table`."""
    columns = tuple(columns)
    if list(few) == list(rows):
        return (table(columns, rows, total, details=details, groups=groups),)
    whole = table(columns, rows, total, FILES, details=details, groups=groups)
    return table(columns, few, total, TERMINAL), whole


def shown(parts: Iterable[Part], view: View) -> Iterator[Part]:
    """The parts that a view has: tables without columns for others, no section without a part, no empty list."""
    for part in parts:
        if view not in part.views:
            continue
        if isinstance(part, Section):
            if inside := tuple(shown(part.parts, view)):
                yield replace(part, parts=inside)
        elif isinstance(part, Table):
            if part.rows:
                yield part.select([i for i, column in enumerate(part.columns) if view in column.views])
        elif isinstance(part, Lines | Facts):
            if part.lines if isinstance(part, Lines) else part.rows:
                yield part
        elif not isinstance(part, Text) or part.words:
            yield part


def printable(text: str) -> str:
    """One line without control characters, which a name may hold and no view may obey."""
    return "".join(c if c.isprintable() else "�" for c in " ".join(text.split()))


def _cell(column: Column[Row], row: Row) -> Cell:
    cell = column.cell(row)
    return Cell(cell) if isinstance(cell, str) else cell
