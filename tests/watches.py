"""Watches that play given windows, on hosts and devices that are only pretended."""

from collections.abc import Iterable, Iterator

from profiler.record.measurement import Window

QUIET = Window(start_s=0, duration_s=1, samples=1, cores=2, other_cores=0.0, steal_fraction=0.0)
BUSY = QUIET.model_copy(update={"other_cores": 1.1})
"""A neighbour takes one of two cores: more than a pass may share."""


class Plays:
    """A watch whose windows are the given ones, and quiet after them."""

    unread = ()

    def __init__(self, windows: Iterable[Window] = ()) -> None:
        self._windows: Iterator[Window] = iter(windows)
        self.begun = self.ended = 0

    def begin(self) -> None:
        self.begun += 1

    def end(self, samples: int) -> Window:
        self.ended += 1
        return next(self._windows, QUIET).model_copy(update={"samples": samples})

    def close(self) -> None:
        pass
