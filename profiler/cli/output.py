"""What goes to stdout: with ``--json`` one JSON document and nothing else, whatever a library prints meanwhile.

Example::

    with stdout_to_stderr_if(as_json):
        document = work()
    print_json(document)
"""

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from rich.console import Console

PIPED_WIDTH = 120
"""Characters a line where no terminal says; the tables need 110 for all their words (calibrate.report.terminal)."""


class _QuietConsole(Console):
    """Leaves a broken pipe to `profiler.cli.app.main`; rich itself would end the process with code 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(**options: Any) -> Console:
    """A console on stdout, as wide as the terminal or COLUMNS; `options` are those of rich's Console."""
    terminal = sys.stdout is not None and sys.stdout.isatty()
    width = None if terminal or os.environ.get("COLUMNS") else PIPED_WIDTH
    return _QuietConsole(width=width, **options)


def replace_unencodable() -> None:
    """What the encoding of stdout or stderr has no sign for becomes "?", rather than the end of the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def discard_stdout() -> None:
    """Leave the interpreter nothing to write where nothing can be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(document: Any) -> None:
    """One document, indented, to stdout. Raises ValueError where a number is not finite: JSON has no such number."""
    print(json.dumps(document, indent=1, allow_nan=False))


@contextmanager
def stdout_to_stderr_if(as_json: bool) -> Iterator[None]:
    """Keep stdout clean for the document that follows."""
    if as_json:
        with redirect_stdout(sys.stderr):
            yield
    else:
        yield
