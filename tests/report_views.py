"""A document as each view shows it, for the tests of reports."""

import io
import re

from html_page import Page
from rich.console import Console

from calibrate.report import html, markdown, terminal
from calibrate.report.document import Document


def on_terminal(document: Document, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    terminal.render(document, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    assert "\x1b" not in text, "no colour when piped"
    return text


def as_markdown(document: Document) -> str:
    """Every table has as many cells in each row as columns."""
    text = markdown.render(document)
    for block in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block
    return text


def as_page(document: Document) -> Page:
    page = Page(html.render(document))
    page.check()
    return page


def every_view(document: Document, width: int = 120) -> dict[str, str]:
    """The words of each view in one line, without Markdown's escapes."""
    page = as_page(document)
    texts = {
        "terminal": on_terminal(document, width),
        "markdown": as_markdown(document).replace("\\", ""),
        "html": "\n".join(page.words),
    }
    return {view: " ".join(text.split()) for view, text in texts.items()}
