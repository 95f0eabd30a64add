"""Output of the verbs: reports or JSON on stdout, progress on stderr, exit codes.

With ``--json`` stdout has one JSON document and nothing else, whatever a library prints meanwhile. Exit codes:

    0 good · 1 a fault of roofcal (traceback) · 2 the request is wrong · 3 inconclusive · 4 the measurement is invalid
    130 interrupted (128 + SIGINT) · 143, 129 ended by SIGTERM, SIGHUP
    141 nobody reads the output any more (128 + SIGPIPE)

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
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from profiler.record.folder import RunFolder

if TYPE_CHECKING:
    from calibrate.report.document import Document

    MakeReport = Callable[[], Document]

GOOD, REQUEST, INCONCLUSIVE, INVALID = 0, 2, 3, 4
INTERRUPTED, BROKEN_PIPE = 130, 141

PIPED_WIDTH = 120
"""Characters in a line where there is no terminal; the tables need 110 for all their words."""

Step = Callable[[str, float], None]
"""Called with a text that says what begins, and the units of work that are done by then; fractions count."""


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
        print(f"\nkept in {kept}", file=sys.stderr)


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


ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
"""Signals that end a verb as Ctrl-C does."""


class Ended(KeyboardInterrupt):
    """A signal other than Ctrl-C's."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def end_by_signal(number: int, frame: object) -> None:
    """A signal's handler: raise `Ended` where the program is."""
    raise Ended(number)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or a signal like it, while a run folder was being written."""

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
    """The line shown after Ctrl-C or a signal."""
    cause = stop.__cause__ if isinstance(stop, Interrupted) else stop
    how = f"ended by {cause}" if isinstance(cause, Ended) else "interrupted"
    if isinstance(stop, Interrupted):
        return (
            f"{how}; what was measured is in {stop.path}; "
            f"continue with: python -m profiler {stop.verb} --resume {stop.path}"
        )
    return how


def interruption_code(stop: BaseException) -> int:
    """128 + the number of the signal, as a shell has it."""
    cause = stop.__cause__ if isinstance(stop, Interrupted) else stop
    return 128 + cause.number if isinstance(cause, Ended) else INTERRUPTED


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
            print(f"[{about[0] + 1}/{total}] {text}", file=stream, flush=True)

    return step


@contextmanager
def _bar(total: int, stream: TextIO) -> Iterator[Step]:
    columns = (BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
    text = TextColumn("{task.description}", markup=False)
    with Progress(*columns, text, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda what, done: bar.update(task, description=what, completed=done)
