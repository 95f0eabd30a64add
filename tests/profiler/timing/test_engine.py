"""The engine on an injected clock: what it checks, what it keeps cold, and what it says of it."""

import itertools
import math
import random
import statistics
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from profiler.record.measurement import WarmUp, Window, quantile_of
from profiler.timing.cache_state import PAST
from profiler.timing.clocks import ABOVE, Call, EventClock, HostClock, clock_for, floor_s, too_short
from profiler.timing.engine import WINDOW_S, Case, Setting, is_steady, measure, sample, warm_up
from profiler.timing.stopping import Rules, median_interval

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


def test_the_floor_of_a_clock_is_measured_once() -> None:
    clock = Ticking()
    assert floor_s(clock) == pytest.approx(1e-6)
    at_s = clock.at_s
    assert floor_s(clock) == pytest.approx(1e-6) and clock.at_s == at_s
    assert too_short(ABOVE * 1e-6 * 0.99, floor_s(clock)) and not too_short(ABOVE * 1e-6 * 1.01, floor_s(clock))


def test_a_real_product_is_timed_for_real() -> None:
    from profiler.microbench.matmul import product_case
    from profiler.timing.clocks import HostClock

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


class FakeClock:
    """A call takes `seconds` plus noise; sampling costs no other time."""

    name = "fake"
    replays = False

    def __init__(self, seconds: float, noise: float = 0.0, seed: int = 0) -> None:
        self.seconds, self.noise, self.random = seconds, noise, random.Random(seed)
        self.elapsed = 0.0
        self.batches: list[int] = []

    def now(self) -> float:
        return self.elapsed

    def time(self, call: Call, repeats: int) -> float:
        for _ in range(repeats):
            call()
        self.batches.append(repeats)
        taken = repeats * self.seconds * max(0.1, 1 + self.noise * self.random.gauss(0, 1))
        self.elapsed += taken
        return taken


def nothing() -> None:
    pass


def rules(**given: float) -> Rules:
    return Rules(**{"min_time_s": 0.0, "max_time_s": 100.0, **given})  # type: ignore[arg-type]


def test_exact_times_end_as_precise_after_the_minimum() -> None:
    found = sample(nothing, FakeClock(0.01), rules=rules(min_samples=17))
    assert found.stop_reason == "precise" and len(found.times_s) == 17
    assert found.median_s == pytest.approx(0.01) and found.clock == "fake"


def test_the_minimum_time_is_kept() -> None:
    found = sample(nothing, FakeClock(0.01), rules=rules(min_samples=10, min_time_s=0.5))
    assert 50 <= len(found.times_s) <= 55  # it is looked at on a grid of counts


def test_more_noise_takes_more_samples() -> None:
    counts = [
        len(sample(nothing, FakeClock(0.001, noise), rules=rules(max_samples=5000, noise_tolerance=0)).times_s)
        for noise in (0.01, 0.05, 0.2)
    ]
    assert counts == sorted(counts) and counts[0] < counts[1] < counts[2] < 5000


def test_precise_means_what_it_says() -> None:
    found = sample(nothing, FakeClock(0.001, 0.05), rules=rules(relative_width=0.02, noise_tolerance=0))
    low, high = median_interval(found.times_s)
    assert found.stop_reason == "precise" and high - low <= 0.02 * found.median_s


def test_limits_win_and_are_told() -> None:
    slow = sample(nothing, FakeClock(2.0, 0.1), rules=rules(max_time_s=1.0))
    assert slow.stop_reason == "time limit" and len(slow.times_s) == 1
    clock = FakeClock(0.01, 0.5)
    timed = sample(nothing, clock, rules=rules(max_time_s=0.3))
    assert timed.stop_reason == "time limit" and clock.elapsed < 0.3 + 3 * 0.01
    many = sample(nothing, FakeClock(0.001, 0.5), rules=rules(max_samples=20))
    assert many.stop_reason == "sample limit" and len(many.times_s) == 20


def test_short_calls_are_timed_in_a_row_and_the_warm_up_is_not_a_sample() -> None:
    clock = FakeClock(1e-5)
    found = sample(nothing, clock, min_sample_s=1e-3, rules=rules())
    assert found.repeats == pytest.approx(100, abs=1) and found.median_s == pytest.approx(1e-5)
    assert clock.batches[: found.warm_up.calls] == [1] * found.warm_up.calls
    assert len(found.times_s) == clock.batches.count(found.repeats) - 1


def test_repeats_go_round_all_operands() -> None:
    found = sample(nothing, FakeClock(1e-5), min_sample_s=1e-3, multiple=7, rules=rules())
    assert found.repeats % 7 == 0 and found.repeats >= 100
    clock = FakeClock(1.0)
    clock.replays = True
    assert sample(nothing, clock, multiple=7, rules=rules(max_time_s=30)).repeats == 7
    assert sample(nothing, FakeClock(1.0), multiple=7, rules=rules(max_time_s=30)).repeats == 1


