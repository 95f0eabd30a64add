"""The parts of a Markdown report: tables, lists, and words that Markdown must not read as layout.

Example: ``table(("peak", "rate"), "lr", [(text("HBM | main"), "4.80 TB/s")])``
"""

from collections.abc import Iterable, Sequence

from calibrate.report.wording import Fact


def facts(found: Sequence[Fact]) -> str:
    """A list of "name: value"."""
    return "\n".join(f"- {fact.name}: {text(fact.value)}" for fact in found)


def listed(title: str, items: Sequence[str]) -> list[str]:
    """A titled list as paragraphs; none where there is nothing to list."""
    return [f"{title}:", "\n".join(f"- {text(item)}" for item in items)] if items else []


def table(header: Iterable[str], align: str, rows: Iterable[Sequence[str]]) -> str:
    """Cells are markup already; `align` has "l" or "r" for each column."""
    rule = ["---:" if letter == "r" else ":---" for letter in align]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (list(header), rule, *rows))


def text(words: str) -> str:
    """Plain words that Markdown would otherwise read as layout."""
    line = " ".join(words.split())
    for mark in "\\`*_|<>[]#":
        line = line.replace(mark, "\\" + mark)
    return line


def code(name: str) -> str:
    """A name as code; a bar must still not end its cell."""
    return "`" + name.replace("|", "\\|").replace("`", "'") + "`"
