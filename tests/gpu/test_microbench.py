"""Each microbenchmark on a real GPU: every case is there, and its figure is one that hardware can have.

No speed is asked for. Skips where there is no GPU.
"""

import pytest
import torch

from calibrate.device.costs import graph_cost, transfer_costs
from profiler.microbench.bench import Bench
from profiler.microbench.energy import energy
from profiler.microbench.host_cost import NODES, launch
from profiler.microbench.transfer import BOTH, DIRECTIONS, FROM, LAST_BYTES, MEMORIES, TO, transfer
from profiler.record.measurement import Measurement

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

FASTEST_LINK = 1e12
"""Bytes a second: above NVLink-C2C of a Grace Hopper, 450 GB/s each way."""


def quick_bench(budget_s: float = 0.2) -> Bench:
    return Bench(torch.device("cuda"), budget_s=budget_s, quick=True)


def complete(measurements: list[Measurement]) -> None:
    """None failed; one that other work on the machine made invalid still has its figures."""
    assert [(one.case, one.reason) for one in measurements if not one.samples] == []


def test_launch() -> None:
    measurements = list(launch(quick_bench()))
    complete(measurements)
    found = {one.case: one.value() for one in measurements}
    assert set(found) == {"call", "back to back", "synchronize", *(f"graph {nodes}" for nodes in NODES)}
    assert 5e-7 < found["call"] < 1e-4, "Python, the dispatcher and a launch: some microseconds"
    assert 3e-7 < found["back to back"] < 2e-5, "an add of one element, about 2 µs on an A100"
    assert 1e-7 < found["synchronize"] < 1e-3
    assert found["graph 256"] > found["graph 16"] > found["graph 1"] * 0.9
    assert found["graph 256"] / 256 < 1.2 * found["back to back"], (
        "a node of a graph costs no more than a launched kernel"
    )


def test_a_graph_s_cost_is_a_line_over_its_nodes() -> None:
    line = graph_cost(launch(quick_bench()))
    assert line is not None
    assert 0 <= line.latency_s < 1e-4 and 1e-7 < 1 / line.bandwidth_bytes_per_s < 1e-5
    assert line.worst_relative_error < 0.5


def test_transfer() -> None:
    measurements = list(transfer(quick_bench()))
    complete(measurements)
    routes = {(one.parameters["memory"], one.parameters["direction"]) for one in measurements}
    assert routes == {(memory, direction) for memory in MEMORIES for direction in DIRECTIONS}
    assert all(0 < one.value() < FASTEST_LINK for one in measurements)
    at = {(one.parameters["memory"], one.parameters["direction"], one.parameters["bytes"]): one for one in measurements}
    largest = max(int(one.parameters["bytes"]) for one in measurements)
    assert largest <= LAST_BYTES
    for direction in DIRECTIONS:
        pinned, pageable = (at[memory, direction, largest].value() for memory in MEMORIES)
        assert pinned > 0.9 * pageable, "a pageable copy goes through a pinned buffer"
        assert at["pinned", direction, 1024].value() < pinned, "a kilobyte is latency"
    one_way = max(at["pinned", direction, largest].value() for direction in (TO, FROM))
    assert at["pinned", BOTH, largest].value() > 0.9 * one_way


def test_transfers_are_lines_over_their_sizes() -> None:
    lines = transfer_costs(transfer(quick_bench()))
    for direction in (TO, FROM):
        line = lines["pinned", direction]
        assert 1e-7 < line.latency_s < 1e-4 and 1e9 < line.bandwidth_bytes_per_s < FASTEST_LINK


def test_energy() -> None:
    measurements = list(energy(quick_bench(), {"bfloat16": (4096, 4096, 4096)}))
    if measurements[0].case == "all":
        pytest.skip(str(measurements[0].reason))
    complete(measurements)
    idle, product, copy = measurements
    assert (idle.unit, product.unit, copy.unit) == ("W", "J/FLOP", "J/B")
    assert 1 < idle.value() < 500
    assert 1e-14 < product.value() < 1e-9, "700 W at 700 TFLOP/s are 1 pJ"
    assert 1e-12 < copy.value() < 1e-8, "500 W at 3 TB/s are 170 pJ"
    for one in (product, copy):
        assert 0.7 < float(one.parameters["busy"]) <= 1.05
