"""Output of the verbs: reports or JSON on stdout, progress on stderr, exit codes.

With ``--json`` stdout has one JSON document and nothing else, whatever a library prints meanwhile. Exit codes:

    0 good · 1 something is slower · 2 the request is wrong · 3 inconclusive · 4 the measurement is invalid
    70 a fault of roofcal · 130 interrupted (128 + SIGINT) · 143, 129 ended by SIGTERM, SIGHUP
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
import math
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from calibrate.report.document import printable
from profiler.record.files import write_text
from profiler.record.folder import RunFolder
from roofline.units import duration, shortened

if TYPE_CHECKING:
    from calibrate.report.document import Document

    MakeReport = Callable[[], Document]

GOOD, SLOWER, REQUEST, INCONCLUSIVE, INVALID = 0, 1, 2, 3, 4
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
    words = printable(text).split(" ")
    print(" ".join(shortened(words, LONGEST_WORD)), file=stream or sys.stdout, flush=stream is sys.stderr)


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


def show(
    as_json: bool, document: Callable[[], Any], report: "MakeReport", kept: Path | None = None, html: Path | None = None
) -> None:
    """Print the JSON `document`, or the `report` on the terminal, and on stderr where it is `kept`.

    The report is written as a page too where `html` names one.
    """
    if html is not None:
        from calibrate.report import html as renderer

        write_text(html, renderer.render(report()))
    if as_json:
        print_json(document())
        return
    from calibrate.report.terminal import render

    render(report(), console())
    if kept is not None and _volume > QUIET:
        page = kept / "report.html"
        print(file=sys.stderr)
        say(f"kept in {page if page.is_file() else kept}", sys.stderr)


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


QUIET, NORMAL, VERBOSE = -1, 0, 1
_volume = NORMAL


def set_volume(volume: int) -> None:
    """Choose what the verbs say while they work.

    `QUIET` leaves out progress and remarks, but no warning; `VERBOSE` prints a line for each step of the work.
    """
    global _volume
    _volume = volume


def remark(text: str) -> None:
    """Print a line on stderr that nobody needs to act on; nothing with --quiet."""
    if _volume > QUIET:
        say(text, sys.stderr)


LINES_S = 10.0
"""Seconds between two lines of progress at least, where there is no terminal: a log is read, not watched."""


@contextmanager
def progress(
    total: int,
    stream: TextIO | None = None,
    now: Callable[[], float] = time.monotonic,
    unit_s: Sequence[float] | None = None,
    before: int = 0,
) -> Iterator[Step]:
    """Show progress through `total` units of work, which only goes up, and about the time that is left.

    On a terminal it is a bar, else a line for each unit, at most one in `LINES_S`; with `VERBOSE` it is a line for
    each change of the text, with `QUIET` nothing. `unit_s`: the estimated seconds of
    each unit, by which the time left is told until enough of them is done, and how much a unit weighs after that.
    `before`: the units that an earlier process has done, whose pace says nothing.
    """
    stream = stream or sys.stderr
    course = _Course(total, now, unit_s, before)
    if _volume == QUIET:
        yield lambda text, done: None
    elif stream.isatty() and _volume < VERBOSE:
        with _bar(total, stream, course) as step:
            yield step
    else:
        yield _lines(total, stream, course)


class _Course:
    """The part of the work that is done, and the time that the rest takes."""

    def __init__(self, total: int, now: Callable[[], float], unit_s: Sequence[float] | None, before: int = 0) -> None:
        self._total, self._now, self._unit_s, self._before = total, now, unit_s, min(before, total)
        self._total_s = sum(unit_s[before:]) if unit_s else None
        self._began_s = now()
        self.done = float(self._before)

    def at(self, done: float) -> float:
        """Note what is done, which never falls; return it."""
        self.done = max(self.done, min(done, float(self._total)))
        return self.done

    def _part(self) -> float:
        """The part of this process's work that is done, by the units' estimated seconds: they differ much in length."""
        if self._total == self._before:
            return 1.0
        if not self._unit_s or not self._total_s:
            return (self.done - self._before) / (self._total - self._before)
        whole = min(int(self.done), len(self._unit_s) - 1)
        done_s = sum(self._unit_s[self._before : whole]) + (self.done - whole) * self._unit_s[whole]
        return done_s / self._total_s

    def now(self) -> float:
        """Seconds on its clock."""
        return self._now()

    def left(self) -> str:
        """About the time left, for people; "" while nothing tells it.

        The estimate counts less the more is done, and not at all once its time is over or a tenth is done: a machine
        that is slower than the estimate's is so in all that follows.
        """
        spent_s, part = self._now() - self._began_s, self._part()
        trust = min(part / PACE_PART, 1.0)
        is_overdue = self._total_s is None or spent_s >= self._total_s
        estimates = [] if is_overdue or trust == 1 else [(1 - trust, (self._total_s or 0.0) - spent_s)]
        if part >= SMALLEST_PART:
            estimates.append((trust, spent_s * (1 - part) / part))
        weight = sum(share for share, _ in estimates)
        if not weight:
            return ""
        return f"about {duration(sum(share * left_s for share, left_s in estimates) / weight)} left"


PULSE_S = 60.0
"""Seconds after which a line comes although no other unit has begun: a log that stands still looks like a hang."""
PACE_PART = 0.1
"""Part of the work after which its pace alone tells the time left."""
SMALLEST_PART = 0.02
"""Part of the work after which its pace tells the time left: less of it is mostly preparation."""


def _lines(total: int, stream: TextIO, course: _Course) -> Step:
    """Print a line as a unit begins, or as its text changes up to the colon; after that comes detail."""
    last, printed_s = (-1, ""), -math.inf

    def step(text: str, done: float) -> None:
        nonlocal last, printed_s
        about = (min(int(course.at(done)), total - 1), text.partition(":")[0])
        now_s = course.now()
        if _volume < VERBOSE and (now_s - printed_s < LINES_S or (about == last and now_s - printed_s < PULSE_S)):
            return
        last, printed_s = about, now_s
        left = course.left()
        with suppress(OSError):  # a log that cannot be written is worth less than the measurement
            say(f"[{about[0] + 1}/{total}] {text}" + (f" ({left})" if left else ""), stream)
            stream.flush()

    return step


@contextmanager
def _bar(total: int, stream: TextIO, course: _Course) -> Iterator[Step]:
    columns = (BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
    left, text = TextColumn("{task.fields[left]}"), TextColumn("{task.description}", markup=False)
    with Progress(*columns, left, text, console=Console(file=stream, width=_width(stream)), transient=True) as bar:
        task = bar.add_task("", total=total, left="")
        yield lambda what, done: bar.update(
            task, description=printable(what), completed=course.at(done), left=course.left()
        )
