"""How a verb ends: exit codes and the lines that go with them.

    0 good · 1 regression · 2 the request is wrong · 3 inconclusive · 4 the measurement is invalid
    130 interrupted (128 + SIGINT) · 141 nobody reads the output any more (128 + SIGPIPE)

Example::

    with resumable(folder.path):
        measure(...)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GOOD, REGRESSION, REQUEST, INCONCLUSIVE, INVALID = 0, 1, 2, 3, 4
INTERRUPTED, BROKEN_PIPE = 130, 141


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while a run folder was being written."""

    def __init__(self, path: Path, verb: str) -> None:
        super().__init__(str(path))
        self.path, self.verb = path, verb


@contextmanager
def resumable(path: Path, verb: str = "run") -> Iterator[None]:
    """Within it, Ctrl-C says where the results are and how to go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Interrupted(path, verb) from stop


def interruption(stop: KeyboardInterrupt) -> str:
    """The line shown after Ctrl-C."""
    if isinstance(stop, Interrupted):
        return (
            f"interrupted; what was measured is in {stop.path}, "
            f"go on with: python -m profiler {stop.verb} --resume {stop.path}"
        )
    return "interrupted"
