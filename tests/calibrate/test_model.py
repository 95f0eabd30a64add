from dataclasses import replace

import numpy as np
import pytest
from made_up_kernels import FACTS, Simple, kernels

from calibrate.kernels.correct import train, train_on


def halves(seed=0, **options):
    seen = kernels(seed=seed, groups=60, rows=20, **options)
    first = np.isin(seen.group, np.unique(seen.group)[::2])
    return seen.take(first), seen.take(~first)


def error(model, held):
    return float(np.abs(model.time_s(held.dims) / held.time_s - 1).mean())


def test_a_law_that_is_right_is_left_at_its_noise():
    seen, held = halves(noise=0.03)
    assert error(train(Simple(), seen, FACTS, points=100), held) < 0.032


def test_a_correction_helps_where_the_law_lacks_something():
    seen, held = halves(noise=0.01, bump=0.25)
    model = train(Simple(), seen, FACTS, points=120)
    law = np.abs(Simple().time_s(held.dims, FACTS, "bfloat16", model.fitted.values) / held.time_s - 1).mean()
    assert model.corrected.process is not None
    assert error(model, held) < 0.6 * law


@pytest.mark.parametrize(
    ("groups", "made"),
    [
        (60, {"noise": 0.04}),
        (60, {"noise": 0.04, "bump": 0.2}),
        (60, {"noise": 0.02, "uneven": 4.0}),
        (60, {"noise": 0.02, "apart": 0.06}),
        (60, {"noise": 0.02, "apart": 0.05, "uneven": 4.0, "bump": 0.15}),
        (10, {"noise": 0.02, "apart": 0.05, "bump": 0.1}),
        (10, {"noise": 0.02, "apart": 0.05, "uneven": 4.0}),
    ],
)
def test_intervals_cover_what_they_say(groups, made):
    """Also where noise depends on size, and where whole groups are off, of which few are seen."""
    covered = []
    for seed in range(8):
        table = kernels(seed=seed, groups=groups, rows=1800 // groups, **made)
        first = np.isin(table.group, np.unique(table.group)[::2])
        held = table.take(~first)
        low, high = train(Simple(), table.take(first), FACTS, points=120, seed=seed).interval(held.dims)
        covered.append(((low <= held.time_s) & (held.time_s <= high)).mean())
    assert 0.86 <= np.mean(covered) <= 0.94


def test_an_interval_is_wider_away_from_the_points():
    model = train(Simple(), halves(noise=0.02, bump=0.2)[0], FACTS, points=80)
    low, high = model.interval({"m": np.array([256.0, 2.0**30]), "n": np.array([1024.0, 2.0**30])})
    assert np.log(high / low)[1] > 1.5 * np.log(high / low)[0]


def test_of_one_group_rows_are_held_out():
    seen, _ = halves(noise=0.05)
    one = seen.take(np.arange(0, len(seen), 3))
    alone = train_on(Simple(), replace(one, group=np.full(len(one), "all")), FACTS)
    apart = train_on(Simple(), one, FACTS)
    assert np.abs(alone.errors).mean() == pytest.approx(np.abs(apart.errors).mean(), rel=0.3)


def test_only_latencies_of_the_chosen_points_are_read():
    model = train(Simple(), halves()[0], FACTS, points=50, seed=1)
    assert model.fitted.points == len(model.errors) == len(model.points) == 50
    assert model.ranges["m"] == (model.points.dims["m"].min(), model.points.dims["m"].max())


def test_a_seed_gives_one_model_and_few_points_still_give_one():
    seen, held = halves()
    one, two = (train(Simple(), seen, FACTS, points=40, seed=5).time_s(held.dims) for _ in range(2))
    assert (one == two).all()
    few = train_on(Simple(), seen.take(np.arange(5)), FACTS)
    assert few.corrected.process is None
    assert np.isfinite(few.interval(held.dims)[1]).all()
