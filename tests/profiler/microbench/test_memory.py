"""The kernels on main memory and caches: the bytes they move and the values they write, never how fast."""

import math
from dataclasses import replace

import pytest
import torch
from microbench_samples import measured

from profiler.devices.caches import ReadCurve
from profiler.microbench import memory
from profiler.microbench.bench import Bench
from profiler.microbench.memory import KERNELS, case, working_sets
from profiler.record.measurement import CacheState, Capacity
from profiler.timing.cache_state import PAST

CPU = torch.device("cpu")
MIB = 1 << 20
EXPECTED = {
    "write": lambda c: torch.full_like(c, 3.0),
    "copy": lambda a, c: a,
    "scale": lambda a, c: 3.0 * a,
    "add": lambda a, b, c: a + b,
    "triad": lambda a, b, c: a + 3.0 * b,
}
"""STREAM's kernels (McCalpin), on the same operands."""


def bench(limit: int = 48 * MIB) -> Bench:
    return Bench(CPU, budget_s=0.02, quick=True, limit_bytes=limit)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_writes_what_stream_does_and_touches_the_bytes_it_claims(kernel: str) -> None:
    made = case(kernel, 1 << 16, CPU)
    operands = made.make()
    assert len(operands) == KERNELS[kernel].tensors and made.touched_bytes == sum(t.nbytes for t in operands)
    before = [tensor.clone() for tensor in operands]
    result = made.run(operands)
    made.check(operands, result)
    if kernel == "read":
        assert isinstance(result, torch.Tensor)
        torch.testing.assert_close(result, before[0].sum())
        return
    assert bool(before[-1].isnan().all()), "outputs are not known before they are written"
    torch.testing.assert_close(operands[-1], EXPECTED[kernel](*before).to(torch.float32))
    for old, new in zip(before[:-1], operands[:-1], strict=True):
        assert torch.equal(old, new)


def test_a_wrong_result_is_noticed() -> None:
    for kernel in KERNELS:
        made = case(kernel, 1 << 16, CPU)
        operands = made.make()
        result = made.run(operands)
        if kernel == "read":
            result = torch.tensor(math.nan)
        else:
            operands[-1][-1] = math.nan
        with pytest.raises(ArithmeticError, match=kernel):
            made.check(operands, result)


def test_data_is_random_normal() -> None:
    for elements in (1, 100, memory.BLOCK_ELEMENTS, memory.BLOCK_ELEMENTS + 17):
        data = memory.normal(elements, CPU)
        assert data.shape == (elements,) and data.dtype == torch.float32
        if elements > 50:
            assert abs(float(data.mean())) < 0.5 and 0.7 < float(data.std()) < 1.3, elements


def test_main_memory_is_cold_and_counted_as_stream_counts(small_host: None) -> None:
    found = {one.case: one for one in memory.main_memory(bench(limit=48 * MIB))}
    assert list(found) == list(KERNELS)
    for kernel, one in found.items():
        assert one.has_value, one.reason
        assert one.work == KERNELS[kernel].tensors * one.parameters["operand_bytes"] and one.unit == "B/s"
        assert one.cache is not None and one.cache.declared == "cold" and one.cache.cache_bytes == MIB
        assert one.cache.between_bytes >= PAST * MIB
        if one.cache.judged_by == "bytes":
            assert one.cache.holds is True


def test_too_little_memory_to_get_past_a_cache_is_a_reason(small_host: None) -> None:
    found = list(memory.main_memory(bench(limit=MIB)))
    assert [one.status for one in found] == ["failed"] * len(KERNELS)
    assert all("free or allow more memory" in (one.reason or "") for one in found)


CURVE = ReadCurve((8 * MIB, 16 * MIB, 32 * MIB, 64 * MIB), (40e9, 40e9, 10e9, 10e9), 10e9)
"""A cache at 40 GB/s, main memory at 10 GB/s."""


def test_a_cold_rate_that_is_a_cache_s_is_not_cold() -> None:
    cold = CacheState(declared="cold", operand_bytes=9, between_bytes=9, cache_bytes=5, holds=True)
    for rate, holds in ((9e9, True), (12e9, True), (19e9, True), (21e9, False), (44e9, False)):
        read = memory.judged(measured("memory", "read", rate, cache=cold), CURVE)
        assert read.cache is not None and (read.cache.holds, read.cache.judged_by) == (holds, "bytes and rate"), rate
        assert any("not cold" in label.what for label in read.labels) is not holds, rate
        assert read.value() == pytest.approx(rate)


def test_without_two_distinct_rates_bytes_alone_judge() -> None:
    read = measured("memory", "read", 40e9)
    for curve in (None, replace(CURVE, rates=(10e9,) * 4), replace(CURVE, main_rate=None)):
        assert memory.judged(read, curve) is read, curve


def test_too_few_bytes_stay_too_few_however_slow_the_reading() -> None:
    cold = CacheState(declared="cold", operand_bytes=9, between_bytes=9, cache_bytes=50, holds=False)
    one = memory.judged(measured("memory", "read", 9e9, cache=cold), CURVE)
    assert one.cache is not None and one.cache.holds is False


def test_operands_are_shared_between_kernels_and_filled_anew() -> None:
    pool = memory.Pool(4096, CPU)
    written = pool.take(0, "write")[0]
    assert bool(written.isnan().all())
    a, b, c = pool.take(0, "triad")
    assert a is written and not bool(a.isnan().any()) and float(a.std()) > 0.5
    assert bool(c.isnan().all()) and b.shape == c.shape == (1024,)
    other = pool.take(1, "triad")
    assert not {t.data_ptr() for t in other} & {t.data_ptr() for t in (a, b, c)}


def test_the_curve_goes_up_to_the_limit() -> None:
    found = list(memory.curve(bench(limit=2 * MIB)))
    sizes = [one.parameters["working_set_bytes"] for one in found if one.parameters["kernel"] == "read"]
    assert sizes == sorted(sizes) and sizes[0] == 256 << 10 and sizes[-1] == 2 * MIB
    assert len(sizes) == 3 * memory.QUICK_PER_OCTAVE + 1
    assert {one.parameters["kernel"] for one in found} == set(memory.CURVE_KERNELS)
    assert len({one.key for one in found}) == len(found)


def test_working_sets_of_a_level() -> None:
    small, large = Capacity(name="L2", bytes=4 * MIB), Capacity(name="L3", bytes=64 * MIB)
    assert working_sets(small, (small, large)) == [2 * MIB]
    assert working_sets(large, (small, large)) == [32 * MIB, 16 * MIB, 8 * MIB]
    assert working_sets(small, (small,)) == [2 * MIB]
