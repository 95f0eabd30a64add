"""Levels of simulated memories whose capacities and rates are known, and curves without any level."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.device.levels import Plateau, knees, noise, plateaus
from calibrate.device.peaks import MeasuredLevel, Reached, ladder, shown
from profiler.record.measurement import DISTINCT, Capacity

SEEDS = 500
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True)
class Memory:
    """Capacities of all levels but the last, in bytes, and the rates of all."""

    capacities: tuple[int, ...]
    rates: tuple[float, ...]
    smallest: int = 16 * KIB
    largest: int = 8 * GIB

    def sizes(self, per_octave: int = 4) -> list[int]:
        steps = round(per_octave * math.log2(self.largest / self.smallest))
        return [round(self.smallest * 2 ** (i / per_octave)) for i in range(steps + 1)]

    def curve(self, sizes: list[int], octaves: float) -> np.ndarray:
        """Rates; the share of bytes that miss a level rises from 0 to 1 over `octaves` past its capacity."""
        seconds = np.full(len(sizes), 1 / self.rates[0])
        for i, capacity in enumerate(self.capacities):
            past = np.log2(np.array(sizes) / capacity)
            missed = (past > 1e-9) if octaves == 0 else np.clip(past / octaves, 0, 1)
            seconds += missed * (1 / self.rates[i + 1] - 1 / self.rates[i])
        return 1 / seconds


MEMORIES = {
    "H100: L2 and HBM": Memory((28 * MIB,), (5.5e12, 3.1e12), 512 * KIB),
    "desktop: L1, L2, L3, DRAM": Memory((48 * KIB, 2 * MIB, 64 * MIB), (4e11, 1.5e11, 6e10, 2e10), 4 * KIB),
    "server core: L2, L3, DRAM": Memory((MIB, 32 * MIB), (1.4e11, 5e10, 1.2e10), 32 * KIB, 2 * GIB),
}


def noisy(curve: np.ndarray, spread: float, seed: int) -> list[float]:
    return list(curve * np.exp(spread * np.random.default_rng([7, seed]).standard_normal(len(curve))))


def is_found(memory: Memory, sizes: list[int], rates: list[float]) -> bool:
    found = plateaus(sizes, rates)
    at = knees(sizes, found)
    return (
        len(found) == len(memory.rates)
        and len(at) == len(memory.capacities)
        and all(1 / 1.5 <= a / c <= 1.5 for a, c in zip(at, memory.capacities, strict=True))
        and all(abs(p.rate / r - 1) <= 0.05 for p, r in zip(found, memory.rates, strict=True))
    )


@pytest.mark.parametrize("name", MEMORIES)
def test_every_level_is_found_where_it_is(name: str) -> None:
    memory = MEMORIES[name]
    sizes = memory.sizes()
    for octaves, spread in itertools.product((0.0, 1.0, 2.0), (0.0, 0.03, 0.05)):
        curve = memory.curve(sizes, octaves)
        hits = [is_found(memory, sizes, noisy(curve, spread, seed)) for seed in range(SEEDS if spread else 1)]
        print(f"{name} | {octaves} octaves | noise {spread} | {np.mean(hits):.3f}")  # noqa: T201 - shown with -s
        assert np.mean(hits) >= 0.95, (octaves, spread)


def sizes_from(smallest: int, octaves: int, per_octave: int = 4) -> list[int]:
    return Memory((), (1.0,), smallest, smallest << octaves).sizes(per_octave)


def test_a_curve_that_falls_all_along_has_no_knee() -> None:
    sizes = sizes_from(16 * KIB, 16)
    for power, spread in itertools.product((-1.0, -0.5, -0.25, -0.1), (0.0, 0.03, 0.05)):
        curve = 1e11 * (np.array(sizes) / sizes[0]) ** power
        counts = [len(knees(sizes, plateaus(sizes, noisy(curve, spread, seed)))) for seed in range(100)]
        assert max(counts) <= 1 and np.mean(counts) <= 0.1, (power, spread)


def test_one_level_is_one_plateau_without_a_knee() -> None:
    sizes = sizes_from(MIB, 12)
    for spread, seed in itertools.product((0.0, 0.03, 0.05), range(100)):
        (only,) = plateaus(sizes, noisy(np.full(len(sizes), 3e12), spread, seed))
        assert only.rate == pytest.approx(3e12, rel=0.03) and only.last_bytes / only.first_bytes > 2**9
        assert knees(sizes, [only]) == ()


def test_levels_that_are_alike_are_one() -> None:
    for ratio, levels in ((1.10, 1), (1.25, 2)):
        memory = Memory((8 * MIB,), (ratio, 1.0), 512 * KIB, 256 * MIB)
        sizes = memory.sizes()
        counts = [len(plateaus(sizes, noisy(memory.curve(sizes, 1.0), 0.01, seed))) for seed in range(100)]
        assert counts.count(levels) >= 98, ratio


def test_a_level_between_two_slopes_is_absent() -> None:
    # The second level is left after an octave of falling to it and none of its own.
    memory = Memory((256 * KIB, 512 * KIB), (4e11, 2e11, 2e10), 16 * KIB, 64 * MIB)
    sizes = memory.sizes()
    for seed in range(100):
        first, last = plateaus(sizes, noisy(memory.curve(sizes, 1.0), 0.03, seed))
        assert first.rate == pytest.approx(4e11, rel=0.05) and last.rate == pytest.approx(2e10, rel=0.05)
        (at,) = knees(sizes, (first, last))
        assert 1 / 1.5 <= at / (256 * KIB) <= 1.5


def test_a_lone_bad_size_cuts_nothing() -> None:
    sizes = sizes_from(MIB, 12)
    for seed in range(100):
        rates = noisy(np.full(len(sizes), 3e12), 0.02, seed)
        rates[seed % len(sizes)] *= 0.6
        assert [p.rate for p in plateaus(sizes, rates)] == [pytest.approx(3e12, rel=0.03)]


def test_overhead_before_the_first_level_is_no_knee() -> None:
    # Small calls are overhead, the rate rises with size to a level at 1e11, then falls at 8 MiB.
    memory = Memory((8 * MIB,), (1e11, 2e10), 4 * KIB, 512 * MIB)
    sizes = memory.sizes()
    rates = np.array(sizes) / (np.array(sizes) / memory.curve(sizes, 1.0) + 2e-7)
    for seed in range(100):
        found = plateaus(sizes, noisy(rates, 0.02, seed))
        (at,) = knees(sizes, found)
        assert 1 / 1.5 <= at / (8 * MIB) <= 1.5


def test_by_hand() -> None:
    sizes = [1 << i for i in range(10, 18)]
    found = plateaus(sizes, [8.0, 8.0, 8.0, 8.0, 2.0, 2.0, 2.0, 2.0])
    assert found == (Plateau(1 << 10, 1 << 13, pytest.approx(8.0)), Plateau(1 << 14, 1 << 17, pytest.approx(2.0)))
    assert knees(sizes, found) == (pytest.approx(2**13.5),)
    assert knees(sizes, plateaus(sizes, [2.0] * 4 + [8.0] * 4)) == ()
    assert plateaus(sizes[:2], [8.0, 8.0]) == ()


def test_the_noise_is_estimated_past_steps_and_slopes() -> None:
    memory = MEMORIES["desktop: L1, L2, L3, DRAM"]
    sizes = memory.sizes()
    for spread in (0.01, 0.03, 0.05):
        estimates = [noise(np.log(noisy(memory.curve(sizes, 1.0), spread, seed))) for seed in range(200)]
        assert np.mean(estimates) == pytest.approx(spread, rel=0.3)
    assert noise(np.log(memory.curve(sizes, 1.0))) < 0.01


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=40), st.floats(1e-3, 1e12))
def test_plateaus_are_apart_in_order_and_in_the_unit_given(rates: list[float], unit: float) -> None:
    sizes = [1000 * 2**i for i in range(len(rates))]
    found = plateaus(sizes, rates)
    ends = [end for p in found for end in (p.first_bytes, p.last_bytes)]
    assert ends == sorted(set(ends)) and set(ends) <= set(sizes)
    assert all(min(rates) * (1 - 1e-9) <= p.rate <= max(rates) * (1 + 1e-9) for p in found)
    assert len(plateaus(sizes, [unit] * len(sizes))) == (len(sizes) >= 3)


def test_a_curve_that_is_none_is_refused() -> None:
    for sizes, rates, match in (
        ([1, 2, 3], [1.0, 2.0], "a rate for each"),
        ([1, 3, 2], [1.0] * 3, "ascend"),
        ([1, 2, 2], [1.0] * 3, "ascend"),
        ([0, 1, 2], [1.0] * 3, "positive"),
        ([1, 2, 3], [1.0, 0.0, 1.0], "positive"),
        ([1, 2, 3], [1.0, math.nan, 1.0], "finite"),
    ):
        with pytest.raises(ValueError, match=match):
            plateaus(sizes, rates)


def at(size: int, gb_per_s: float, kernel: str = "read") -> Reached:
    return Reached(kernel, size, gb_per_s * 1e9)


MAIN = MeasuredLevel("DRAM", 1 << 34, 1 << 34, at(1 << 30, 20))


def test_no_level_is_slower_than_a_larger_one() -> None:
    l1, l2, l3 = Capacity(name="L1", bytes=MIB), Capacity(name="L2", bytes=4 * MIB), Capacity(name="L3", bytes=64 * MIB)
    kept, reasons = ladder(
        MAIN,
        {l1: [at(MIB // 2, 30)], l2: [at(2 * MIB, 100), at(2 * MIB, 90, "copy")], l3: [at(32 * MIB, 21)]},
    )
    assert [level.name for level in kept] == ["L2", "DRAM"]
    assert reasons["L1"] == "merged into L2: 30.0 GB/s is slower than 100.0 GB/s"
    assert reasons["L3"] == "merged into DRAM: 21.0 GB/s is not 15 % above 20.0 GB/s"
    rates = [level.best.bytes_per_s for level in kept]
    assert rates == sorted(rates, reverse=True)


def test_a_cache_without_a_result_is_named() -> None:
    kept, reasons = ladder(MAIN, {Capacity(name="L2", bytes=MIB): []})
    assert kept == (MAIN,) and reasons == {"L2": "no kernel has a result on it"}


def test_a_shared_cache_keeps_what_shows_of_it() -> None:
    cache = Capacity(name="L3", bytes=480 * MIB)
    found = [at(240 * MIB, 10), at(120 * MIB, 11), at(60 * MIB, 20), at(30 * MIB, 50), at(15 * MIB, 52)]
    level = shown(cache, found, 10e9)
    assert level is not None and (level.capacity_bytes, level.stated_bytes) == (60 * MIB, 480 * MIB)
    assert level.best.bytes_per_s == 50e9
    assert shown(cache, [at(240 * MIB, 11), at(120 * MIB, 10.5)], 10e9) is None
    whole = shown(cache, [at(240 * MIB, 50), at(120 * MIB, 51)], 10e9)
    assert whole is not None and whole.capacity_bytes == cache.bytes


def test_the_working_set_that_stands_for_a_level_is_itself_distinct() -> None:
    level = shown(Capacity(name="L3", bytes=64 * MIB), [at(64 * MIB, 11), at(32 * MIB, 12)], 10e9)
    assert level is not None and level.best.bytes_per_s >= DISTINCT * 10e9


def test_the_best_kernel_stands_for_a_working_set() -> None:
    found = [at(32 * MIB, 40, "read"), at(32 * MIB, 50, "triad"), at(32 * MIB, 45, "copy")]
    level = shown(Capacity(name="L3", bytes=64 * MIB), found, 10e9)
    assert level is not None and level.best.kernel == "triad"
