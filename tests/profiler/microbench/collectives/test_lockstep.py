"""Ranks that decide alike: simulated ranks with clocks of their own, and what a plan must hold."""

import math

import pytest

from profiler.microbench.collectives.lockstep import (
    FEWEST_SAMPLES,
    MOST_REPEATS,
    MOST_SAMPLES,
    HostLockstep,
    Phase,
    measure,
    plan,
    warm_up,
)


class Operands:
    """Counts what is done with it."""

    def __init__(self) -> None:
        self.calls = self.since_reset = self.resets = 0
        self.checked: list[tuple[int, int]] = []

    def run(self) -> None:
        self.calls += 1
        self.since_reset += 1

    def reset(self) -> None:
        self.resets += 1
        self.since_reset = 0

    def check(self, calls: int) -> None:
        self.checked.append((calls, self.since_reset))


class FakeClock:
    """A call takes so many seconds."""

    name = "fake"
    replays = False

    def __init__(self, call_s: float) -> None:
        self.call_s = call_s

    def now(self) -> float:
        return 0.0

    def time(self, call: object, repeats: int) -> float:
        for _ in range(repeats):
            call()  # type: ignore[operator]
        return repeats * self.call_s


def with_slower_rank(call_s: float):  # type: ignore[no-untyped-def]
    """Shares with another rank that needs 1.5 times as long."""

    def share(phase: Phase) -> list[float]:
        return [max(taken, 1.5 * taken) for taken in phase()]

    return share


def test_the_slowest_rank_is_the_time_and_every_result_is_checked() -> None:
    operands = Operands()
    found = measure(operands, FakeClock(1e-4), with_slower_rank(1e-4), budget_s=0.1, sample_s=1e-3)
    assert found.times_s == pytest.approx([1.5e-4] * len(found.times_s))
    assert found.repeats == math.ceil(1e-3 / 1.5e-4)
    assert operands.checked == [(1, 1), (found.repeats, found.repeats)]
    assert found.warm_up.calls + 1 + found.repeats * len(found.times_s) == operands.calls


def test_repeats_are_limited_where_values_grow() -> None:
    found = measure(Operands(), FakeClock(1e-6), lambda p: list(p()), budget_s=0.1, sample_s=1e-3, most_repeats=66)
    assert found.repeats == 66
    assert found.warm_up.calls <= 3 * 66


def test_a_clock_without_a_time_is_no_result() -> None:
    for call_s in (0.0, math.nan):
        with pytest.raises(ArithmeticError, match="fake"):
            measure(Operands(), FakeClock(call_s), lambda p: list(p()), budget_s=0.1, sample_s=1e-3)


def test_a_plan_keeps_its_bounds() -> None:
    for call_s in (1e-9, 1e-6, 1e-4, 1e-2, 10.0):
        todo = plan(call_s, budget_s=0.3, sample_s=1e-3)
        assert FEWEST_SAMPLES <= todo.samples <= MOST_SAMPLES, call_s
        assert 1 <= todo.repeats <= MOST_REPEATS, call_s
        assert todo.samples == FEWEST_SAMPLES or todo.samples * todo.repeats * call_s <= 0.3 * (1 + 1e-9), call_s


def test_warm_up_goes_on_while_calls_get_faster() -> None:
    rounds = iter([1.0, 2 * 0.5, 4 * 0.25, 8 * 0.25])
    warmed, call_s = warm_up(lambda repeats: next(rounds), max_s=100.0)
    assert (warmed.calls, warmed.steady, call_s) == (15, True, 0.25)


def test_warm_up_ends_when_its_time_is_up() -> None:
    warmed, _ = warm_up(lambda repeats: 1.0, max_s=3.0)  # twice as fast in each round
    assert (warmed.calls, warmed.seconds, warmed.steady) == (7, 3.0, False)


def test_ranks_meet_before_each_sample() -> None:
    seen: list[str] = []
    clock = HostLockstep(lambda: seen.append("meet"))
    assert clock.time(lambda: seen.append("call"), 2) > 0
    assert seen == ["meet", "call", "call"]
