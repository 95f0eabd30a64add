import numpy as np
import pytest

from calibrate.kernels.correct import learn
from roofline.laws.residuals import LARGEST, Residuals, matern_of


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
