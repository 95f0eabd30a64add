"""The search for the fastest product beside an exhaustive one over the same grid: how good, in which part of the time.

Both time shapes in the same way. The two winners are then timed again in turn, so that the comparison is not between
two lucky figures. Prints figures and judges nothing.
Run: ``python -m pytest -s tests/benchmarks/test_search.py`` (SHAPES_UP_TO=1024 for a smaller grid)
"""

import os
import time

import pytest
import torch

from profiler.microbench.bench import Bench
from profiler.microbench.matmul import Shape, time_product
from profiler.microbench.peak import PROBES_S, Grid, climb, grid_for, rate_of, search

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
AGAIN, AGAIN_S = 15, 0.3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_search_beside_all_shapes(dtype: str) -> None:
    bench = Bench(DEVICE)
    largest = os.environ.get("SHAPES_UP_TO")
    probed = climb(bench, "search", dtype, (), budget_s=PROBES_S)
    grid = Grid.up_to(int(largest)) if largest else grid_for(bench, max(probed.probed.values()))
    rate = rate_of(bench, dtype)
    began = time.perf_counter()
    found = search(grid, rate)
    search_s = time.perf_counter() - began
    began = time.perf_counter()
    rates = {shape: value for shape in grid.shapes if (value := rate(shape)) is not None}
    all_s = time.perf_counter() - began
    best = max(rates, key=lambda shape: rates[shape])
    ours, theirs = again(bench, dtype, found.best, best)
    print(
        f"\n{dtype}, {len(grid.shapes)} shapes up to {grid.sizes[-1]}: search {found.best} {ours / 1e9:.1f} GFLOP/s in "
        f"{search_s:.1f} s, {len(found.tried)} shapes; all {best} {theirs / 1e9:.1f} GFLOP/s in {all_s:.1f} s; "
        f"rate {ours / theirs:.4f}, time {search_s / all_s:.3f}"
    )


def again(bench: Bench, dtype: str, first: Shape, second: Shape) -> tuple[float, float]:
    """FLOP/s of two shapes, the best of turns that alternate."""
    best = {first: 0.0, second: 0.0}
    for _ in range(AGAIN):
        for shape in best:
            best[shape] = max(best[shape], time_product(bench, "again", dtype, shape, budget_s=AGAIN_S).value())
    return best[first], best[second]
