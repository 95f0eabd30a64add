"""Peaks from samples of which most were slowed by other work, with known truths."""

import random

import pytest

from profiler.microbench import host, matmul, memory, pointwise
from profiler.microbench.memory import Bandwidth, Capacity, MeasuredLevel, ladder
from profiler.microbench.undisturbed import PER_VISIT, SAMPLES, VISITS, collect, fastest_s, merged
from profiler.timing.sampler import Samples

MIB = 1 << 20


def contended(true_s: float, undisturbed: float = 0.2, seed: int = 0, samples: int = 60) -> Samples:
    """Times of which a part is undisturbed (± 1 %) and the others 2 to 10 times slower."""
    noise = random.Random(seed)
    times = [
        true_s * (noise.uniform(0.99, 1.01) if i < undisturbed * samples else noise.uniform(2, 10))
        for i in range(samples)
    ]
    noise.shuffle(times)
    return Samples(tuple(times), 1, "time limit", "fake")


def at(level_bytes: int, gb_per_s: float, kernel: str = "read") -> Bandwidth:
    return Bandwidth(kernel, level_bytes // 2, 10**9, False, Samples((1 / gb_per_s,) * 3, 1, "precise", "fake"))


@pytest.mark.parametrize("seed", range(5))
def test_every_achieved_figure_is_what_an_undisturbed_machine_reaches(seed: int) -> None:
    times = contended(1e-3, seed=seed)
    assert times.median_s > 2e-3
    assert matmul.Product("float32", (10, 10, 10), times).flops_per_s == pytest.approx(2e6, rel=0.02)
    assert pointwise.Arithmetic("gelu", "float32", 8, 1000, times).flops_per_s == pytest.approx(8e6, rel=0.02)
    assert Bandwidth("read", 1, 1000, False, times).bytes_per_s == pytest.approx(1e6, rel=0.02)
    assert host.HostCost(100, times).seconds_per_op == pytest.approx(1e-5, rel=0.02)


def test_the_best_shape_is_chosen_by_the_same_estimator_over_all_visits() -> None:
    def product(size: int, times: Samples) -> matmul.Product:
        return matmul.Product("float32", (size, size, 1), times)

    quiet = Samples((1e-3,) * 20, 1, "time limit", "fake")
    slow, fast = product(1000, quiet), product(2000, contended(2e-3))  # 2 and 4 GFLOP/s; by medians 2 and < 2
    all_slow = product(2000, Samples((1e-1,) * 20, 2, "time limit", "fake"))
    found = matmul.best([slow, all_slow, slow, fast])
    assert found.shape == (2000, 2000, 1)
    assert (len(found.samples.times_s), found.samples.repeats) == (80, 1)
    assert len(merged([slow, all_slow, slow, fast])) == 2


def test_alike_samples_do_not_end_a_visit() -> None:
    class Steady:
        """Every call takes 1 ms."""

        name = "steady"

        def __init__(self) -> None:
            self.time_s = 0.0

        def now(self) -> float:
            return self.time_s

        def time(self, call: object, repeats: int) -> float:
            self.time_s += 1e-3 * repeats
            return 1e-3 * repeats * (1 + 1e-4 * (self.time_s % 0.01))

    found = collect(lambda: None, Steady(), budget_s=0.2, min_sample_s=0.0)
    assert len(found.times_s) > 150
    assert VISITS * PER_VISIT >= SAMPLES >= 20
    assert fastest_s(found) <= found.median_s


def test_a_shape_without_time_for_its_samples_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def slow_product(dtype: str, shape: matmul.Shape, device: object, *, budget_s: float) -> matmul.Product:
        tried.append(shape[0])
        return matmul.Product(dtype, shape, Samples((1e-2,) * 3, 1, "time limit", "fake"))

    monkeypatch.setattr(matmul, "time_product", slow_product)
    monkeypatch.setitem(matmul.SHAPES, "cpu", ((100, 100, 100), (200, 200, 200), (400, 400, 400)))
    matmul.visit("float32", memory.torch.device("cpu"), budget_s=1.0)  # 10 ms, then 80 ms: 8 times, then 640 ms
    assert tried[:2] == [100, 200]
    tried.clear()
    matmul.visit("float32", memory.torch.device("cpu"), budget_s=0.5)
    assert tried == [100]


def test_no_level_is_slower_than_a_larger_one() -> None:
    l1, l2, l3 = Capacity("L1", MIB), Capacity("L2", 4 * MIB), Capacity("L3", 64 * MIB)
    main = MeasuredLevel("DRAM", 1 << 34, 1 << 34, at(1 << 30, 20))
    kept, reasons = ladder(
        main, {l1: [at(l1.bytes, 30)], l2: [at(l2.bytes, 100), at(l2.bytes, 90, "copy")], l3: [at(l3.bytes, 21)]}
    )
    assert [level.name for level in kept] == ["L2", "DRAM"]
    assert reasons["L1"] == "merged into L2: 30.0 GB/s is slower than 100.0 GB/s"
    assert reasons["L3"] == "merged into DRAM: 21.0 GB/s is not 15% above 20.0 GB/s"
    rates = [level.best.bytes_per_s for level in kept]
    assert rates == sorted(rates, reverse=True)


def test_the_working_set_that_stands_for_a_level_is_itself_distinct() -> None:
    cache = Capacity("L3", 64 * MIB)
    level = memory.plateau(cache, [at(64 * MIB, 11), at(32 * MIB, 12)], 10e9)
    assert level is not None and level.best.bytes_per_s >= memory.DISTINCT * 10e9
