"""The search on surfaces whose best point is known, with the noise and the tile effects that real ones have."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.microbench.matmul import Shape
from profiler.microbench.peak import LADDER, Grid, Rate, search

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


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_within_two_percent_of_the_best_in_a_fifth_of_the_visits(surface: Rate, noise: float) -> None:
    best = max(map(surface, GRID.shapes))
    hits = 0
    for seed in range(20):
        visits: list[Shape] = []
        found = search(GRID, noisy(surface, noise, random.Random(seed), visits))
        assert len(visits) <= len(GRID.shapes) / 5
        hits += surface(found.best) >= 0.98 * best
    assert hits >= 18


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


@pytest.mark.parametrize("largest", [100, 256, 1000, 16384])
def test_a_grid_goes_up_to_its_largest_size(largest: int) -> None:
    sizes = Grid.up_to(largest).sizes
    assert sizes == tuple(size for size in LADDER if size <= max(largest, 256))
    coarse = Grid.up_to(largest).coarse()
    assert coarse[-1] == (sizes[-1],) * 3 and len(coarse) == (-(-len(sizes) // 4)) ** 3
