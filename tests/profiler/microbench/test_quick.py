"""The quick peaks on this CPU in a reduced mode: what they are made of, never how fast they are."""

import math

import pytest
import torch

from profiler.microbench import host, matmul, memory, pointwise
from profiler.microbench.memory import Bandwidth, Capacity, plateau, working_sets
from profiler.microbench.quick import measure_peaks
from profiler.models.operators import is_metadata
from profiler.timing.flush import PAST
from profiler.timing.sampler import Samples
from roofline.hardware import Peaks

CPU = torch.device("cpu")
MIB = 1 << 20


@pytest.fixture(scope="module")
def measured() -> tuple[Peaks, dict[str, str], list[tuple[float, str]]]:
    told: list[tuple[float, str]] = []
    peaks, reasons = measure_peaks(
        "cpu",
        ["float32", "bfloat16"],
        budget_s=1.0,
        limit_bytes=64 * MIB,
        progress=lambda part, what: told.append((part, what)),
    )
    return peaks, reasons, told


def test_the_figures_of_this_cpu(measured: tuple[Peaks, dict[str, str], list[tuple[float, str]]]) -> None:
    peaks, reasons, _ = measured
    assert set(peaks.matrix) == set(peaks.vector) == {"float32", "bfloat16"}
    assert peaks.levels[-1].name == "DRAM" and peaks.host_s_per_op is not None
    figures = [*peaks.matrix.values(), *peaks.vector.values(), *(level.bandwidth for level in peaks.levels)]
    for figure in [*figures, peaks.host_s_per_op]:
        assert figure.low is not None and figure.high is not None
        assert 0 < figure.low <= figure.value * (1 + 1e-9) and figure.value <= figure.high * (1 + 1e-9) < math.inf
        assert "5–95 % of the samples in this process" in figure.source
        assert f"torch {torch.__version__}" in figure.source and "threads" in figure.source
    assert "ieee" in peaks.matrix["float32"].source and "read + written" in peaks.levels[0].bandwidth.source
    for level in {level.name for level in memory.cache_capacities(CPU)} - {level.name for level in peaks.levels}:
        assert reasons[f"level.{level}"].startswith("merged into")


def test_progress_only_goes_up(measured: tuple[Peaks, dict[str, str], list[tuple[float, str]]]) -> None:
    parts = [part for part, _ in measured[2]]
    assert parts == sorted(parts) and parts[0] == 0 and parts[-1] == 1 and all(what for _, what in measured[2])


def test_a_dtype_that_cannot_be_multiplied_is_left_out_with_its_reason() -> None:
    peaks, reasons = measure_peaks("cpu", ["float8_e4m3fn"], budget_s=0.3, limit_bytes=16 * MIB)
    assert "float8_e4m3fn" not in peaks.matrix and "not implemented" in reasons["matrix.float8_e4m3fn"]
    assert "float32" in peaks.vector
    with pytest.raises(ValueError, match="no dtype of torch"):
        measure_peaks("cpu", ["fp32"])


def test_out_of_memory_leaves_one_figure_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matmul.SHAPES, "cpu", ((1 << 24, 1 << 24, 1 << 24),))  # 1 PiB an operand
    peaks, reasons = measure_peaks("cpu", ["float32"], budget_s=0.3, limit_bytes=16 * MIB)
    assert peaks.matrix == {} and "allocate" in reasons["matrix.float32"] and peaks.vector


def test_a_non_finite_product_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArithmeticError, match="not finite"), monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *s, **k: torch.full(s, 3e38))
        matmul.time_product("float32", (64, 64, 64), CPU, budget_s=0.05)


