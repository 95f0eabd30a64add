import numpy as np

from roofline.laws.features import features, logarithm


def test_a_doubling_is_one_and_zero_lies_below_one():
    assert logarithm(np.array([0.0, 1.0, 2.0, 1024.0])).tolist() == [-1, 0, 1, 10]


def test_fractions_stay_as_they_are():
    assert logarithm(np.array([0.3, 1.0])).tolist() == [0.3, 1.0]


def test_sizes_work_and_evenness_are_columns():
    places = features({"m": np.array([16.0, 17.0]), "n": np.array([64.0, 64.0]), "other": np.ones(2)}, ("m", "n"))
    assert places.shape == (2, 5)
    assert places[0, 2] > 0 and places[0, 3] > places[1, 3] == 0
    assert places[0, 4] == places[1, 4]
