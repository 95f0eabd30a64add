"""Products of each type: what they compute against float64, and what is refused."""

import itertools
import math
from typing import get_args

import pytest
import torch
from slow_products import SlowProducts

from profiler.microbench import matmul
from profiler.microbench.bench import Bench
from profiler.microbench.matmul import PRODUCTS, flops, product_case, touched_bytes
from profiler.microbench.peak import CALLS
from profiler.record.measurement import Layout

CPU = torch.device("cpu")
SHAPE = (32, 48, 64)
ON_A_CPU = ("float64", "float32", "float16", "bfloat16", "int8")


def bench() -> Bench:
    return Bench(CPU, budget_s=0.02, dtypes=("float32", "bfloat16"), quick=True)


def test_a_product_is_checked_against_float64() -> None:
    for dtype, layout in itertools.product(ON_A_CPU, get_args(Layout)):
        made = product_case(dtype, SHAPE, CPU, layout)
        operands = made.make()
        assert operands.b.shape == (64, 48), (dtype, layout)
        assert (operands.b if layout == "k×n" else operands.b.t()).is_contiguous(), (dtype, layout)
        result = made.run(operands)
        made.check(operands, result)
        exact = operands.a.double() @ operands.b.double()
        assert operands.out.shape == (32, 48) and exact.shape == (32, 48)
        operands.out[0, 0] += 1 + operands.out[0, 0].abs()
        with pytest.raises(ArithmeticError, match=f"the {dtype} product .* is off by"):
            made.check(operands, result)


def test_a_product_that_is_not_finite_is_no_result() -> None:
    for dtype in (d for d in ON_A_CPU if d != "int8"):
        made = product_case(dtype, SHAPE, CPU)
        operands = made.make()
        made.run(operands)
        operands.out[1, 1] = torch.nan
        with pytest.raises(ArithmeticError, match=f"the {dtype} product .* is not finite"):
            made.check(operands, None)


def test_an_output_that_is_not_written_is_noticed() -> None:
    made = product_case("int8", SHAPE, CPU)
    with pytest.raises(ArithmeticError):
        made.check(made.make(), None)


def test_bytes_of_a_product() -> None:
    for dtype, one in PRODUCTS.items():
        a, b, out = 32 * 64 * one.stored.itemsize, 64 * 48 * one.stored.itemsize, 32 * 48 * one.result.itemsize
        assert touched_bytes(dtype, SHAPE) == a + b + out and flops(SHAPE) == 2 * 32 * 48 * 64, dtype


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


def test_skinny_products_that_take_too_long_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = SlowProducts(monkeypatch, {("bfloat16", "n×k"): 1e9})
    found = list(matmul.skinny(paper.bench(dtypes=("bfloat16",), budget_s=0.3)))
    values = {one.case: one.value() for one in found if one.has_value}
    assert values == {f"m{m}": pytest.approx(2 * m * 4096**2 / 1e9) for m in (1, 2, 4, 8)}
    late = [one for one in found if not one.has_value]
    assert [one.case for one in late] == ["m16", "m32", "m64", "m128", "m256"]
    assert late[0].reason == "not tried: a call would take 0.54 s, its budget is 0.3 s" and late[0].dtype == "bfloat16"
    assert paper.clock.at_s <= 4 * CALLS * 0.3
