"""Visits to a machine of changing speed, brought to one level; times are made of the parts that follow probes."""

import numpy as np
import pytest
from graphs import GraphBuilder, peaks

from profiler.kernels.level import Centre
from profiler.passes.samples import Sample
from profiler.timing.engine import Verdict
from profiler.timing.turns import Visit
from roofline.graph.op import OpGraph
from roofline.price import Prepared
from roofline.price_by_law import waits
from roofline.workload import Workload

PEAKS = peaks(matrix=100, vector=10, levels=(("DRAM", 1e9, 10.0),), host_s=0.5)
READINGS = {"memory.float32": [1.0, 1.0, 1.5], "product.float32": [2.0, 2.6, 2.0], "host": [0.1, 0.1, 0.1]}
MEMORY, PRODUCT = 0, 1


def graph(dtype: str = "float32") -> OpGraph:
    b = GraphBuilder(Workload(batch=1, query_tokens=1, context_tokens=8, dtype=dtype))
    b.op("matmul", reads={"x": 10}, writes={"y": 10}, matrix=1000, m=2, n=5, k=10, path="a")
    b.op("matmul", reads={"z": 1000}, writes={"w": 10}, matrix=10, m=1, n=5, k=10, path="b")
    return b.graph()


def visits_of(made: OpGraph) -> list[Visit[list[list[float]]]]:
    """Each operation takes a second at the median level, and longer as its parts follow the readings."""
    shares, taken = waits(Prepared(made), PEAKS, "cpu"), []
    for memory, product, host in zip(*READINGS.values(), strict=True):
        times_s = 1 + shares[:, MEMORY] * (memory - 1) + shares[:, PRODUCT] * (product / 2 - 1)
        reference = dict(zip(READINGS, (memory, product, host), strict=True))
        taken.append(Visit([times_s.tolist()] * 2, (), Verdict("done", (), (), None), reference))
    return taken


def test_visits_to_a_machine_of_changing_speed_agree_at_the_centre() -> None:
    made = graph()
    centre = Centre.of(READINGS, PEAKS, "cpu")
    assert centre.seconds == {"memory.float32": 1.0, "product.float32": 2.0, "host": 0.1}
    taken = visits_of(made)
    assert np.ptp([visit.result for visit in taken], axis=0).max() > 0.2
    for visit in taken:
        assert np.array(centre.passes(made, visit)) == pytest.approx(1.0)


def test_without_peaks_or_readings_in_its_dtype_times_stay_as_measured() -> None:
    made, other = graph(), graph("bfloat16")
    visit = visits_of(made)[1]
    assert Centre.of(READINGS, None, "cpu").passes(made, visit) == visit.result
    assert Centre.of(READINGS, PEAKS, "cpu").passes(other, visit) == visit.result


def test_gaps_of_models_follow_the_host() -> None:
    made = graph()
    sample = Sample([1.0, 1.0], [0.2, 0.4], 0.0, 0.0, (), (), 0.0)
    visit = Visit([[sample]], (), Verdict("done", (), (), None), {"host": 0.2})
    ((brought,),) = Centre.of(READINGS, PEAKS, "cpu").samples([made], visit)
    assert brought.gap_s == pytest.approx([0.1, 0.2])
