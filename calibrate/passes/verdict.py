"""The verdict on a measured pass: done, inconclusive (measure again), or invalid (it contradicts itself).

Busy comes from profiled passes and the wall from unprofiled ones, so on a noisy machine either may be larger by chance.
They are compared round by round, and a pass is invalid only where the whole 99 % interval of their difference lies
beyond the effect of a profiler. What the interval leaves open is inconclusive.
"""

import math

import numpy as np

from calibrate.passes.replicates import Floats, Median, by_round, error_within, median_of
from profiler.record.run import CellResult
from roofline.units import percent, whole_percent

CERTAIN = 0.99
"""Coverage of the interval that a contradiction is judged by."""
FEWEST_ROUNDS = 4
"""Least number of rounds that can show a contradiction: of simulated honest passes on noisy hosts
(tests/calibrate/passes/test_verdict.py) 1 of 28 000 was called invalid with four rounds, none of 20 000 with five;
three agree by chance too easily."""
MOST_EXCESS = 0.02
"""(Busy − wall) ÷ wall that is no contradiction: recording events lengthens operations by a few per cent."""
LEAST_ATTRIBUTED = {"eager": 0.99, "compile": 0.97, "cuda-graph": 0.97, "compile-cuda-graph": 0.97}
"""Least share of the device time that belongs to an operation, by mode: host events of the other modes tell less."""
SPANS_WITHIN = 0.005
"""Largest distance from 1 of (operation spans + gaps) ÷ profiled wall."""
INSTRUMENTED_WITHIN = 0.05
"""Largest distance from 1 of profiled ÷ unprofiled wall that needs no comment."""
LEAST_INSTRUMENTED = 0.9
"""Least profiled ÷ unprofiled wall: profiling saves no time, so below it the machine changed between the passes."""
WIDEST_WALL = 0.1
"""Largest half of the wall's 90 % interval ÷ the wall: predictions are meant to be off by a tenth or so."""
MOST_OTHER_WORK = 0.25
"""Largest share of all cores that other work may take: half a core of a small machine's two."""
SEEN_OTHER_WORK = 0.05
"""Least share of all cores of other work that is mentioned."""


def judge(result: CellResult, *, wall: Median, excess: Median, ratio: Median) -> tuple[str, str | None]:
    """Status and, unless it is "done", the reason. Args: medians over the rounds of the wall in seconds, of (busy −
    wall) ÷ wall, and of profiled ÷ unprofiled wall."""
    if result.status != "done" or result.closure is None:
        return result.status, result.reason
    ends = excess.interval(CERTAIN) if excess.freedom >= FEWEST_ROUNDS - 1 else None
    if ends is not None and ends[0] > MOST_EXCESS:
        return "invalid", f"busy is more than the wall by {whole_percent(excess.value)} ({_certain(ends)})"
    if result.closure.attributed < LEAST_ATTRIBUTED[result.cell.mode]:
        return "inconclusive", f"only {percent(result.closure.attributed)} of the device time belongs to an operation"
    if excess.value > MOST_EXCESS:
        doubt = "so few rounds cannot tell from noise" if ends is None else f"may be noise ({_certain(ends)})"
        return "inconclusive", f"busy is more than the wall by {whole_percent(excess.value)}, which {doubt}"
    if result.other_work is not None and result.other_work > MOST_OTHER_WORK:
        return "inconclusive", f"other work took {whole_percent(result.other_work)} of the host while it was measured"
    if (half := wall.half()) > WIDEST_WALL * wall.value and half != math.inf:
        return "inconclusive", f"the wall is known to ± {whole_percent(half / wall.value)} only: the machine is noisy"
    ends = ratio.interval(CERTAIN)
    if ratio.value < LEAST_INSTRUMENTED or (ends is not None and ends[1] < 1 - INSTRUMENTED_WITHIN):
        share = whole_percent(ratio.value)
        return "inconclusive", f"profiled passes took {share} of the plain ones: the machine changed between them"
    return "done", None


def excess_of(wall_s: Floats, profiled_wall_s: Floats, busy_s: Floats) -> Median:
    """(Busy − wall) ÷ wall, compared within rounds.

    Args: unprofiled and profiled wall times in the order they were taken, shape (passes,), and the busy time of each
    round, shape (rounds,), in seconds. The error is at least that of single passes' noise, so that a few rounds that
    agree by chance prove nothing; busy is as noisy as the profiled wall that it is part of.
    """
    rounds = len(busy_s)
    walls_s = by_round(wall_s, rounds)
    middle_s = float(np.median(walls_s))
    if len(walls_s) != rounds:
        return Median((float(np.median(busy_s)) - middle_s) / middle_s, math.inf, 1.0)
    excess = median_of((busy_s - walls_s) / middle_s)
    noise = math.hypot(error_within(wall_s, rounds), error_within(profiled_wall_s, rounds)) / middle_s
    return Median(excess.value, max(excess.error, noise), excess.freedom)


def doubts(result: CellResult, ratio: Median) -> list[str]:
    """Caveats of a pass that is good enough; `ratio` as in `judge`."""
    out = []
    if result.other_work is not None and result.other_work > SEEN_OTHER_WORK:
        out.append(f"other work took {whole_percent(result.other_work)} of the host while it was measured")
    ends = ratio.interval() or (ratio.value, ratio.value)
    if ends[0] > 1 + INSTRUMENTED_WITHIN:
        longer = whole_percent(ratio.value - 1)
        out.append(f"times of operations carry up to {longer} of instrumentation; the wall does not")
    return out


def _certain(ends: tuple[float, float]) -> str:
    return f"{whole_percent(CERTAIN)} interval: {whole_percent(ends[0])} to {whole_percent(ends[1])}"
