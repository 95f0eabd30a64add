"""The fastest shape of a grid in a fraction of the time that trying all of them takes.

Coarse to fine: every fourth point of each axis first, the small ones first; then the neighbours of the best ones two
rungs away along each axis, in some rounds, and then one rung away; at last the finalists again, in turn, since the best
of many noisy figures is one that was lucky. How a shape is timed is the caller's: the search itself has no clock.

Example: ``search(Grid.up_to(2048), lambda shape: rate_of(shape)).best``
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Shape = tuple[int, int, int]
Rate = Callable[[Shape], float | None]
"""FLOP/s of a shape, from one more visit; None where it cannot be had."""

LADDER = (256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)
"""Sizes of a dimension, steps of 4/3 and 3/2: multiples of every tile that libraries use (128 × 256 on Hopper)."""
COARSE = 4
"""Rungs between the points that are tried first: a factor of 4 in size."""
STEPS = (2, 1)
"""Rungs to the neighbours that are tried after them."""
KEPT = 3
"""Shapes whose neighbours are tried in each round."""
ROUNDS = 3
"""Most rounds with the same step."""
FINALISTS = 3
VISITS = 2
"""Times that each finalist is measured again."""
PART, LEAST = 7, 16
"""A search makes one visit in so many shapes of the grid, before the finalists; and so many at least."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Every combination of the sizes of three dimensions."""

    sizes: tuple[int, ...]

    @classmethod
    def up_to(cls, largest: int) -> "Grid":
        """The rungs of the ladder from 256 up to `largest`."""
        return cls(tuple(size for size in LADDER if size <= largest) or LADDER[:1])

    @property
    def shapes(self) -> list[Shape]:
        return list(itertools.product(self.sizes, self.sizes, self.sizes))

    def coarse(self) -> list[Shape]:
        """Every fourth size of each dimension, counted from the largest; the small shapes first."""
        some = self.sizes[::-COARSE]
        return sorted(itertools.product(some, some, some), key=math.prod)

    def neighbours(self, shape: Shape, step: int = 1) -> list[Shape]:
        """`step` rungs up or down in one dimension."""
        found: list[Shape] = []
        for axis in range(3):
            at = self.sizes.index(shape[axis])
            for near in (at - step, at + step):
                if 0 <= near < len(self.sizes):
                    m, n, k = (self.sizes[near] if i == axis else size for i, size in enumerate(shape))
                    found.append((m, n, k))
        return found


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found."""

    best: Shape
    rate: float
    """Of the best, over all its visits: the highest."""
    tried: Mapping[Shape, float]
    """The highest rate of each shape that was tried."""


def search(grid: Grid, rate: Rate) -> Found:
    """The fastest shape. Raises ArithmeticError where no shape has a rate."""
    tried: dict[Shape, float] = {}
    hopeless: set[Shape] = set()

    def visit(shape: Shape) -> None:
        found = rate(shape)
        if found is None:
            hopeless.add(shape)
        else:
            tried[shape] = max(found, tried.get(shape, 0.0))

    for shape in grid.coarse():
        visit(shape)
    limit = max(LEAST, len(grid.sizes) ** 3 // PART)
    for step in (step for step in STEPS for _ in range(ROUNDS)):
        near = dict.fromkeys(n for shape in _first(tried, KEPT) for n in grid.neighbours(shape, step))
        for shape in near:
            if shape not in tried and shape not in hopeless and len(tried) + len(hopeless) < limit:
                visit(shape)
    if not tried:
        raise ArithmeticError("no shape of the grid has a rate")
    finalists = _first(tried, FINALISTS)
    for _ in range(VISITS):
        for shape in finalists:
            visit(shape)
    best = _first(tried, 1)[0]
    return Found(best, tried[best], tried)


def _first(tried: Mapping[Shape, float], count: int) -> list[Shape]:
    return sorted(tried, key=lambda shape: -tried[shape])[:count]
