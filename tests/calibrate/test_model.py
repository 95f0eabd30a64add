import numpy as np
import pytest
from made_up_kernels import FACTS, Simple, kernels

from calibrate.model import train, train_on


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


@pytest.mark.parametrize("bump", [0.0, 0.15])
def test_intervals_cover_what_they_say(bump):
    covered = []
    for seed in range(3):
        seen, held = halves(seed=seed, noise=0.04, bump=bump)
        low, high = train(Simple(), seen, FACTS, points=150, seed=seed).interval(held.dims)
        covered.append(((low <= held.time_s) & (held.time_s <= high)).mean())
    assert 0.84 <= np.mean(covered) <= 0.97


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