@pytest.mark.parametrize("turns", [1, 4])
def test_every_kernel_moves_the_bytes_that_it_claims(turns: int) -> None:
    pool = memory.normal_pool(3 * MIB, CPU)
    for name, (size, call) in memory.kernels(pool, turns).items():
        assert size * turns == pytest.approx(pool.nbytes, rel=1e-3), name
        before = pool.clone()
        for _ in range(turns):
            call()
        changed = int((pool != before).sum()) * 4
        assert changed == pytest.approx({"read": 0, "copy": pool.nbytes / 2, "add": pool.nbytes / 3}[name], rel=1e-2)
    assert bool(torch.isfinite(pool).all()) and float(pool.std()) > 0.5


def test_bandwidth_times_time_is_bytes() -> None:
    found = memory.best(memory.measure(MIB, CPU, turns=1, budget_s=0.1))
    assert found.bytes_per_s * found.samples.quantile_s(0.1) == pytest.approx(found.bytes_per_call)
    product = matmul.time_product("float32", (32, 48, 64), CPU, budget_s=0.05)
    assert product.flops_per_s * product.samples.quantile_s(0.1) == pytest.approx(2 * 32 * 48 * 64)


def test_main_memory_is_cold_or_says_that_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "cache_capacities", lambda device: (Capacity("L2", 4 * MIB),))
    size, turns = memory.main_working_set(CPU, limit_bytes=64 * MIB)
    assert turns > 1 and size - size // turns >= PAST * 4 * MIB
    assert memory.main_working_set(CPU, limit_bytes=4 * MIB)[1] == 1


def test_working_sets_of_a_level() -> None:
    small, large = Capacity("L2", 4 * MIB), Capacity("L3", 64 * MIB)
    assert working_sets(small, (small, large)) == [2 * MIB]
    assert working_sets(large, (small, large)) == [32 * MIB, 16 * MIB, 8 * MIB]
    assert working_sets(small, (small,)) == [2 * MIB]


def test_a_shared_cache_keeps_what_shows_of_it() -> None:
    def at(mib: int, gb_per_s: float) -> Bandwidth:
        return Bandwidth("read", mib * MIB, 10**9, False, Samples((1 / gb_per_s,), 1, "precise", "fake"))

    cache = Capacity("L3", 480 * MIB)
    found = [at(240, 10), at(120, 11), at(60, 20), at(30, 50), at(15, 52)]
    level = plateau(cache, found, 10e9)
    assert level is not None and (level.capacity_bytes, level.stated_bytes) == (60 * MIB, 480 * MIB)
    assert level.best.bytes_per_s == pytest.approx(50e9)
    assert plateau(cache, [at(240, 11), at(120, 10.5)], 10e9) is None
    whole = plateau(cache, [at(240, 50), at(120, 51)], 10e9)
    assert whole is not None and whole.capacity_bytes == cache.bytes


def test_the_polynomial_does_the_steps_that_are_counted() -> None:
    x = torch.randn(100, dtype=torch.float64)
    a, b, steps = torch.ones_like(x), x, 0
    for k in range(1, pointwise.DEGREE):
        a, b = b, x * b - k * a
        steps += 3
    assert steps == pointwise.HERMITE_FLOPS
    torch.testing.assert_close(torch.special.hermite_polynomial_he(x, pointwise.DEGREE), b)


def test_host_operations_are_counted_without_views_and_with_attention_as_one() -> None:
    cost = host.measure(CPU, "float32", budget_s=0.2)
    # A layer: 7 products, attention, 2 norms of 6, RoPE 2 × (2 products, cat, neg, sum), cache 2, act 2, sum 2.
    per_layer = 7 + 1 + 2 * 6 + 2 * 5 + 2 + 2 + 2
    assert 8 * per_layer <= cost.operations <= 8 * per_layer + 60
    assert cost.seconds_per_op * cost.operations == pytest.approx(cost.samples.quantile_s(0.1))
    with host._Counter() as counter:
        q = torch.randn(1, 2, 4, 8)
        torch.nn.functional.scaled_dot_product_attention(q, q, q).transpose(1, 2).reshape(1, 4, 16) + 1
    assert counter.operations == 1 + 1 + 1 + 1  # randn, attention, clone, add
    assert is_metadata(torch.ops.aten.transpose.int)
