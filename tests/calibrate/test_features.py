import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from roofline.laws.residuals import APART, coordinates, features


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
