"""Any `Document` as GitHub Markdown; nothing is folded or shortened, and words are escaped."""

from collections.abc import Iterator, Sequence

from calibrate.report.document import Cell, Column, Document, Facts, Lines, Part, Section, Table, Text, printable, shown


def render(document: Document) -> str:
    """The whole document."""
    parts = [f"# {text(document.title)}", *_parts(tuple(shown(document.parts, "markdown")), 2)]
    return "\n\n".join(parts) + "\n"


def text(words: str) -> str:
    """Plain words that Markdown would otherwise read as layout."""
    line = printable(words)
    for mark in "\\`*_|<>[]#":
        line = line.replace(mark, "\\" + mark)
    return line


def code(name: str) -> str:
    """A name as code; a bar must still not end its cell."""
    return "`" + printable(name).replace("|", "\\|").replace("`", "'") + "`"


def _parts(parts: Sequence[Part], level: int) -> Iterator[str]:
    for part in parts:
        if isinstance(part, Section):
            yield f"{'#' * level} {text(part.title)}"
            yield from _parts(part.parts, level + 1)
        elif isinstance(part, Text):
            words = text(part.words)
            yield {"strong": f"**{words}**", "warning": f"> **{words}**", "bad": f"> **{words}**"}.get(part.tone, words)
        elif isinstance(part, Lines):
            items = "\n".join(f"- {text(line)}" for line in part.lines)
            yield f"{text(part.title)}:\n\n{items}" if part.title else items
        elif isinstance(part, Facts):
            yield "\n".join(f"- **{text(name)}**: {text(words)}" for name, words in part.rows)
        elif isinstance(part, Table):
            yield _table(part)


def _table(table: Table) -> str:
    keep = [i for i, column in enumerate(table.columns) if not column.bar]
    table = table.select(keep)
    rule = [":---" if column.is_text else "---:" for column in table.columns]
    rows = [[_cell(column, cell) for column, cell in zip(table.columns, row, strict=True)] for row in table.rows]
    total = [[f"**{words}**" if (words := text(cell.text)) else "" for cell in table.total]] if table.total else []
    header = [text(column.header) for column in table.columns]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows, *total))


def _cell(column: Column[object], cell: Cell) -> str:
    if column.code and cell.text:
        return code(cell.text)
    words = text(cell.text)
    return f"**{words}**" if cell.bad and words else words
