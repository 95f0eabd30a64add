"""When a pass may be believed."""

import math
from typing import Any

import numpy as np
import pytest

from calibrate.passes.replicates import Median, median_of
from calibrate.passes.verdict import doubts, excess_of, judge
from profiler.record.run import CellResult, Closure


def closure(**changes: float) -> Closure:
    return Closure(**({"attributed": 1.0, "spans_plus_gaps": 1.0, "instrumented_ratio": 1.02} | changes))


def known(value: float, error: float = 0.001) -> Median:
    return Median(value, error, 11)


@pytest.mark.parametrize(
    ("changes", "wall", "excess", "ratio", "status", "says"),
    [
        ({}, known(1), known(-0.1), known(1.02), "done", None),
        ({}, known(1), known(0.019), known(1.02), "done", None),
        (
            {},
            known(1),
            known(0.1),
            known(1.02),
            "invalid",
            "by 10 % (99 % interval: 10 % to",
        ),
        (
            {},
            known(1),
            known(0.1, 0.05),
            known(1.02),
            "inconclusive",
            "10 %, which may be noise (99 % interval: −6 %",
        ),
        (
            {},
            known(1),
            Median(0.1, math.inf, 1),
            known(1.02),
            "inconclusive",
            "which so few rounds cannot tell from noise",
        ),
        ({}, known(1, 0.1), known(-0.1), known(1.02), "inconclusive", "the wall is known to ± 18 % only"),
        ({}, known(1, math.inf), known(-0.1), known(1.02), "done", None),
        ({"closure": closure(attributed=0.98)}, known(1), known(-0.1), known(1.02), "inconclusive", "98.0 % of the"),
        ({}, known(1), known(-0.1), known(0.59), "inconclusive", "59 %"),
        ({}, known(1), known(-0.1), known(0.93), "inconclusive", "93 %"),
        ({}, known(1), known(-0.1), known(0.93, 0.02), "done", None),  # may as well be 1
        ({}, known(1), known(-0.1), known(1.3), "done", None),
        ({"other_work": 0.5}, known(1), known(-0.1), known(1.02), "inconclusive", "other work took 50 %"),
        ({"other_work": 0.1}, known(1), known(-0.1), known(1.02), "done", None),
        ({"status": "failed", "reason": "out of memory"}, known(1), known(9), known(1), "failed", "out of memory"),
        ({"status": "invalid", "reason": "it throttled"}, known(1), known(-0.1), known(1), "invalid", "it throttled"),
    ],
)
def test_verdicts(
    result: CellResult,
    changes: dict[str, Any],
    wall: Median,
    excess: Median,
    ratio: Median,
    status: str,
    says: str | None,
) -> None:
    base = result.model_copy(update={"closure": closure(), **changes})
    verdict, reason = judge(base, wall=wall, excess=excess, ratio=ratio)
    assert verdict == status
    assert reason is None if says is None else says in str(reason)


def noisy_pass(rng: np.random.Generator, rounds: int, idle: float, instrumentation: float) -> tuple[Median, ...]:
    """(wall, excess, ratio) of an honest pass of 1 s on a host that others use, in rounds of three passes each.

    A pass is slowed by a level that drifts from round to round, by heavy-tailed noise of its own, and by bursts of
    other work that may cover the unprofiled or the profiled half of a round.
    """
    sigma, burst, drift = rng.uniform(0.005, 0.15), rng.uniform(0, 0.4), rng.uniform(0, 0.1)
    level = 1 + np.abs(np.cumsum(rng.normal(scale=drift, size=rounds)))
    halves = []
    for _ in range(2):
        slowed = 1 + np.where(rng.random(rounds) < 0.25, burst * rng.random(rounds), 0.0)
        tails = np.exp(sigma * np.clip(rng.standard_t(2, size=(rounds, 3)), -20, 20))
        halves.append(tails * (slowed * level)[:, None])
    wall_s, profiled_s = halves[0], halves[1] * (1 + instrumentation)
    busy_s = np.median(profiled_s, axis=1) * (1 - idle)
    walls_s = np.median(wall_s, axis=1)
    ratio = median_of(np.median(profiled_s, axis=1) / walls_s)
    return median_of(walls_s), excess_of(wall_s.ravel(), profiled_s.ravel(), busy_s), ratio


@pytest.mark.parametrize("rounds", [3, 4, 5, 12])
def test_no_honest_pass_on_a_noisy_host_is_invalid(result: CellResult, rounds: int) -> None:
    rng = np.random.default_rng(100 + rounds)
    sound = result.model_copy(update={"closure": closure()})
    found: list[str] = []
    for _ in range(700):
        wall, excess, ratio = noisy_pass(rng, rounds, rng.uniform(0, 0.1), rng.uniform(0, 0.02))
        found.append(judge(sound, wall=wall, excess=excess, ratio=ratio)[0])
    assert "invalid" not in found
    assert found.count("done") > 0 and found.count("inconclusive") > 0


@pytest.mark.parametrize("rounds", [5, 12])
def test_a_planted_contradiction_is_found(result: CellResult, rounds: int) -> None:
    rng = np.random.default_rng(rounds)
    sound = result.model_copy(update={"closure": closure()})
    for _ in range(200):
        wall_s, profiled_s = (level * (1 + 0.005 * rng.normal(size=(rounds, 3))) for level in (1.0, 1.12))
        walls_s, profiled_walls_s = np.median(wall_s, axis=1), np.median(profiled_s, axis=1)
        excess = excess_of(wall_s.ravel(), profiled_s.ravel(), profiled_walls_s / 1.12 * 1.1)
        status, reason = judge(
            sound, wall=median_of(walls_s), excess=excess, ratio=median_of(profiled_walls_s / walls_s)
        )
        assert status == "invalid" and "busy is more than the wall by" in str(reason)


def test_what_is_good_enough_but_worth_knowing(result: CellResult) -> None:
    quiet = result.model_copy(update={"closure": closure(), "other_work": 0.04})
    assert doubts(quiet, known(1.02)) == doubts(quiet, known(1.06, 0.02)) == []
    assert doubts(quiet.model_copy(update={"other_work": 0.1}), known(1.12)) == [
        "other work took 10 % of the host while it was measured",
        "times of operations carry up to 12 % of instrumentation; the wall does not",
    ]
