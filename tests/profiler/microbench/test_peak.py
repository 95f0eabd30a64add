"""The search for the fastest product, within its budget on processors of made-up speed, and what is timed of it."""

import itertools
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slow_products import TWO_CORES, SlowProducts

from profiler.microbench import peak, short
from profiler.microbench.bench import Bench
from profiler.microbench.matmul import Shape, flops
from profiler.microbench.peak import CALLS, LADDER, Grid, Rate, climb, search

CPU = torch.device("cpu")


def bench() -> Bench:
    return Bench(CPU, budget_s=0.02, quick=True)


SHAPES = short.SHAPES.host


def test_the_budget_holds_however_slow_a_type_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype, budget_s in itertools.product(("float32", "bfloat16", "float16"), (0.2, 1.0, 5.0, 60.0)):
        paper = SlowProducts(monkeypatch, TWO_CORES)
        climbed = climb(paper.bench(), "matmul", dtype, SHAPES, budget_s)
        smallest_s = CALLS * flops(SHAPES[0]) / max(rate for (kind, _), rate in TWO_CORES.items() if kind == dtype)
        # beside the budget: the smallest shape, which is tried in any case, in both layouts
        assert paper.clock.at_s <= 1.25 * budget_s + 2 * smallest_s, (dtype, budget_s)
        assert climbed.rates and climbed.reason is None, (dtype, budget_s)
        tried = [shape for _, shape, _ in paper.calls]
        assert tried == sorted(tried, key=flops), (dtype, budget_s)


def test_a_layout_that_has_only_a_fallback_is_left_out_early(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = SlowProducts(monkeypatch, TWO_CORES)
    found = climb(paper.bench(), "matmul", "bfloat16", SHAPES, 5.0)
    best = max(found.rates, key=lambda product: found.rates[product])
    assert best[1] == "n×k"
    assert max(flops(shape) for _, shape, layout in paper.calls if layout == "k×n") == flops((128, 128, 128))
    assert found.tried[best].value() == pytest.approx(20e9)
    assert found.tried[best].parameters["b stored"] == "n×k"


def test_shapes_that_take_too_long_are_named_with_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = SlowProducts(monkeypatch, TWO_CORES)
    found = climb(paper.bench(), "matmul", "float16", SHAPES, 2.0)
    assert max(shape[0] for _, shape, _ in paper.calls) == 512
    assert found.left_out() == "1024×1024×1024 (2.1 s a call), 2048×2048×2048 (17 s a call)"
    everything = climb(paper.bench(), "matmul", "float32", SHAPES, 5.0)
    assert everything.left_out() == "" and len(everything.tried) == 2 * len(SHAPES)


def test_a_type_without_a_product_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = SlowProducts(monkeypatch, TWO_CORES)
    found = climb(paper.bench(), "matmul", "float64", SHAPES, 1.0)
    assert not found.rates and found.reason == "NotImplementedError: no float64 product"


def test_one_layout_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = SlowProducts(monkeypatch, {("int8", "n×k"): 1e12})
    found = climb(paper.bench(), "matmul", "int8", SHAPES, 1.0)
    assert found.reason is None and {layout for _, layout in found.tried} == {"n×k"}


def test_the_search_takes_the_faster_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = SlowProducts(monkeypatch, TWO_CORES)
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
    paper = SlowProducts(monkeypatch, TWO_CORES)
    peak.shape_search(paper.bench(limit_bytes=1 << 30), "float16")
    # the smallest grid there is, one shape of 256³ that takes 34 ms a call, in a few visits
    assert paper.clock.at_s < 3.0


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


GRID = Grid.up_to(4096)


def tiled(shape: Shape, units: int, tile: tuple[int, int], half: float) -> float:
    """A rate with waves of tiles, a fixed cost, and an optimum that bandwidth takes down again at long k."""
    m, n, k = shape
    tiles = math.ceil(m / tile[0]) * math.ceil(n / tile[1])
    waves = math.ceil(tiles / units) * units
    work = m * n * k
    padded = waves * tile[0] * tile[1]
    return (m * n / padded) * work / (work + half) * (1 - 0.05 * abs(math.log2(k / 1024)))


SURFACES = [
    (lambda s: tiled(s, 132, (128, 256), 2e9)),
    (lambda s: tiled(s, 2, (64, 64), 1e7)),
    (lambda s: tiled(s, 108, (256, 128), 5e8)),
    (lambda s: 1 / (1 + abs(math.log2(s[0] / 512)) + abs(math.log2(s[1] / 3072)) / 2 + abs(math.log2(s[2] / 256)))),
]


def noisy(surface: Rate, noise: float, chance: random.Random, visits: list[Shape]) -> Rate:
    def rate(shape: Shape) -> float:
        visits.append(shape)
        return (surface(shape) or 0.0) * (1 - noise * abs(chance.gauss(0, 1)))

    return rate


def test_within_two_percent_of_the_best_in_a_fifth_of_the_visits() -> None:
    for number, surface in enumerate(SURFACES):
        best = max(map(surface, GRID.shapes))
        for noise in (0.0, 0.01):
            hits = 0
            for seed in range(20):
                visits: list[Shape] = []
                found = search(GRID, noisy(surface, noise, random.Random(seed), visits))
                assert len(visits) <= len(GRID.shapes) / 5, (number, noise, seed)
                hits += surface(found.best) >= 0.98 * best
            assert hits >= 18, (number, noise)


def test_a_shape_that_cannot_be_had_is_left_out() -> None:
    found = search(GRID, lambda shape: None if math.prod(shape) > 2**30 else float(math.prod(shape)))
    assert math.prod(found.best) <= 2**30 and found.best in found.tried


def test_no_rate_at_all_is_an_error() -> None:
    with pytest.raises(ArithmeticError, match="no shape"):
        search(GRID, lambda shape: None)


def test_a_lucky_first_visit_does_not_win() -> None:
    visits: dict[Shape, int] = {}

    def rate(shape: Shape) -> float:
        visits[shape] = visits.get(shape, 0) + 1
        return float(sum(shape))

    found = search(GRID, rate)
    assert found.best == (4096, 4096, 4096) and found.rate == 3 * 4096
    assert visits[found.best] > 1 and sum(count > 1 for count in visits.values()) <= 3


@given(st.sampled_from(GRID.shapes))
def test_neighbours_are_one_rung_away(shape: Shape) -> None:
    for near in GRID.neighbours(shape):
        moved = [(a, b) for a, b in zip(shape, near, strict=True) if a != b]
        ((a, b),) = moved
        assert abs(GRID.sizes.index(a) - GRID.sizes.index(b)) == 1
    assert shape not in GRID.neighbours(shape)


def test_a_grid_goes_up_to_its_largest_size() -> None:
    for largest in (100, 256, 1000, 16384):
        sizes = Grid.up_to(largest).sizes
        assert sizes == tuple(size for size in LADDER if size <= max(largest, 256))
        coarse = Grid.up_to(largest).coarse()
        assert coarse[-1] == (sizes[-1],) * 3 and len(coarse) == (-(-len(sizes) // 4)) ** 3
