"""Products on a processor of made-up speed: what is tried, what is left out, and that the budget holds."""

import pytest
from slow_products import SlowProducts

from profiler.microbench import matmul, peak, quick
from profiler.microbench.matmul import flops
from profiler.microbench.product_ladder import CALLS, climb

NAIVE = {
    ("float32", "k×n"): 150e9, ("float32", "n×k"): 150e9,
    ("bfloat16", "k×n"): 1e9, ("bfloat16", "n×k"): 20e9,
    ("float16", "k×n"): 1e9, ("float16", "n×k"): 1e9,
}  # fmt: skip
"""As measured on two cores with AVX2 and no bfloat16 instructions."""
SHAPES = quick.SHAPES.host


@pytest.mark.parametrize("budget_s", [0.2, 1.0, 5.0, 60.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_budget_holds_however_slow_a_type_is(monkeypatch: pytest.MonkeyPatch, dtype: str, budget_s: float) -> None:
    paper = SlowProducts(monkeypatch, NAIVE)
    found = climb(paper.bench(), "matmul", dtype, SHAPES, budget_s)
    smallest_s = CALLS * flops(SHAPES[0]) / max(rate for (kind, _), rate in NAIVE.items() if kind == dtype)
    # beside the budget: the smallest shape, which is tried in any case, in both layouts
    assert paper.clock.at_s <= 1.25 * budget_s + 2 * smallest_s
    assert found.best is not None and found.reason is None
    tried = [shape for _, shape, _ in paper.calls]
    assert tried == sorted(tried, key=flops)


def test_a_layout_that_has_only_a_fallback_is_left_out_early(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = SlowProducts(monkeypatch, NAIVE)
    found = climb(paper.bench(), "matmul", "bfloat16", SHAPES, 5.0)
    assert found.best is not None and found.best[1] == "n×k"
    assert max(flops(shape) for _, shape, layout in paper.calls if layout == "k×n") == flops((128, 128, 128))
    assert found.tried[found.best].value() == pytest.approx(20e9)
    assert found.tried[found.best].parameters["b stored"] == "n×k"


def test_shapes_that_take_too_long_are_named_with_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = SlowProducts(monkeypatch, NAIVE)
    found = climb(paper.bench(), "matmul", "float16", SHAPES, 2.0)
    assert max(shape[0] for _, shape, _ in paper.calls) == 512
    assert found.left_out() == "1024×1024×1024 (2.1 s a call), 2048×2048×2048 (17 s a call)"
    everything = climb(paper.bench(), "matmul", "float32", SHAPES, 5.0)
    assert everything.left_out() == "" and len(everything.tried) == 2 * len(SHAPES)


def test_a_type_without_a_product_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = SlowProducts(monkeypatch, NAIVE)
    found = climb(paper.bench(), "matmul", "float64", SHAPES, 1.0)
    assert found.best is None and found.reason == "NotImplementedError: no float64 product"


def test_one_layout_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = SlowProducts(monkeypatch, {("int8", "n×k"): 1e12})
    found = climb(paper.bench(), "matmul", "int8", SHAPES, 1.0)
    assert found.reason is None and {layout for _, layout in found.tried} == {"n×k"}


def test_later_visits_time_what_came_near_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = SlowProducts(monkeypatch, {**NAIVE, ("bfloat16", "k×n"): 14e9, ("float32", "k×n"): 120e9})
    products = quick.Products({})
    bench = paper.bench(dtypes=("float32", "bfloat16"))
    first = list(products.visit(bench, 4.0))
    middle_s, first_calls = paper.clock.at_s, len(paper.calls)
    again = list(products.visit(bench, 4.0))
    assert {layout for kind, _, layout in paper.calls[first_calls:] if kind == "bfloat16"} == {"n×k"}
    assert {layout for kind, _, layout in paper.calls[first_calls:] if kind == "float32"} == {"k×n", "n×k"}
    assert {one.key for one in again} < {one.key for one in first}
    assert middle_s <= 5.0 and paper.clock.at_s - middle_s <= 5.0


def test_three_visits_end_within_their_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = SlowProducts(monkeypatch, NAIVE)
    products = quick.Products({})
    bench = paper.bench(dtypes=("float32", "bfloat16", "int8"))
    found = [one for _ in range(3) for one in products.visit(bench, 15 * quick.PARTS["matmul"] / 3)]
    assert paper.clock.at_s <= 1.5 * 15 * quick.PARTS["matmul"]
    kept = quick._with_bursts(quick._together(found), products.left_out)
    rates = {one.dtype: one.value() for one in kept if one.has_value}
    assert rates == {"float32": pytest.approx(150e9), "bfloat16": pytest.approx(20e9)}
    assert next(one.reason for one in kept if one.dtype == "int8") == "NotImplementedError: no int8 product"


def test_the_search_takes_the_faster_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = SlowProducts(monkeypatch, NAIVE)
    bench = paper.bench(limit_bytes=1 << 30)
    shape, layout = peak.shape_search(bench, "bfloat16")
    assert layout == "n×k" and flops(shape) / 20e9 <= peak.LARGEST_CALL_S.host
    bench.layouts = {"bfloat16": layout}
    (burst,) = peak.burst(bench, {"bfloat16": shape})
    (lasting,) = peak.sustained(bench, {"bfloat16": shape}, seconds=1.0)
    assert burst.value() == lasting.value() == pytest.approx(20e9)
    assert burst.parameters["b stored"] == lasting.parameters["b stored"] == "n×k"
    with pytest.raises(ArithmeticError, match="no int8 product"):
        peak.shape_search(bench, "int8")


def test_the_search_compares_layouts_that_are_close_on_the_best_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {("float32", "k×n"): 150e9, ("float32", "n×k"): 151e9}
    paper = SlowProducts(monkeypatch, rates)
    _, layout = peak.shape_search(paper.bench(limit_bytes=1 << 30), "float32")
    assert layout == "n×k"


def test_a_search_of_a_slow_type_does_not_run_away(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = SlowProducts(monkeypatch, NAIVE)
    peak.shape_search(paper.bench(limit_bytes=1 << 30), "float16")
    # the smallest grid there is, one shape of 256³ that takes 34 ms a call, in a few visits
    assert paper.clock.at_s < 3.0


def test_skinny_products_that_take_too_long_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = SlowProducts(monkeypatch, {("bfloat16", "n×k"): 1e9})
    found = list(matmul.skinny(paper.bench(dtypes=("bfloat16",), budget_s=0.3)))
    values = {one.case: one.value() for one in found if one.has_value}
    assert values == {f"m{m}": pytest.approx(2 * m * 4096**2 / 1e9) for m in (1, 2, 4, 8)}
    late = [one for one in found if not one.has_value]
    assert [one.case for one in late] == ["m16", "m32", "m64", "m128", "m256"]
    assert late[0].reason == "not tried: a call would take 0.54 s, its budget is 0.3 s" and late[0].dtype == "bfloat16"
    assert paper.clock.at_s <= 4 * CALLS * 0.3
