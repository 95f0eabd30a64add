"""The sampler on a fake clock with known noise: it stops when it must and says why."""

import itertools
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from profiler.record.conditions import Window
from profiler.record.measurement import WarmUp
from profiler.timing.clock import Call, EventClock, HostClock, clock_for
from profiler.timing.flush import PAST, Rotation, copies
from profiler.timing.sampler import WINDOW_S, Samples, sample
from profiler.timing.stopping import Rules, median_interval
from profiler.timing.warmup import is_steady, warm_up


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
    found = Samples(tuple(times), 1, "precise", "fake", WarmUp(calls=2, seconds=0, steady=True))
    values = [found.quantile_s(q) for q in (0, 0.05, 0.5, 0.95, 1)]
    assert values[0] == min(times) and values[-1] == max(times)
    assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(values))
    assert found.quantile_s(0.5) == pytest.approx(found.median_s)


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


def test_operands_take_turns() -> None:
    turns = Rotation("abc")
    assert [turns.next() for _ in range(7)] == list("abcabca") and len(turns) == 3
    with pytest.raises(ValueError, match="at least one"):
        Rotation([])


@given(st.integers(1, 1 << 30), st.integers(0, 1 << 30))
def test_enough_copies_to_be_cold(operand: int, cache: int) -> None:
    count = copies(operand, cache, limit_bytes=1 << 62)
    assert operand >= PAST * cache or (count - 1) * operand >= PAST * cache
    assert count == 1 or (count - 2) * operand < PAST * cache


def test_with_too_little_memory_there_are_as_many_copies_as_fit() -> None:
    assert copies(1 << 20, 1 << 30, limit_bytes=10 << 20) == 10
    assert copies(1 << 20, 1 << 30, limit_bytes=1 << 20) == 1
    with pytest.raises(ValueError, match="allow more memory"):
        copies(1 << 20, 1 << 30, limit_bytes=(1 << 20) - 1)
