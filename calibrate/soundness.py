"""Whether a measured pass can be believed: done, inconclusive (measure again), or invalid (it contradicts itself).

Example: ``judge(result, idle=-0.1, noise=0.02) == ("invalid", "busy is more than the wall by 10%")``
"""

from profiler.record.run import CellResult

MOST_NEGATIVE_IDLE = -0.02
"""Of the wall; DESIGN.md: below it a pass is invalid."""
LEAST_ATTRIBUTED = {"eager": 0.99, "compile": 0.97, "cuda-graph": 0.97, "compile-cuda-graph": 0.97}
"""Of all device time that the profiler saw, by the mode of the pass: what no operation of a plain pass launched, and
what no module is known of, is more where host events do not say it."""
SPANS_WITHIN = 0.005
"""Operation spans + gaps of the profiled wall: how far from 1 they may be."""
INSTRUMENTED_WITHIN = 0.05
"""Profiled ÷ unprofiled wall: how far from 1 it may be; beyond, it is said what that implies."""
LEAST_INSTRUMENTED = 0.9
"""Profiled ÷ unprofiled wall: profiling cannot save time, below this the machine changed between them."""
MOST_NOISE = 0.25
"""Half the 5–95 % range of single passes ÷ their median: above it the median of some tens of passes is not good to the
5 % within which profiled and unprofiled passes must agree: 1.64 · 1.25 σ ÷ √33 = 5.4 %, σ = 0.25 ÷ 1.64, if normal."""
MOST_OTHER_WORK = 0.25
"""Share of all cores: above it half of a core, of the two that a small machine has, was not ours."""
SEEN_OTHER_WORK = 0.05
"""Share of all cores from which it is mentioned."""


def judge(result: CellResult, *, idle: float, noise: float) -> tuple[str, str | None]:
    """Status and, unless it is "done", the reason.

    Args: `idle` and `noise` as shares of the wall.
    """
    if result.status != "done" or result.closure is None:
        return result.status, result.reason
    if idle < MOST_NEGATIVE_IDLE:
        return "invalid", f"busy is more than the wall by {-idle:.0%}"
    if result.closure.attributed < LEAST_ATTRIBUTED[result.cell.mode]:
        return "inconclusive", f"only {result.closure.attributed:.1%} of the device time belongs to an operation"
    if result.other_work is not None and result.other_work > MOST_OTHER_WORK:
        return "inconclusive", f"other work took {result.other_work:.0%} of the host while it was measured"
    if noise > MOST_NOISE:
        return "inconclusive", f"single passes vary by ± {noise:.0%}; measure on a quiet machine"
    if result.closure.instrumented_ratio < LEAST_INSTRUMENTED:
        ratio = result.closure.instrumented_ratio
        return "inconclusive", f"profiled passes took {ratio:.0%} of the plain ones: the machine changed between them"
    return "done", None


def doubts(result: CellResult) -> list[str]:
    """What to know of a pass that is good enough."""
    out = []
    if result.other_work is not None and result.other_work > SEEN_OTHER_WORK:
        out.append(f"other work took {result.other_work:.0%} of the host while it was measured")
    if result.closure is not None and result.closure.instrumented_ratio > 1 + INSTRUMENTED_WITHIN:
        extra = result.closure.instrumented_ratio - 1
        out.append(f"times of operations carry up to {extra:.0%} of instrumentation; the wall does not")
    return out
