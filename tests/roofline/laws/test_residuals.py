"""Where kernels lie among others, which constants decide them, and what residuals tell of their neighbours."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from law_checks import FACTS

from calibrate.kernels.correct import learn
from roofline.laws.law import Constant, Dims, Facts, Floats, Values
from roofline.laws.residuals import APART, LARGEST, Residuals, coordinates, features, matern_of, responses


def test_a_doubling_is_one_and_zero_lies_below_one():
    assert coordinates({"m": np.array([0.0, 1.0, 2.0, 1024.0])}, ("m",))[:, 0].tolist() == [-1, 0, 1, 10]


def test_exponents_stay_as_they_are():
    assert coordinates({"skew": np.array([0.0, 1.0, 1.2])}, ("skew",))[:, 0].tolist() == [0, 1, 1.2]


def test_any_two_categories_lie_equally_far_apart():
    places = features({"operation": np.arange(4.0), "bytes": np.full(4, 64.0)}, ("operation", "bytes"))
    apart = np.sqrt(((places[:, None] - places[None]) ** 2).sum(axis=2))
    np.testing.assert_allclose(apart, APART * (1 - np.eye(4)))


NAMES = ("m", "skew", "operation")
KERNELS = st.lists(
    st.tuples(st.floats(0, 1e6) | st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 1.01]), st.integers(0, 5)),
    min_size=1,
    max_size=6,
)


@given(KERNELS)
def test_a_kernel_lies_where_it_lies_in_any_batch(kernels):
    columns = dict(zip(NAMES, np.array(kernels, dtype=float).T, strict=True))
    alone = [features({name: column[[i]] for name, column in columns.items()}, NAMES) for i in range(len(kernels))]
    assert (features(columns, NAMES) == np.concatenate(alone)).all()


def test_sizes_work_and_evenness_are_columns():
    places = features({"m": np.array([16.0, 17.0]), "n": np.array([64.0, 64.0]), "other": np.ones(2)}, ("m", "n"))
    assert places.shape == (2, 5)
    assert places[0, 2] > 0 and places[0, 3] > places[1, 3] == 0
    assert places[0, 4] == places[1, 4]


class Powers:
    """x^power / rate."""

    name = "powers"
    dims = ("x",)

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        return (
            Constant("rate", "1/s", 2.0, 100.0, 10.0, 1.0, "of all"),
            Constant("power", "1", 0.0, 4.0, 1.0, 0.5, "of x", False),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        return dims["x"] ** values["power"] / values["rate"]


X = {"x": np.array([1.0, np.e, np.e**3])}


@pytest.mark.parametrize(("rate", "power"), [(10.0, 1.0), (2.0, 0.0)])
def test_responses_by_hand_also_at_a_bound(rate: float, power: float) -> None:
    """log time = power · log x − log rate; of the power by half a unit, its prior's spread."""
    log_time, response = responses(Powers(), X, FACTS, "bfloat16", {"rate": rate, "power": power})
    np.testing.assert_allclose(log_time, power * np.array([0, 1, 3]) - np.log(rate), atol=1e-12)
    np.testing.assert_allclose(response, [[-1, 0], [-1, 0.5], [-1, 1.5]], atol=1e-9)


def test_only_the_named_are_asked_for() -> None:
    values = {"rate": 10.0, "power": 1.0}
    assert responses(Powers(), X, FACTS, "bfloat16", values, ("power",))[1].shape == (3, 1)
    assert responses(Powers(), X, FACTS, "bfloat16", values, ())[1].shape == (3, 0)


def learned(height=0.15, noise=0.02, points=120, spoilt=0, seed=0):
    generator = np.random.default_rng(seed)
    places = generator.uniform(0, 12, size=(points, 2))
    residuals = height * np.sin(places[:, 0] / 2) + noise * generator.normal(size=points)
    residuals[:spoilt] += 2.0
    return learn(places, residuals, np.arange(points).astype(str), seed)


GRID = np.stack(np.meshgrid(np.linspace(1, 11, 15), np.linspace(1, 11, 15)), axis=-1).reshape(-1, 2)
SHAPE = np.sin(GRID[:, 0] / 2)


def test_structure_is_learned_where_points_are():
    assert np.abs(learned().mean(GRID) - 0.15 * SHAPE).mean() < 0.02


def test_it_fades_to_the_law_away_from_the_points():
    far = np.array([[60.0, 60.0], [-40.0, 5.0]])
    one = learned()
    assert np.abs(one.mean(far)).max() < 1e-3
    assert one.deviation(far).min() > 1.5 * one.deviation(GRID).max()


def test_it_is_bounded_whatever_the_residuals():
    assert np.abs(learned(height=3.0).mean(GRID)).max() <= LARGEST


def test_pure_noise_is_hardly_corrected():
    assert np.abs(learned(height=0.0, noise=0.05).mean(GRID)).mean() < 0.02


def test_bad_rows_pull_little():
    assert np.abs(learned(spoilt=4).mean(GRID) - 0.15 * SHAPE).mean() < 0.05


def test_a_seed_gives_one_answer_and_rows_do_not_depend_on_each_other():
    one, two = learned(), learned()
    assert (one.mean(GRID) == two.mean(GRID)).all()
    np.testing.assert_allclose(one.mean(GRID)[:1], one.mean(GRID[:1]), rtol=1e-9)
    assert one.mean(GRID[:0]).shape == one.deviation(GRID[:0]).shape == (0,)


def test_groups_that_are_off_by_themselves_are_told_from_shape():
    generator = np.random.default_rng(0)
    sides, places = generator.uniform(0, 12, 12), generator.uniform(0, 12, size=(240, 2))
    group = np.arange(240) % 12
    places[:, 1] = sides[group]
    residuals = 0.1 * generator.normal(size=12)[group] + 0.01 * generator.normal(size=240)
    others = np.stack([generator.uniform(0, 12, 200), generator.uniform(0, 12, 200)], axis=1)
    known, alone = (learn(places, residuals, names.astype(str)) for names in (group, np.arange(240)))
    assert 0.05 < known.apart < 0.2 and known.noise == pytest.approx(0.01, rel=0.3)
    assert known.deviation(others).mean() > 0.06 > 2 * alone.deviation(places).mean()


def test_a_sudden_change_does_not_ring_between_points_away_from_it():
    places = np.arange(0.0, 12.0)[:, None]
    step = 0.05 * np.sign(places[:, 0] - 5.5)
    known = Residuals(places, step, np.full(12, 1e-6), np.arange(12), 0.06, 1e-3, 0.0, np.array([3.0]))
    away = np.linspace(0, 3, 31)[:, None]
    np.testing.assert_allclose(known.mean(away), -0.05, rtol=0.03)


def test_the_covariance_falls_as_its_derivative_says():
    squares = np.linspace(0.01, 20, 50)
    (low, _), (high, _), (_, slope) = (matern_of(squares + by) for by in (-1e-5, 1e-5, 0.0))
    np.testing.assert_allclose((high - low) / 2e-5, slope, rtol=1e-5)
    assert matern_of(np.zeros(1))[0] == 1
