"""Which kernels to measure, within a budget of points: chosen from shapes alone, never from times.

Each candidate is placed by the logarithms of its sizes and by how the law's time at its priors responds to each
constant (∂ log time / ∂ log constant): kernels that the same constants decide lie together. The chosen are the
candidates nearest to the centres of k-means clusters, one each, so that they represent the candidates' spread evenly
and no regime is measured twice while another is not. Deterministic for a seed.

Example: ``observations.take(design(law, observations.dims, facts, "bfloat16", points=200, seed=0))``
"""

import numpy as np
from numpy.typing import NDArray

from roofline.laws.features import logarithm
from roofline.laws.law import Dims, Facts, Floats, Law

ROUNDS = 12
"""Of k-means; later ones move centres by less than the candidates' spacing."""
STEP = 0.05
"""Change of a constant for its sensitivity, on its logarithm (or in units of its prior's spread)."""
RESPONSE = 1.0
"""Weight of sensitivities beside one doubling of a size: a constant that decides a kernel wholly counts as so many."""
DRAWN_FROM = 6000
"""Candidates that clusters are found on, at most."""


def design(
    law: Law,
    dims: Dims,
    facts: Facts,
    dtype: str,
    points: int,
    seed: int = 0,
    group: NDArray[np.str_] | None = None,
) -> NDArray[np.int_]:
    """Rows to measure, ascending, at most `points`; of each group at most half (rounded up), if groups are given.

    Raises ValueError where there is nothing to choose from or no budget.
    """
    placed = _places(law, dims, facts, dtype)
    if points < 1 or len(placed) == 0:
        raise ValueError(f"need candidates and a budget of at least one point, got {len(placed)} and {points}")
    generator = np.random.default_rng(seed)
    room = _room(group, len(placed))
    if points >= sum(room.values()) and group is None:
        return np.arange(len(placed))
    names = group if group is not None else np.full(len(placed), "")
    sample = placed
    if len(placed) > DRAWN_FROM:
        sample = placed[generator.choice(len(placed), DRAWN_FROM, replace=False)]
    centres = _centres(sample, min(points, len(sample)), generator)
    chosen: list[int] = []
    free = np.ones(len(placed), dtype=bool)
    for centre in centres:
        nearest = np.where(free, ((placed - centre) ** 2).sum(axis=1), np.inf)
        row = int(np.argmin(nearest))
        if not np.isfinite(nearest[row]):
            break
        chosen.append(row)
        free[row] = False
        name = str(names[row])
        room[name] -= 1
        if room[name] == 0:
            free[names == name] = False
    return np.sort(np.array(chosen))


def _places(law: Law, dims: Dims, facts: Facts, dtype: str) -> Floats:
    """Shape (candidates, coordinates)."""
    sizes = [logarithm(np.asarray(dims[name], dtype=float)) for name in law.dims if name in dims]
    constants = law.constants(facts, dtype)
    priors = {c.name: c.prior for c in constants}
    base = np.log(law.time_s(dims, facts, dtype, priors))
    responses = []
    for constant in constants:
        moved = constant.prior * np.exp(-STEP) if constant.logarithmic else constant.prior - STEP * constant.spread
        moved = max(constant.low, moved)
        change = np.log(law.time_s(dims, facts, dtype, {**priors, constant.name: moved})) - base
        responses.append(RESPONSE * change / STEP)
    return np.stack([*sizes, *responses], axis=1)


def _room(group: NDArray[np.str_] | None, rows: int) -> dict[str, int]:
    if group is None:
        return {"": rows}
    names, counts = np.unique(group, return_counts=True)
    return {str(name): int(np.ceil(count / 2)) for name, count in zip(names, counts, strict=True)}


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
