"""Device time when several kernels run at once: each instant is shared equally among those that run in it.

So the shares of all events add up to the time the device was busy, and a pass closes: shares + idle = window.

Example: ``shares(np.array([0.0, 1.0]), np.array([2.0, 3.0]))`` gives ``[1.5, 1.5]``: busy for 3 s.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def shares(starts_s: Floats, ends_s: Floats) -> Floats:
    """Each interval's share of the busy time: ∫ 1/n(t) dt over it, n(t) intervals running at t.

    Args: starts and ends in seconds, shape (events,), any order. Raises ValueError if one ends before it starts.
    """
    starts, ends = _checked(starts_s, ends_s)
    if not len(starts):
        return np.zeros(0)
    times = np.unique(np.concatenate([starts, ends]))
    change = np.bincount(np.searchsorted(times, starts), minlength=len(times))
    change = change - np.bincount(np.searchsorted(times, ends), minlength=len(times))
    running = np.cumsum(change)[:-1]
    lengths = np.diff(times)
    portions = np.divide(lengths, running, out=np.zeros_like(lengths), where=running > 0)
    elapsed: Floats = np.concatenate([[0.0], np.cumsum(portions)])
    share: Floats = elapsed[np.searchsorted(times, ends)] - elapsed[np.searchsorted(times, starts)]
    return share


@dataclass(frozen=True, slots=True)
class Idle:
    """Time within a window in which nothing ran."""

    before_s: Floats
    """Idle that each event ended, shape (events,); 0 where another event still ran or began at the same instant."""
    tail_s: float
    """Idle from the last end to the end of the window."""


def idle(starts_s: Floats, ends_s: Floats, window: tuple[float, float]) -> Idle:
    """Idle time before each interval and after the last one, within `window`; intervals lie inside it.

    Of intervals that begin together, the first given one ends the idle time.
    """
    starts, ends = _checked(starts_s, ends_s)
    before = np.zeros(len(starts))
    if not len(starts):
        return Idle(before, window[1] - window[0])
    if starts.min() < window[0] or ends.max() > window[1]:
        raise ValueError("intervals must lie within the window; clip them first")
    order = np.argsort(starts, kind="stable")
    reached = np.maximum.accumulate(np.concatenate([[window[0]], ends[order]]))
    before[order] = np.maximum(0.0, starts[order] - reached[:-1])
    return Idle(before, float(window[1] - reached[-1]))


def _checked(starts_s: Floats, ends_s: Floats) -> tuple[Floats, Floats]:
    starts, ends = np.asarray(starts_s, np.float64), np.asarray(ends_s, np.float64)
    if starts.shape != ends.shape or starts.ndim != 1:
        raise ValueError(f"starts and ends must be of one shape (events,), not {starts.shape} and {ends.shape}")
    if np.any(ends < starts):
        raise ValueError("an interval ends before it starts")
    return starts, ends
