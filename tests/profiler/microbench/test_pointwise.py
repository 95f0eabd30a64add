"""Pointwise and row-wise work: counted FLOPs, bytes, given and fresh outputs, all against float64."""

import numpy as np
import pytest
import torch

from profiler.microbench import pointwise
from profiler.microbench.bench import Bench
from profiler.microbench.host_cost import Step, _Counter, host_cost
from profiler.models.aten import is_metadata

CPU = torch.device("cpu")


def bench(*dtypes: str) -> Bench:
    return Bench(CPU, budget_s=0.02, dtypes=dtypes or ("float32",), quick=True, limit_bytes=160 << 20)


def test_every_operation_has_a_rate_in_each_type_that_has_it() -> None:
    found = list(pointwise.vector(bench("bfloat16", "int8", "tfloat32")))
    assert {one.dtype for one in found} == {"float32", "bfloat16"}
    assert {one.case for one in found if one.dtype == "float32"} == set(pointwise.OPERATIONS)
    assert {one.case for one in found if one.dtype == "bfloat16"} == set(pointwise.OPERATIONS) - pointwise.FLOAT32_ONLY
    assert [one.reason for one in found if not one.has_value] == []
    for one in found:
        assert one.work == one.parameters["elements"] * pointwise.OPERATIONS[one.case][0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_given_and_fresh_outputs_of_the_same_work(dtype: str) -> None:
    found = {one.case: one for one in pointwise.throughput(bench(dtype))}
    assert [one.reason for one in found.values() if not one.has_value] == []
    for name, (operands, given, _) in pointwise.STREAMED.items():
        fresh = found[f"{name}, fresh output"]
        assert fresh.work == operands * fresh.parameters["elements"] * getattr(torch, dtype).itemsize
        if given is not None:
            assert found[f"{name}, given output"].work == fresh.work
    assert len(found) == 2 * len(pointwise.STREAMED) - 2  # the norms have no call with a given output


def test_a_wrong_result_is_noticed() -> None:
    exact = torch.randn(4, 8, dtype=torch.float64)
    pointwise._agree(exact.float(), exact, torch.float32)
    with pytest.raises(ArithmeticError, match="differs"):
        pointwise._agree(exact.float() + 1e-3, exact, torch.float32)
    with pytest.raises(ArithmeticError, match="no tensor"):
        pointwise._agree(None, exact, torch.float32)


def test_a_sum_near_nothing_is_held_against_its_terms() -> None:
    exact = torch.tensor([0.38], dtype=torch.float64)
    pointwise._agree(exact.float() + 2.7e-6, exact, torch.float32, terms=4096)  # 64 roundings of 6e-8
    with pytest.raises(ArithmeticError, match="differs"):
        pointwise._agree(exact.float() + 2.7e-6, exact, torch.float32)


def test_a_long_sum_one_after_another_agrees_and_a_lost_part_of_it_does_not() -> None:
    for length in (1 << 10, 1 << 14, 1 << 18):
        terms = torch.randn(length, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
        for name, values in (("sum", terms), ("squares", terms**2)):
            exact = values.sum().reshape(1)
            added = torch.from_numpy(np.cumsum(values.float().numpy(), dtype=np.float32)[-1:].copy())
            pointwise._agree(added, exact, torch.float32, terms=length)
            with pytest.raises(ArithmeticError, match="differs"):
                lost = values[: length // 2].sum().reshape(1) if name == "squares" else exact + 100 * length**0.5
                pointwise._agree(lost.float(), exact, torch.float32, terms=length)


def test_the_polynomial_does_the_steps_that_are_counted() -> None:
    x = torch.randn(100, dtype=torch.float64)
    a, b, steps = torch.ones_like(x), x, 0
    for k in range(1, pointwise.DEGREE):
        a, b = b, x * b - k * a
        steps += 3
    assert steps == pointwise.HERMITE_FLOPS
    torch.testing.assert_close(torch.special.hermite_polynomial_he(x, pointwise.DEGREE), b)


def test_host_operations_are_counted_without_views_and_with_attention_as_one() -> None:
    step = Step(CPU, "float32")
    # A layer: 7 products, attention, 2 norms of 6, RoPE 2 × (2 products, cat, neg, sum), cache 2, act 2, sum 2.
    per_layer = 7 + 1 + 2 * 6 + 2 * 5 + 2 + 2 + 2
    assert 8 * per_layer <= step.operations <= 8 * per_layer + 60
    first, again = step.run(), step.run()
    torch.testing.assert_close(first, again)  # each pass starts from the same cache
    (one,) = host_cost(bench("float32"))
    assert one.has_value and one.work == step.operations == one.parameters["operations"] and one.unit == "s"
    with _Counter() as counter:
        q = torch.randn(1, 2, 4, 8)
        torch.nn.functional.scaled_dot_product_attention(q, q, q).transpose(1, 2).reshape(1, 4, 16) + 1
    assert counter.operations == 1 + 1 + 1 + 1  # randn, attention, clone, add
    assert is_metadata(torch.ops.aten.transpose.int)


def test_logits_that_are_not_finite_are_no_cost() -> None:
    with pytest.raises(ArithmeticError, match="not finite"):
        Step(CPU, "float32").check(torch.tensor([torch.inf]))
