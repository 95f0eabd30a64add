"""Progress of long work, on stderr: a bar where somebody watches, a plain line a unit where it is piped.

Example::

    with progress(len(cells)) as step:
        for done, cell in enumerate(cells):
            step(f"{cell.model} {cell.workload.key}", done)
            measure(cell)
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Step = Callable[[str, float], None]
"""Told what begins and how many of the units are done by then; fractions count."""


@contextmanager
def progress(total: int, stream: TextIO | None = None) -> Iterator[Step]:
    """Give a function to be called as work goes on through `total` units."""
    stream = stream or sys.stderr
    if stream.isatty():
        with _bar(total, stream) as step:
            yield step
    else:
        yield _lines(total, stream)


def _lines(total: int, stream: TextIO) -> Step:
    """A line as each unit begins, and as what it is about changes; what comes after a colon is detail."""
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
