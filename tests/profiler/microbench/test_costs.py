"""Lines through simulated measurements give back the costs that they were made of."""

import pytest

from calibrate.device.costs import graph_cost, transfer_costs
from profiler.microbench.transfer import BOTH, FROM, STEP, TO, crossing, sizes
from profiler.record.measurement import Measurement


def copied(memory: str, direction: str, size: int, time_s: float | None) -> Measurement:
    """Without a time: one that failed."""
    done = {"status": "done", "samples": (time_s,)} if time_s else {"status": "failed", "reason": "out of memory"}
    parameters = {"bytes": size, "direction": direction, "memory": memory}
    return Measurement(
        benchmark="transfer", case=f"{memory} {direction} {size}", unit="B/s", work=crossing(direction, size),
        parameters=parameters, **done,
    )  # fmt: skip


def replayed(nodes: int, time_s: float) -> Measurement:
    return Measurement(
        benchmark="launch", case=f"graph {nodes}", unit="s", work=1, status="done", samples=(time_s,),
        parameters={"nodes": nodes},
    )  # fmt: skip


def test_a_latency_and_a_bandwidth_for_each_route() -> None:
    known = {
        ("pinned", TO): (8e-6, 55e9),
        ("pinned", BOTH): (11e-6, 90e9),
        ("pageable", FROM): (20e-6, 8e9),
    }
    found = transfer_costs(
        copied(memory, direction, size, latency_s + crossing(direction, size) / bandwidth)
        for (memory, direction), (latency_s, bandwidth) in known.items()
        for size in sizes(STEP)
    )
    assert set(found) == set(known)
    for route, (latency_s, bandwidth) in known.items():
        assert found[route].latency_s == pytest.approx(latency_s, rel=1e-3)
        assert found[route].bandwidth_bytes_per_s == pytest.approx(bandwidth, rel=1e-3)
        assert found[route].worst_relative_error < 1e-3


def test_failures_and_other_benchmarks_make_no_line() -> None:
    good = [copied("pinned", TO, size, 1e-5 + size / 5e10) for size in sizes(STEP)]
    lost = [copied("pinned", FROM, size, None) for size in sizes(STEP)]
    few = [copied("pageable", TO, size, 1e-5 + size / 5e10) for size in sizes(STEP)[:2]]
    assert set(transfer_costs([*good, *lost, *few, replayed(1, 1e-5)])) == {("pinned", TO)}


def test_processes_are_fitted_together() -> None:
    measurements = [
        copied("pinned", TO, size, (1e-5 + size / 5e10) * slow) for slow in (0.99, 1.0, 1.01) for size in sizes(STEP)
    ]
    assert transfer_costs(measurements)["pinned", TO].bandwidth_bytes_per_s == pytest.approx(5e10, rel=0.01)


def test_a_replay_costs_so_much_and_a_node_so_much_more() -> None:
    found = graph_cost([replayed(nodes, 6e-6 + 1.3e-6 * nodes) for nodes in (1, 4, 16, 64, 256)])
    assert found is not None
    assert found.latency_s == pytest.approx(6e-6, rel=1e-3)
    assert 1 / found.bandwidth_bytes_per_s == pytest.approx(1.3e-6, rel=1e-3)
    assert graph_cost([replayed(1, 1e-5), replayed(4, 2e-5), replayed(4, 2e-5)]) is None
