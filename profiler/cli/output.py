"""Output of the verbs: reports or JSON on stdout, progress on stderr, exit codes.

With ``--json`` stdout has one JSON document and nothing else, whatever a library prints meanwhile. Exit codes:

    0 good · 2 the request is wrong · 3 inconclusive · 4 the measurement is invalid · 70 a fault of roofcal
    130 interrupted (128 + SIGINT) · 141 nobody reads the output any more (128 + SIGPIPE)

Example::

    with stdout_to_stderr_if(as_json), resumable(folder.path), progress(len(cells)) as step:
        for done, cell in enumerate(cells):
            step(f"{cell.model} {cell.workload.key}", done)
            measure(cell)
    print_json(document)
"""

import io
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from calibrate.report.document import printable
from profiler.record.folder import RunFolder

if TYPE_CHECKING:
    from calibrate.report.document import Document

    MakeReport = Callable[[], Document]

GOOD, REQUEST, INCONCLUSIVE, INVALID = 0, 2, 3, 4
FAULT, INTERRUPTED, BROKEN_PIPE = 70, 130, 141
"""sysexits.h has 70 for an internal error; the others are 128 + the number of a signal."""

PIPED_WIDTH = 120
"""Characters in a line where there is no terminal; the tables need 110 for all their words."""
NARROWEST, WIDEST = 20, 1000
"""Characters in a line whatever the terminal or COLUMNS says."""
LONGEST_WORD = 300
"""Characters of one word in a line: a path has up to some 200, and what is longer says nothing to people."""

_BREAK = "\x00"
"""Marks a comma without a space behind it, where a line may be broken."""

Step = Callable[[str, float], None]
"""Called with a text that says what begins, and the units of work that are done by then; fractions count."""


class _QuietConsole(Console):
    """Leaves a broken pipe to `profiler.cli.app.main`; rich itself would end the process with code 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(**options: Any) -> Console:
    """A console on stdout, as wide as the terminal or COLUMNS; `options` are those of rich's Console."""
    return _QuietConsole(width=_width(sys.stdout), **options)


def _width(stream: TextIO) -> int:
    """Characters in a line: COLUMNS where it is a sensible number, else the terminal's, else `PIPED_WIDTH`."""
    wanted = os.environ.get("COLUMNS", "")
    if wanted.isascii() and wanted.isdigit() and len(wanted) < 10 and int(wanted) > 0:
        width = int(wanted)
    else:
        try:
            width = os.get_terminal_size(stream.fileno()).columns
        except (OSError, ValueError):  # no terminal, or no file at all
            width = 0
    return min(max(width or PIPED_WIDTH, NARROWEST), WIDEST)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print one line, without control characters, which a name may hold and no terminal may obey."""
    words = (word if len(word) <= LONGEST_WORD else f"{word[:99]}…{word[-99:]}" for word in printable(text).split(" "))
    print(" ".join(words), file=stream or sys.stdout, flush=stream is sys.stderr)


def open_streams() -> bool:
    """Open what the caller has closed, so that no other file gets its number; False where that is stdout."""
    is_open = sys.stdout is not None
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
    return is_open


def print_wrapped(text: str, style: str = "", hang: int = 4) -> None:
    """Print lines within the console's width, broken at spaces and commas; the rest of one stands `hang` deeper."""
    out = console(highlight=False)
    for line in text.splitlines():
        deep = line[: len(line) - len(line.lstrip())]
        breakable = line.strip().replace(",", f",{_BREAK} ").replace(f",{_BREAK}  ", ", ")
        kept = textwrap.wrap(breakable, out.width, initial_indent=deep, subsequent_indent=deep + " " * hang,
                             break_on_hyphens=False)  # fmt: skip
        for part in kept:
            out.print(Text(part.replace(f"{_BREAK} ", "").rstrip(_BREAK), style), soft_wrap=True)


def replace_unencodable() -> None:
    """Print "?" for a character that the encoding of stdout or stderr lacks, rather than end the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def discard_stdout() -> None:
    """Send what is left to write to nowhere, so that the interpreter does not fail on it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(document: Any) -> None:
    """Print one document on stdout. Raises ValueError where a number is not finite: JSON has no such number."""
    print(json.dumps(document, indent=1, allow_nan=False))


def show(as_json: bool, document: Callable[[], Any], report: "MakeReport", kept: Path | None = None) -> None:
    """Print the JSON `document`, or the `report` on the terminal, and on stderr where it is `kept`."""
    if as_json:
        print_json(document())
        return
    from calibrate.report.terminal import render

    render(report(), console())
    if kept is not None:
        print(file=sys.stderr)
        say(f"kept in {kept}", sys.stderr)


def write_reports(folder: RunFolder, report: "Document") -> None:
    """Write report.md and report.html."""
    from calibrate.report import html, markdown

    folder.write_report("report.md", markdown.render(report))
    folder.write_report("report.html", html.render(report))


@contextmanager
def stdout_to_stderr_if(as_json: bool) -> Iterator[None]:
    """Within it, what libraries print goes to stderr, so that stdout has the JSON document alone."""
    if as_json:
        with redirect_stdout(sys.stderr):
            yield
    else:
        yield


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while a run folder was being written."""

    def __init__(self, path: Path, verb: str) -> None:
        super().__init__(str(path))
        self.path, self.verb = path, verb


@contextmanager
def resumable(path: Path, verb: str = "run") -> Iterator[None]:
    """Within it, Ctrl-C becomes `Interrupted`, which says where the results are and how to continue."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Interrupted(path, verb) from stop


def interruption(stop: BaseException) -> str:
    """The line shown after Ctrl-C."""
    if isinstance(stop, Interrupted):
        return (
            f"interrupted; what was measured is in {stop.path}; "
            f"continue with: python -m profiler {stop.verb} --resume {stop.path}"
        )
    return "interrupted"


@contextmanager
def progress(total: int, stream: TextIO | None = None) -> Iterator[Step]:
    """Show progress through `total` units of work: a bar on a terminal, else a line for each unit."""
    stream = stream or sys.stderr
    if stream.isatty():
        with _bar(total, stream) as step:
            yield step
    else:
        yield _lines(total, stream)


def _lines(total: int, stream: TextIO) -> Step:
    """Print a line as each unit begins, and as its text changes up to the colon; after that comes detail."""
    last = (-1, "")

    def step(text: str, done: float) -> None:
        nonlocal last
        about = (min(int(done), total - 1), text.partition(":")[0])
        if about != last:
            last = about
            say(f"[{about[0] + 1}/{total}] {text}", stream)
            stream.flush()

    return step


@contextmanager
def _bar(total: int, stream: TextIO) -> Iterator[Step]:
    columns = (BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
    text = TextColumn("{task.description}", markup=False)
    with Progress(*columns, text, console=Console(file=stream, width=_width(stream)), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda what, done: bar.update(task, description=printable(what), completed=done)
