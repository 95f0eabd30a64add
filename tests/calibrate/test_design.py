import numpy as np
import pytest
from made_up_kernels import FACTS, Simple, kernels

from calibrate.kernels.choose import design


class Windowed(Simple):
    dims = ("m", "n", "window")


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


@pytest.mark.parametrize("points", [20, 120])
def test_no_group_is_needed_whole(points):
    seen = kernels()
    names, counts = np.unique(seen.group[chosen(points)], return_counts=True)
    whole = dict(zip(*np.unique(seen.group, return_counts=True), strict=True))
    assert all(2 * count <= whole[name] + 1 for name, count in zip(names, counts, strict=True))


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("points", [150, 239, 240, 1000])
def test_a_budget_is_used_though_groups_give_more_than_half(points, group):
    rows = chosen(points, group=group)
    assert len(rows) == len(np.unique(rows)) == min(points, 240)


def test_kernels_of_one_shape_are_candidates_each():
    dims = {name: np.repeat(column[:5], 6) for name, column in kernels().dims.items()}
    assert len(np.unique(design(Simple(), dims, FACTS, "bfloat16", 20))) == 20


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("points", [6, 12])
def test_regimes_that_sizes_mark_are_measured_on_both_sides(points, seed):
    """A window of 0 is none, as many n as m is another kernel: a quarter of the candidates each, among many others."""
    generator = np.random.default_rng(seed)
    m, n = np.exp2(generator.integers(3, 15, size=(2, 400)))
    equal = generator.random(400) < 0.25
    dims = {"m": m, "n": np.where(equal, m, n * 1.5), "window": np.where(generator.random(400) < 0.25, 0.0, 512.0)}
    rows = design(Windowed(), dims, FACTS, "bfloat16", points, seed)
    assert len(np.unique(rows)) == points
    assert 0 < (dims["window"][rows] == 0).sum() < points
    assert 0 < (dims["m"] == dims["n"])[rows].sum() < points


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
