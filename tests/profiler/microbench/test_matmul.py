"""Products of each type: what they compute against float64, and what is refused."""

import math

import pytest
import torch

from profiler.microbench import matmul, peak
from profiler.microbench.bench import Bench
from profiler.microbench.matmul import PRODUCTS, flops, product_case, touched_bytes
from profiler.record.measurement import Layout

CPU = torch.device("cpu")
SHAPE = (32, 48, 64)
ON_A_CPU = ("float64", "float32", "float16", "bfloat16", "int8")


def bench() -> Bench:
    return Bench(CPU, budget_s=0.02, dtypes=("float32", "bfloat16"), quick=True)


@pytest.mark.parametrize("layout", ["k×n", "n×k"])
@pytest.mark.parametrize("dtype", ON_A_CPU)
def test_a_product_is_checked_against_float64(dtype: str, layout: Layout) -> None:
    made = product_case(dtype, SHAPE, CPU, layout)
    operands = made.make()
    assert operands.b.shape == (64, 48) and (operands.b if layout == "k×n" else operands.b.t()).is_contiguous()
    result = made.run(operands)
    made.check(operands, result)
    exact = operands.a.double() @ operands.b.double()
    assert operands.out.shape == (32, 48) and exact.shape == (32, 48)
    operands.out[0, 0] += 1 + operands.out[0, 0].abs()
    with pytest.raises(ArithmeticError, match="is off by"):
        made.check(operands, result)


@pytest.mark.parametrize("dtype", [d for d in ON_A_CPU if d != "int8"])
def test_a_product_that_is_not_finite_is_no_result(dtype: str) -> None:
    made = product_case(dtype, SHAPE, CPU)
    operands = made.make()
    made.run(operands)
    operands.out[1, 1] = torch.nan
    with pytest.raises(ArithmeticError, match="not finite"):
        made.check(operands, None)


def test_an_output_that_is_not_written_is_noticed() -> None:
    made = product_case("int8", SHAPE, CPU)
    with pytest.raises(ArithmeticError):
        made.check(made.make(), None)


@pytest.mark.parametrize("dtype", PRODUCTS)
def test_bytes_of_a_product(dtype: str) -> None:
    one = PRODUCTS[dtype]
    a, b, out = 32 * 64 * one.stored.itemsize, 64 * 48 * one.stored.itemsize, 32 * 48 * one.result.itemsize
    assert touched_bytes(dtype, SHAPE) == a + b + out and flops(SHAPE) == 2 * 32 * 48 * 64


def test_types_that_cannot_be_multiplied() -> None:
    with pytest.raises(ValueError, match="tensor cores"):
        product_case("tfloat32", SHAPE, CPU)
    with pytest.raises(ValueError, match="no product of 'fp32'; use"):
        product_case("fp32", SHAPE, CPU)
    with pytest.raises(ValueError, match="b stored n×k, not k×n"):
        product_case("float8_e4m3fn", SHAPE, CPU, "k×n")
    one = matmul.time_product(bench(), "matmul", "tfloat32", SHAPE)
    assert one.status == "failed" and "tensor cores" in (one.reason or "")


def test_beyond_memory_is_a_reason() -> None:
    one = matmul.time_product(bench(), "matmul", "float32", (1 << 24, 1 << 24, 1 << 24))  # 1 PiB an operand
    assert one.status == "failed" and "allocate" in (one.reason or "")


def test_rate_times_time_is_flops() -> None:
    one = matmul.time_product(bench(), "matmul", "float32", SHAPE)
    assert flops(SHAPE) / max(one.samples) <= one.value() <= flops(SHAPE) / min(one.samples) and one.unit == "FLOP/s"
    assert one.value(0.5) <= one.value(0.1)


def test_skinny_products_are_cold_and_carry_their_work(small_host: None) -> None:
    made = bench()
    made.limit_bytes = 1 << 30
    found = list(matmul.skinny(made))
    assert [one.case for one in found if one.dtype == "float32"] == ["m1", "m4", "m16", "m64", "m256"]
    for one in found:
        m = int(one.case[1:])
        assert one.unit == "s" and flops((m, 4096, 4096)) == 2 * math.prod(int(one.parameters[d]) for d in "mnk")
        assert one.parameters["b stored"] == "n×k"
        if one.has_value:
            assert one.cache is not None and one.cache.declared == "cold" and one.cache.holds in (True, None)
        else:
            assert (one.reason or "").startswith("not tried: a call would take")
    assert found[0].has_value


def test_the_grid_follows_speed_and_memory() -> None:
    made = bench()
    made.limit_bytes = 1 << 30
    assert peak.grid_for(made, 1e9).sizes == (256,), "2·256³ FLOPs take 34 ms"
    wide = peak.grid_for(made, 100e9).sizes
    assert wide[-1] == 1024, "2·1024³ take 21 ms, 2·1536³ 72 ms"
    made.limit_bytes = 24 * 512 * 512
    assert peak.grid_for(made, 100e9).sizes == (256, 384, 512)


def test_burst_and_sustained_are_named_and_weighed_apart() -> None:
    shapes = {"float32": (64, 64, 64)}
    (burst,) = peak.burst(bench(), shapes)
    (lasting,) = peak.sustained(bench(), shapes, seconds=0.2)
    assert (burst.case, lasting.case) == ("burst", "sustained") and burst.parameters["m"] == 64
    assert lasting.quantile == 0.5 and lasting.stop_reason in ("time limit", "sample limit")
    assert lasting.parameters["seconds"] == 0.2
