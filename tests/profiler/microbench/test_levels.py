"""Which levels of memory show in bandwidths, with known answers."""

from profiler.devices.caches import Capacity
from profiler.microbench.levels import DISTINCT, MeasuredLevel, Reached, ladder, plateau

MIB = 1 << 20


def at(size: int, gb_per_s: float, kernel: str = "read") -> Reached:
    return Reached(kernel, size, gb_per_s * 1e9)


MAIN = MeasuredLevel("DRAM", 1 << 34, 1 << 34, at(1 << 30, 20))


def test_no_level_is_slower_than_a_larger_one() -> None:
    l1, l2, l3 = Capacity("L1", MIB), Capacity("L2", 4 * MIB), Capacity("L3", 64 * MIB)
    kept, reasons = ladder(
        MAIN,
        {l1: [at(MIB // 2, 30)], l2: [at(2 * MIB, 100), at(2 * MIB, 90, "copy")], l3: [at(32 * MIB, 21)]},
    )
    assert [level.name for level in kept] == ["L2", "DRAM"]
    assert reasons["L1"] == "merged into L2: 30.0 GB/s is slower than 100.0 GB/s"
    assert reasons["L3"] == "merged into DRAM: 21.0 GB/s is not 15% above 20.0 GB/s"
    rates = [level.best.bytes_per_s for level in kept]
    assert rates == sorted(rates, reverse=True)


def test_a_cache_without_a_result_is_named() -> None:
    kept, reasons = ladder(MAIN, {Capacity("L2", MIB): []})
    assert kept == (MAIN,) and reasons == {"L2": "no kernel has a result on it"}


def test_a_shared_cache_keeps_what_shows_of_it() -> None:
    cache = Capacity("L3", 480 * MIB)
    found = [at(240 * MIB, 10), at(120 * MIB, 11), at(60 * MIB, 20), at(30 * MIB, 50), at(15 * MIB, 52)]
    level = plateau(cache, found, 10e9)
    assert level is not None and (level.capacity_bytes, level.stated_bytes) == (60 * MIB, 480 * MIB)
    assert level.best.bytes_per_s == 50e9
    assert plateau(cache, [at(240 * MIB, 11), at(120 * MIB, 10.5)], 10e9) is None
    whole = plateau(cache, [at(240 * MIB, 50), at(120 * MIB, 51)], 10e9)
    assert whole is not None and whole.capacity_bytes == cache.bytes


def test_the_working_set_that_stands_for_a_level_is_itself_distinct() -> None:
    level = plateau(Capacity("L3", 64 * MIB), [at(64 * MIB, 11), at(32 * MIB, 12)], 10e9)
    assert level is not None and level.best.bytes_per_s >= DISTINCT * 10e9


def test_the_best_kernel_stands_for_a_working_set() -> None:
    found = [at(32 * MIB, 40, "read"), at(32 * MIB, 50, "triad"), at(32 * MIB, 45, "copy")]
    level = plateau(Capacity("L3", 64 * MIB), found, 10e9)
    assert level is not None and level.best.kernel == "triad"
