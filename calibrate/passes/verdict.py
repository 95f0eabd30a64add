"""Whether a measured pass can be believed: done, inconclusive (measure again), or invalid (it contradicts itself).

Invalid is only what noise cannot make. Busy comes from profiled passes and the wall from unprofiled ones, so on a noisy
machine either may be the larger one by chance; they are compared in pairs, round by round, and a pass is invalid only
where the whole 99 % interval of their difference lies beyond what a profiler itself makes. What an interval leaves open
is inconclusive.

Example: ``judge(result, wall=Median(1.0, 0.01, 9), excess=Median(0.1, 0.005, 9), ratio=Median(1.02, 0.01, 9))`` →
``("invalid", "busy is more than the wall by 10 % (99 % interval: 8 % to 12 %)")``
"""

import math

import numpy as np

from calibrate.passes.replicates import Floats, Median, by_round, error_within, median_of
from profiler.record.run import CellResult

CERTAIN = 0.99
"""Coverage of the interval that a contradiction is judged by."""
FEWEST_ROUNDS = 4
"""For a contradiction: of simulated honest passes on noisy hosts (tests/calibrate/passes/test_verdict.py) 1 of 28 000
was called invalid with four rounds, none of 20 000 with five; three agree by chance too easily."""
MOST_EXCESS = 0.02
"""(Busy − wall) ÷ wall that is no contradiction: recording events lengthens what it records by up to a few per cent,
and an operation's span has a part of that."""
LEAST_ATTRIBUTED = {"eager": 0.99, "compile": 0.97, "cuda-graph": 0.97, "compile-cuda-graph": 0.97}
"""Share of all device time that the profiler saw, by the mode: what no operation of a plain pass launched, and
what no module is known of, is more where host events do not say it."""
SPANS_WITHIN = 0.005
"""Operation spans + gaps of the profiled wall: how far from 1 they may be."""
INSTRUMENTED_WITHIN = 0.05
"""Profiled ÷ unprofiled wall: how far from 1 it may be; beyond, it is said what that implies."""
LEAST_INSTRUMENTED = 0.9
"""Profiled ÷ unprofiled wall: profiling cannot save time, below this the machine changed between them however few
rounds say so."""
WIDEST_WALL = 0.1
"""Half the wall's 90 % interval ÷ the wall: above it the measurement is not as good as predictions are meant to be,
which are off by a tenth or so."""
MOST_OTHER_WORK = 0.25
"""Share of all cores: above it half of a core, of the two that a small machine has, was not ours."""
SEEN_OTHER_WORK = 0.05
"""Share of all cores from which it is mentioned."""


def judge(result: CellResult, *, wall: Median, excess: Median, ratio: Median) -> tuple[str, str | None]:
    """Status and, unless it is "done", the reason.

    Args: medians over the rounds of the wall in seconds, of (busy − wall) ÷ wall, and of profiled ÷ unprofiled wall.
    """
    if result.status != "done" or result.closure is None:
        return result.status, result.reason
    ends = excess.interval(CERTAIN) if excess.freedom >= FEWEST_ROUNDS - 1 else None
    if ends is not None and ends[0] > MOST_EXCESS:
        return "invalid", f"busy is more than the wall by {excess.value:.0%} ({_certain(ends)})"
    if result.closure.attributed < LEAST_ATTRIBUTED[result.cell.mode]:
        return "inconclusive", f"only {result.closure.attributed:.1%} of the device time belongs to an operation"
    if excess.value > MOST_EXCESS:
        told = "so few rounds cannot tell from noise" if ends is None else f"may be noise ({_certain(ends)})"
        return "inconclusive", f"busy is more than the wall by {excess.value:.0%}, which {told}"
    if result.other_work is not None and result.other_work > MOST_OTHER_WORK:
        return "inconclusive", f"other work took {result.other_work:.0%} of the host while it was measured"
    if (half := wall.half()) > WIDEST_WALL * wall.value and half != math.inf:
        return "inconclusive", f"the wall is known to ± {half / wall.value:.0%} only: the machine is noisy"
    ends = ratio.interval(CERTAIN)
    if ratio.value < LEAST_INSTRUMENTED or (ends is not None and ends[1] < 1 - INSTRUMENTED_WITHIN):
        return (
            "inconclusive",
            f"profiled passes took {ratio.value:.0%} of the plain ones: the machine changed between them",
        )
    return "done", None


def excess_of(wall_s: Floats, profiled_wall_s: Floats, busy_s: Floats) -> Median:
    """(Busy − wall) ÷ wall, in pairs within a round.

    Args: unprofiled and profiled wall times in the order they were taken, shape (passes,), and the busy time of each
    round, shape (rounds,), in seconds. Its error is never less than the noise of single passes makes it, so that a few
    rounds that agree by chance prove nothing; busy is taken to be as noisy as the profiled wall that it is part of.
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
    """What to know of a pass that is good enough. `ratio` as in `judge`."""
    out = []
    if result.other_work is not None and result.other_work > SEEN_OTHER_WORK:
        out.append(f"other work took {result.other_work:.0%} of the host while it was measured")
    ends = ratio.interval() or (ratio.value, ratio.value)
    if ends[0] > 1 + INSTRUMENTED_WITHIN:
        out.append(f"times of operations carry up to {ratio.value - 1:.0%} of instrumentation; the wall does not")
    return out


def _certain(ends: tuple[float, float]) -> str:
    return f"{CERTAIN:.0%} interval: {ends[0]:.0%} to {ends[1]:.0%}"
