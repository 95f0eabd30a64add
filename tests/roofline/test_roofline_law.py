import math

import numpy as np
import pytest
from graphs import GraphBuilder, peaks

from roofline.price import missing_peaks, roofline

TWO_LEVELS = (("L2", 100, 40.0), ("HBM", 1e9, 10.0))


def ops(**fields: object):
    builder = GraphBuilder()
    builder.op("matmul", **fields)
    return builder.graph().ops


@pytest.mark.parametrize(
    ("matrix", "vector", "level_bytes", "time_s", "bound"),
    [
        (400, 10, (0, 20), 4.0, "matrix"),  # 400/100 against 10/10 and 20/10
        (100, 50, (0, 20), 5.0, "vector"),  # 50/10
        (100, 10, (0, 60), 6.0, "HBM"),  # 60/10
        (100, 10, (120, 20), 5.0, "L2"),  # 120/40 + 20/10: the levels add up, L2 takes 3 of the 5
        (100, 10, (40, 20), 3.0, "HBM"),  # 40/40 + 20/10
        (0, 0, (0, 0), 0.0, "HBM"),
    ],
)
def test_slowest_roof_binds(matrix, vector, level_bytes, time_s, bound):
    priced = roofline(ops(matrix=matrix, vector=vector), np.array([level_bytes], dtype=float), peaks(levels=TWO_LEVELS))
    assert priced.time_s.tolist() == [time_s]
    assert priced.bound == (bound,)


def test_a_missing_matrix_peak_is_unknown_unless_it_is_not_needed():
    builder = GraphBuilder()
    builder.op("matmul", matrix=1, dtype="bfloat16")
    builder.op("pointwise", vector=20, dtype="bfloat16")  # the vector peak falls to float32
    work = builder.graph().ops
    priced = roofline(work, np.full((2, 1), 1e6), peaks())
    assert math.isnan(priced.time_s[0])
    assert priced.bound == ("", "DRAM")
    assert priced.time_s[1] == 1e5
    assert missing_peaks(work, peaks()) == ("matrix bfloat16",)


def test_a_missing_vector_peak_is_unknown():
    work = ops(matrix=100, vector=1)
    assert math.isnan(roofline(work, np.zeros((1, 1)), peaks(vector=None)).time_s[0])
    assert missing_peaks(work, peaks(vector=None)) == ("vector float32",)


def test_a_vector_peak_of_its_own_type_comes_first():
    both = peaks().model_copy(update={"vector": {**peaks().vector, "float16": peaks(vector=5.0).vector["float32"]}})
    assert roofline(ops(vector=10, dtype="float16"), np.zeros((1, 1)), both).time_s[0] == 2.0


def test_level_bytes_must_fit_the_peaks():
    with pytest.raises(ValueError, match="level_bytes"):
        roofline(ops(), np.zeros((1, 2)), peaks())
