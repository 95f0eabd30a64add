"""The engine on an injected clock: what it checks, what it keeps cold, and what it says of it."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from profiler.timing.clock import Call
from profiler.timing.engine import Case, Setting, measure
from profiler.timing.floor import ABOVE, floor_s, too_short
from profiler.timing.flush import PAST, Rotation, state_of
from profiler.timing.stopping import Rules

RULES = Rules(min_samples=10, max_samples=12, min_time_s=0.0)


@dataclass(eq=False)
class Ticking:
    """Every call takes 1 ms, an empty one 1 µs; a replaying clock runs the calls of its first sample alone."""

    replays: bool = False
    name: str = "ticking"
    at_s: float = 0.0
    captured: set[int] = field(default_factory=set)

    def now(self) -> float:
        return self.at_s

    def time(self, call: Call, repeats: int) -> float:
        if not self.replays or repeats not in self.captured:
            self.captured.add(repeats)
            for _ in range(repeats):
                call()
        taken = 1e-6 if call.__name__ == "_nothing" else 1e-3 * repeats
        self.at_s += taken
        return taken


@dataclass
class Operand:
    number: int
    runs: int = 0


def counted(checks: list[int], *, size: int = 100, bad_from: float = math.inf) -> tuple[Case[Operand], list[Operand]]:
    made: list[Operand] = []

    def make() -> Operand:
        made.append(Operand(len(made)))
        return made[-1]

    def run(operand: Operand) -> int:
        operand.runs += 1
        return operand.number

    def check(operand: Operand, result: object) -> None:
        assert result == operand.number, "checked with the result of another operand"
        checks.append(operand.number)
        if len(checks) >= bad_from:
            raise ArithmeticError("wrong")

    return Case(make, run, size, check), made


def test_output_is_checked_before_and_after_timing() -> None:
    checks: list[int] = []
    case, made = counted(checks)
    timed = measure(case, Setting(Ticking(), rules=RULES, cache_bytes=1000))
    assert len(checks) == 2 and len(made) == 1 and timed.cache.holds is True
    assert made[0].runs == 1 + timed.samples.warm_up.calls + len(timed.samples.times_s)


@pytest.mark.parametrize("bad_from", [1, 2])
def test_a_wrong_output_is_no_time(bad_from: int) -> None:
    case, _ = counted([], bad_from=bad_from)
    with pytest.raises(ArithmeticError, match="wrong"):
        measure(case, Setting(Ticking(), rules=RULES))


def test_cold_operands_take_turns_past_the_cache() -> None:
    case, made = counted([], size=100)
    timed = measure(case, Setting(Ticking(), cache="cold", rules=RULES, cache_bytes=1000, limit_bytes=10_000))
    assert len(made) == 1 + math.ceil(PAST * 1000 / 100)
    runs = [operand.runs for operand in made[1:]]
    assert max(runs) - min(runs) <= 1
    assert timed.cache.holds is True and timed.cache.between_bytes >= PAST * 1000


def test_a_clock_that_replays_goes_round_all_operands_in_each_sample() -> None:
    case, made = counted([], size=100)
    setting = Setting(Ticking(replays=True), cache="cold", rules=RULES, cache_bytes=1000, limit_bytes=10_000)
    timed = measure(case, setting)
    assert timed.samples.repeats == len(made) and timed.cache.holds is True


def test_too_few_calls_to_come_round_are_not_cold() -> None:
    state = state_of("cold", distinct=3, operand_bytes=100, cache_bytes=1000)  # as in a graph of three calls
    assert state.holds is False and state.between_bytes == 200


def test_operands_that_were_not_used_yet_lie_between_too() -> None:
    case, made = counted([], size=100)
    few = Rules(min_samples=2, max_samples=2, min_time_s=0.0)
    timed = measure(case, Setting(Ticking(), cache="cold", rules=few, cache_bytes=10_000, limit_bytes=1 << 20))
    assert sum(operand.runs > 0 for operand in made) < len(made) == 151
    assert timed.cache.holds is True and timed.cache.between_bytes == 15_000


def test_what_cannot_be_cold_within_the_memory_limit_is_measured_and_said() -> None:
    case, made = counted([], size=100)
    timed = measure(case, Setting(Ticking(), cache="cold", rules=RULES, cache_bytes=1000, limit_bytes=1000))
    assert len(made) == 10 and timed.cache.holds is False and timed.cache.between_bytes == 900


def test_an_operand_larger_than_the_memory_limit_is_refused() -> None:
    case, made = counted([], size=100)
    with pytest.raises(ValueError, match="allow more memory"):
        measure(case, Setting(Ticking(), cache="cold", rules=RULES, cache_bytes=1000, limit_bytes=99))
    assert made == []


@pytest.mark.parametrize(
    ("declared", "size", "cache", "holds"),
    [("warm", 100, 1000, True), ("warm", 2000, 1000, False), ("warm", 100, None, None), ("in place", 9999, 10, True),
     ("cold", 2000, 1000, True), ("cold", 1400, 1000, False)],
)  # fmt: skip
def test_states_of_a_single_operand(declared: str, size: int, cache: int | None, holds: bool | None) -> None:
    assert state_of(declared, 1, size, cache).holds is holds  # type: ignore[arg-type]


@given(st.integers(1, 9), st.integers(0, 40))
def test_a_rotation_counts_what_was_used(operands: int, turns: int) -> None:
    rotation = Rotation(range(operands))
    used = [rotation.next() for _ in range(turns)]
    assert rotation.distinct == len(set(used))
    assert not used or rotation.current == used[-1]
    rotation.restart()
    assert rotation.distinct == 0 and rotation.next() == 0


def test_the_floor_of_a_clock_is_measured_once() -> None:
    clock = Ticking()
    assert floor_s(clock) == pytest.approx(1e-6)
    at_s = clock.at_s
    assert floor_s(clock) == pytest.approx(1e-6) and clock.at_s == at_s
    assert too_short(ABOVE * 1e-6 * 0.99, floor_s(clock)) and not too_short(ABOVE * 1e-6 * 1.01, floor_s(clock))


def test_a_real_product_is_timed_for_real() -> None:
    from profiler.microbench.matmul import product_case
    from profiler.timing.clock import HostClock

    case = product_case("float32", (32, 48, 64), torch.device("cpu"))
    clock = HostClock()
    timed = measure(case, Setting(clock, rules=Rules(max_time_s=0.2), cache_bytes=1 << 30))
    assert timed.samples.times_s and min(timed.samples.times_s) > 0
    assert timed.floor_s == floor_s(clock) > 0


def test_operands_in_several_placements_are_told_apart() -> None:
    case, made = counted([], size=100)
    timed = measure(case, Setting(Ticking(), rules=RULES, placements=3, limit_bytes=1000))
    assert (len(made), timed.placements) == (3, 3)
    few, made_few = counted([], size=400)
    assert measure(few, Setting(Ticking(), rules=RULES, placements=3, limit_bytes=1000)).placements == 2
    assert len(made_few) == 2  # as many as memory allows
    rounds, _ = counted([], size=100)
    long = Setting(Ticking(), rules=RULES, placements=3, limit_bytes=1000, min_sample_s=0.01)
    assert measure(rounds, long).placements == 1  # each sample goes round them all


@pytest.mark.parametrize("call_s", [0.01, 0.1, 0.3, 1.0, 7.0])
def test_the_checked_call_counts_towards_the_budget(call_s: float) -> None:
    clock = Ticking()
    budget_s = 1.0

    def run(operand: Operand) -> None:
        clock.at_s += call_s

    measure(Case(lambda: Operand(0), run, 100), Setting(clock, rules=Rules(max_time_s=budget_s), cache_bytes=1000))
    fewest_s = 4 * call_s  # the checked call, two of warm-up, a sample
    assert clock.at_s <= max(budget_s + 2 * call_s, fewest_s) + 0.02
