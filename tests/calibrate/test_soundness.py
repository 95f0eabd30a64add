"""When a pass may be believed."""

from typing import Any

import pytest

from calibrate.soundness import doubts, judge
from profiler.record.run import CellResult, Closure


def closure(**changes: float) -> Closure:
    return Closure(**({"attributed": 1.0, "spans_plus_gaps": 1.0, "instrumented_ratio": 1.02} | changes))


@pytest.mark.parametrize(
    ("changes", "idle", "noise", "status", "says"),
    [
        ({}, 0.1, 0.02, "done", None),
        ({}, -0.019, 0.02, "done", None),
        ({}, -0.03, 0.02, "invalid", "busy is more than the wall by 3%"),
        ({}, 0.1, 0.3, "inconclusive", "± 30%"),
        ({"closure": closure(attributed=0.98)}, 0.1, 0.02, "inconclusive", "98.0% of the device time"),
        ({"closure": closure(instrumented_ratio=0.59)}, 0.1, 0.02, "inconclusive", "59%"),
        ({"closure": closure(instrumented_ratio=1.3)}, 0.1, 0.02, "done", None),
        ({"other_work": 0.5}, 0.1, 0.02, "inconclusive", "other work took 50%"),
        ({"other_work": 0.1}, 0.1, 0.02, "done", None),
        ({"status": "failed", "reason": "out of memory"}, 0.1, 0.02, "failed", "out of memory"),
    ],
)
def test_verdicts(
    result: CellResult, changes: dict[str, Any], idle: float, noise: float, status: str, says: str | None
) -> None:
    base = result.model_copy(update={"closure": closure(), **changes})
    verdict, reason = judge(base, idle=idle, noise=noise)
    assert verdict == status
    assert reason is None if says is None else says in str(reason)


def test_what_is_good_enough_but_worth_knowing(result: CellResult) -> None:
    assert doubts(result.model_copy(update={"closure": closure(), "other_work": 0.04})) == []
    told = doubts(result.model_copy(update={"closure": closure(instrumented_ratio=1.12), "other_work": 0.1}))
    assert told == [
        "other work took 10% of the host while it was measured",
        "times of operations carry up to 12% of instrumentation; the wall does not",
    ]