def test_a_clock_that_stands_still_is_refused() -> None:
    with pytest.raises(ArithmeticError, match=r"gave 0\.0 s"):
        sample(nothing, FakeClock(0.0))


class Falling(FakeClock):
    """Each call is faster than the one before until it reaches its floor."""

    def time(self, call: Call, repeats: int) -> float:
        self.seconds = max(1e-3, self.seconds * 0.9)
        return super().time(call, repeats)


def test_warm_up_ends_when_times_no_longer_fall() -> None:
    clock = Falling(1e-2)  # reaches its floor after 22 calls
    warmed, last_s = warm_up(nothing, clock, min_s=0.0, max_s=10.0)
    assert warmed.steady and 22 <= warmed.calls <= 30 and last_s == pytest.approx(1e-3)
    cut, _ = warm_up(nothing, Falling(1e-2), min_s=0.0, max_s=0.02)
    assert not cut.steady and cut.calls < 22
    least, _ = warm_up(nothing, FakeClock(1e-3), min_s=0.1, max_s=10.0)
    assert least.steady and least.calls == 100


def test_warm_up_runs_twice_however_slow() -> None:
    warmed, _ = warm_up(nothing, FakeClock(60.0), min_s=0.0, max_s=0.1)
    assert warmed == WarmUp(calls=2, seconds=120.0, steady=False)


def test_steadiness_needs_two_windows() -> None:
    assert not is_steady([1.0] * 5) and is_steady([1.0] * 6)
    assert is_steady([1.0, 9.0, 1.0, 1.0, 1.0, 7.0])  # one stall is no trend
    assert not is_steady([1.0, 1.0, 1.0, 0.9, 0.9, 0.9])


class Notes:
    """A watch that counts."""

    unread = ()

    def __init__(self) -> None:
        self.open = False
        self.samples: list[int] = []

    def begin(self) -> None:
        assert not self.open
        self.open = True

    def end(self, samples: int) -> Window:
        assert self.open
        self.open = False
        self.samples.append(samples)
        return Window(start_s=0, duration_s=WINDOW_S, samples=samples)

    def close(self) -> None:
        pass


def test_every_sample_lies_in_a_window() -> None:
    watch = Notes()
    found = sample(nothing, FakeClock(0.01, 0.3), rules=rules(max_time_s=2.0, noise_tolerance=0), watch=watch)
    assert sum(watch.samples) == len(found.times_s) and len(found.windows) == len(watch.samples) >= 6
    assert not watch.open and all(count > 0 for count in watch.samples)


@pytest.mark.parametrize(("n", "k"), [(4, 0), (5, 1), (8, 2), (10, 2), (20, 6), (100, 42)])
def test_ranks_of_the_median_s_interval(n: int, k: int) -> None:
    # Binomial(n, ½) tables: the largest k with 2 P(X < k) ≤ 0.1.
    times = [float(i) for i in range(1, n + 1)]
    tail = sum(math.comb(n, i) for i in range(k)) / 2**n
    assert 2 * tail <= 0.1 < 2 * (tail + math.comb(n, k) / 2**n)
    assert median_interval(times) == ((k, n + 1 - k) if k else (0.0, math.inf))


def test_the_interval_covers_the_median() -> None:
    generator = random.Random(1)
    hits = 0
    for _ in range(400):
        low, high = median_interval([generator.expovariate(math.log(2)) for _ in range(25)])  # median 1
        hits += low <= 1 <= high
    assert hits >= 0.86 * 400


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=60))
def test_quantiles_are_ordered_and_within(times: list[float]) -> None:
    values = [quantile_of(tuple(times), q) for q in (0, 0.05, 0.5, 0.95, 1)]
    assert values[0] == min(times) and values[-1] == max(times)
    assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(values))
    assert quantile_of(tuple(times), 0.5) == pytest.approx(statistics.median(times))


def test_the_host_s_clock() -> None:
    calls: list[int] = []
    clock = clock_for(torch.device("cpu"))
    assert isinstance(clock, HostClock) and clock.time(lambda: calls.append(1), 3) > 0 and len(calls) == 3
    with pytest.raises(ValueError, match="meta"):
        clock_for(torch.device("meta"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_s_clock() -> None:
    device = torch.device("cuda")
    a = torch.randn(4096, 4096, device=device)
    clock = clock_for(device)
    assert isinstance(clock, EventClock)
    found = sample(lambda: torch.mm(a, a), clock, rules=Rules(max_time_s=0.5))
    assert 0 < found.median_s < 0.1
