"""Which kernels to measure, within a budget of points: chosen from shapes alone, never from times.

Each candidate is placed by the logarithms of its sizes and by how the law's time at its priors responds to each
constant (∂ log time / ∂ log constant): kernels that the same constants decide lie together. The chosen are the
candidates nearest to the centres of k-means clusters, one each, so that they represent the candidates' spread evenly
and no regime is measured twice while another is not. What k-means may still miss is mended by an exchange: a regime
that sizes themselves mark (two of them equal, one at 0 or 1) and that a budget's share of candidates has is measured
on both its sides. Deterministic for a seed.

Example: ``observations.take(design(law, observations.dims, facts, "bfloat16", points=200, seed=0))``
"""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from roofline.laws.features import coordinates
from roofline.laws.law import Dims, Facts, Floats, Law
from roofline.laws.sensitivity import responses

Rows = NDArray[np.int_]

ROUNDS = 12
"""Of k-means; later ones move centres by less than the candidates' spacing."""
RESPONSE = 1.0
"""Doublings of a size that a constant which decides a kernel wholly counts as."""
DRAWN_FROM = 6000
"""Candidates that clusters are found on, at most."""
DEGENERATE = (0.0, 1.0)
"""Sizes at which a kernel is another one: no window, a single rank, no cache."""


def design(
    law: Law,
    dims: Dims,
    facts: Facts,
    dtype: str,
    points: int,
    seed: int = 0,
    group: NDArray[np.str_] | None = None,
) -> Rows:
    """Rows to measure, ascending: `points` of them, or all there are.

    A group gives more than half of its rows (rounded up) only where the others have none left to give. Raises
    ValueError where there is nothing to choose from or no budget.
    """
    rows = len(next(iter(dims.values()), ()))
    if points < 1 or rows == 0:
        raise ValueError(f"need candidates and a budget of at least one point, got {rows} and {points}")
    if points >= rows:
        return np.arange(rows)
    placed = _places(law, dims, facts, dtype)
    generator = np.random.default_rng(seed)
    sample = placed
    if len(placed) > DRAWN_FROM:
        sample = placed[generator.choice(len(placed), DRAWN_FROM, replace=False)]
    centres = _centres(sample, min(points, len(sample)), generator)
    chosen = _nearest(placed, centres, _room(group, len(placed)), points)
    return np.sort(_exchanged(chosen, placed, _regimes(dims, law.dims), points))


def _places(law: Law, dims: Dims, facts: Facts, dtype: str) -> Floats:
    """Shape (candidates, coordinates)."""
    priors = {c.name: c.prior for c in law.constants(facts, dtype)}
    _, response = responses(law, dims, facts, dtype, priors)
    return np.concatenate([coordinates(dims, law.dims), RESPONSE * response], axis=1)


def _regimes(dims: Dims, names: tuple[str, ...]) -> NDArray[np.bool_]:
    """Shape (candidates, regimes): what sizes themselves mark; only those that some candidates have and some have not.

    Two sizes that are equal (as many key heads as heads), and a size at one of `DEGENERATE`.
    """
    columns = {name: np.asarray(dims[name], dtype=float) for name in names if name in dims}
    marks = [column == value for column in columns.values() for value in DEGENERATE]
    marks += [columns[one] == columns[other] for one, other in combinations(columns, 2)]
    found = [mark for mark in marks if mark.any() and not mark.all()]
    return np.stack(found, axis=1) if found else np.zeros((len(next(iter(columns.values()))), 0), dtype=bool)


def _nearest(placed: Floats, centres: Floats, room: "_Room", points: int) -> list[int]:
    """A row for each centre; then, where centres were fewer, the rows farthest from all that are chosen."""
    chosen = [room.take(_squares(placed, centre)) for centre in centres]
    gap = np.full(len(placed), np.inf)
    for place in range(points - 1):
        if len(chosen) == points:
            break
        gap = np.minimum(gap, _squares(placed, placed[chosen[place]]))
        if place + 1 >= len(centres):
            chosen.append(room.take(-gap))
    return chosen


def _squares(placed: Floats, place: Floats) -> Floats:
    return np.asarray(((placed - place) ** 2).sum(axis=1))


class _Room:
    """Rows that can be taken still: half of each group first, the rest when no group has more than its half left."""

    def __init__(self, group: NDArray[np.str_]) -> None:
        _, self._group, counts = np.unique(group, return_inverse=True, return_counts=True)
        self._left = np.ceil(counts / 2)
        self._untaken = np.ones(len(group), dtype=bool)

    def take(self, distance: Floats) -> int:
        """The nearest of them, which is then taken."""
        preferred = self._untaken & (self._left[self._group] > 0)
        row = int(np.argmin(np.where(preferred if preferred.any() else self._untaken, distance, np.inf)))
        self._untaken[row] = False
        self._left[self._group[row]] -= 1
        return row


def _room(group: NDArray[np.str_] | None, rows: int) -> _Room:
    return _Room(np.arange(rows).astype(np.str_) if group is None else group)


def _exchanged(chosen: list[int], placed: Floats, marks: NDArray[np.bool_], points: int) -> Rows:
    """With each side of each regime that a budget's share of candidates has: its row nearest to a chosen one comes in
    for that one, unless that leaves another regime without any."""
    rows = np.array(chosen)
    sides = np.concatenate([marks, ~marks], axis=1)
    sides = sides[:, sides.sum(axis=0) * points >= len(placed)]
    for side in range(sides.shape[1]):
        if sides[rows, side].any():
            continue
        counts = sides[rows].sum(axis=0)
        spare = np.flatnonzero(~(sides[rows] & (counts == 1)).any(axis=1))
        if len(spare) == 0:
            continue
        candidates = np.flatnonzero(sides[:, side])
        distance = ((placed[candidates][:, None] - placed[rows[spare]][None]) ** 2).sum(axis=2)
        new, out = np.unravel_index(np.argmin(distance), distance.shape)
        rows[spare[out]] = candidates[new]
    return rows


def _centres(placed: Floats, count: int, generator: np.random.Generator) -> Floats:
    """Of k-means, started at spread-out points (k-means++: Arthur, Vassilvitskii, SODA 2007)."""
    centres = placed[generator.integers(len(placed))][None]
    nearest = ((placed - centres[0]) ** 2).sum(axis=1)
    for _ in range(count - 1):
        total = nearest.sum()
        if total <= 0:
            break
        new = placed[generator.choice(len(placed), p=nearest / total)]
        centres = np.concatenate([centres, new[None]])
        nearest = np.minimum(nearest, ((placed - new) ** 2).sum(axis=1))
    squared = (placed**2).sum(axis=1)[:, None]
    for _ in range(ROUNDS):
        owner = np.argmin(squared + (centres**2).sum(axis=1)[None] - 2 * placed @ centres.T, axis=1)
        counts = np.bincount(owner, minlength=len(centres))
        sums = np.stack([np.bincount(owner, column, len(centres)) for column in placed.T], axis=1)
        filled = counts > 0
        centres[filled] = sums[filled] / counts[filled, None]
    return centres
