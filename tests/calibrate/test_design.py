import numpy as np
import pytest
from made_up_kernels import FACTS, Simple, kernels

from calibrate.design import design


def chosen(points, seed=0, group=True):
    seen = kernels()
    return design(Simple(), seen.dims, FACTS, "bfloat16", points, seed, seen.group if group else None)


@pytest.mark.parametrize("points", [1, 7, 60])
def test_a_budget_is_kept_and_no_row_is_measured_twice(points):
    rows = chosen(points)
    assert len(rows) == points == len(np.unique(rows))


def test_a_seed_gives_one_design():
    assert (chosen(30, seed=1) == chosen(30, seed=1)).all()
    assert (chosen(30, seed=1) != chosen(30, seed=2)).any()


def test_no_group_is_needed_whole():
    seen = kernels()
    rows = chosen(1000)
    names, counts = np.unique(seen.group[rows], return_counts=True)
    whole = dict(zip(*np.unique(seen.group, return_counts=True), strict=True))
    assert all(2 * count <= whole[name] + 1 for name, count in zip(names, counts, strict=True))


def test_without_groups_a_large_budget_takes_all():
    assert (chosen(1000, group=False) == np.arange(240)).all()


def test_points_spread_over_the_sizes():
    seen = kernels()
    rows = chosen(25)
    for name in "mn":
        logs = np.log2(seen.dims[name])
        assert np.ptp(logs[rows]) > 0.75 * np.ptp(logs)
    # Every candidate has a chosen one nearer than a random design's farthest.
    places = np.stack([np.log2(seen.dims[name]) for name in "mn"], axis=1)

    def farthest(rows):
        return np.sqrt(((places[:, None] - places[rows][None]) ** 2).sum(axis=2)).min(axis=1).mean()

    random = [farthest(np.random.default_rng(seed).choice(240, 25, replace=False)) for seed in range(10)]
    assert farthest(rows) < np.mean(random)


def test_nothing_to_choose_from_is_refused():
    with pytest.raises(ValueError, match="at least one point"):
        chosen(0)
    with pytest.raises(ValueError, match="need candidates"):
        design(Simple(), {"m": np.zeros(0), "n": np.zeros(0)}, FACTS, "bfloat16", 5)
