import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline.host import wall_s


def test_on_a_cpu_everything_is_serial():
    assert wall_s([2.0, 3.0], [1, 4], 0.5, False) == 2.5 + 4 * 3.5


def test_on_cuda_the_device_waits_for_the_host_only_when_its_queue_is_empty():
    for device, wall in [
        ([5.0, 5.0, 5.0], 16.0),  # issued at 1, 2, 3; the device never waits after the first
        ([0.5, 0.5, 0.5], 3.5),  # the host is the bottleneck: the last is issued at 3
        ([0.5, 4.0, 0.5], 6.5),  # waits for the second at 2, then runs 4.5
    ]:
        assert wall_s(device, [1, 1, 1], 1.0, True) == wall, (device, wall)


def test_an_unknown_time_makes_the_wall_unknown():
    assert math.isnan(wall_s([1.0, math.nan, 1.0], [1, 1, 1], 1.0, True))
    assert math.isnan(wall_s([1.0, math.nan], [1, 1], 1.0, False))


def test_wrong_requests():
    with pytest.raises(ValueError, match="counts"):
        wall_s([1.0], [1, 2], 1.0, False)
    assert wall_s([], [], 1.0, True) == 0


def unrolled(blocks, host_s):
    """The queue, one operation after another."""
    issued = end = 0.0
    for device, count in blocks:
        for _ in range(count):
            for seconds in device:
                issued += host_s
                end = max(issued, end) + seconds
    return end


@given(
    st.lists(st.lists(st.floats(0, 4), min_size=1, max_size=4), min_size=1, max_size=4),
    st.lists(st.integers(1, 6), min_size=4, max_size=4, unique=True),
    st.floats(0, 3),
)
@settings(deadline=None)
def test_folded_layers_equal_unrolled_ones(devices, counts, host_s):
    blocks = list(zip(devices, counts, strict=False))
    device = [seconds for ops, _ in blocks for seconds in ops]
    count = [c for ops, c in blocks for _ in ops]
    assert wall_s(device, count, host_s, True) == pytest.approx(unrolled(blocks, host_s))
