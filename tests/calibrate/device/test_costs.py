"""Lines through simulated transfers, replays and collectives give back their costs; the roofline prices them back."""

import numpy as np
import pytest

from calibrate.device.costs import collective_costs, errors, graph_cost, measured_link, priced_s, transfer_costs
from profiler.record.measurement import Measurement
from roofline.graph.op import Access, Kind, Op
from roofline.hardware.spec import Figure, Level, Peaks
from roofline.laws.work import RINGS, factor, messages
from roofline.price import roofline
from roofline.whatif import pipeline as collectives

SIZES = tuple(4**i << 10 for i in range(10))
COPIED = tuple(4**i << 10 for i in range(11))
"""Bytes each way."""
RING = {name: (messages(name, 8) * 2e-6, 400e9) for name in RINGS}
"""Operation -> latency of a call, bandwidth: a ring's own law among 8."""


def simulated(
    law: dict[str, tuple[float, float]], *, ranks: int = 8, noise: float = 0.0, link: str = "nvlink"
) -> list[Measurement]:
    random = np.random.default_rng(3)
    found = []
    for operation, (latency_s, bandwidth) in law.items():
        for size in SIZES:
            work = size * factor(operation, ranks)
            exact = latency_s + work / bandwidth
            samples = exact * (1 + noise * random.exponential(size=20))
            found.append(
                Measurement(
                    benchmark="collective",
                    case=f"{operation} {size}",
                    parameters={
                        "operation": operation, "bytes": size, "ranks": ranks, "backend": "nccl", "link": link,
                    },
                    unit="B/s",
                    work=work,
                    status="done",
                    samples=tuple(samples.tolist()),
                )
            )  # fmt: skip
    return found


def test_the_value_is_the_bus_bandwidth() -> None:
    large = next(one for one in simulated(RING) if one.case == f"all_reduce {SIZES[-1]}")
    assert large.value() == pytest.approx(400e9, rel=0.03)


def test_each_operation_has_its_own_line() -> None:
    law = {"all_reduce": (20e-6, 360e9), "send_recv": (8e-6, 120e9)}
    for noise in (0.0, 0.02):
        lines = collective_costs(simulated(law, noise=noise))
        assert set(lines) == set(law)
        for operation, (latency_s, bandwidth) in law.items():
            assert lines[operation].latency_s == pytest.approx(latency_s, rel=0.01 + 2 * noise), noise
            assert lines[operation].bandwidth_bytes_per_s == pytest.approx(bandwidth, rel=0.01 + 2 * noise), noise


def test_failed_cases_and_other_benchmarks_are_left_out() -> None:
    failed = Measurement(benchmark="collective", case="x", unit="B/s", work=1, status="failed", reason="no")
    other = Measurement(benchmark="memory", case="x", unit="B/s", work=1, status="done", samples=(1.0,))
    few = simulated({"broadcast": (1e-6, 1e9)})[:2]
    assert collective_costs([failed, other, *few]) == {}


def test_a_ring_is_found_again() -> None:
    name, link = measured_link(simulated(RING))
    assert name == "nvlink"
    assert link.bandwidth.value == pytest.approx(400e9, rel=1e-3)
    assert link.latency_s is not None and link.latency_s.value == pytest.approx(2e-6, rel=1e-3)
    assert "8 ranks" in link.bandwidth.source and "all_reduce" in link.latency_s.source


def test_the_roofline_prices_collectives_back() -> None:
    """Bytes and messages by the analytical side, a time by its law: what was measured."""
    found = simulated(RING, noise=0.01)
    name, link = measured_link(found)
    level = Level(name="HBM", capacity_bytes=1e11, bandwidth=Figure(value=4e12, source="test"))
    peaks = Peaks(matrix={}, vector={}, levels=(level,), links={name: link})
    like = Op(
        path="", name="", kind=Kind.POINTWISE, dims={}, dtype="float32", matrix_flops=0, vector_flops=0, reads=(),
        writes=(),
    )  # fmt: skip
    for one in found:
        whole = Access(tensor=0, bytes=int(one.parameters["bytes"]))
        part = Access(tensor=1, bytes=whole.bytes / 8)
        ops = {
            "all_reduce": lambda whole=whole: collectives.all_reduce(whole, ranks=8, link=name, like=like),
            "all_gather": lambda whole=whole, part=part: collectives.all_gather(
                part, whole, ranks=8, link=name, like=like
            ),
            "send_recv": lambda whole=whole: collectives.send(whole, link=name, like=like),
        }
        if (operation := str(one.parameters["operation"])) in ops:
            priced = roofline([ops[operation]()], np.zeros((1, 1)), peaks).time_s[0]
            assert priced == pytest.approx(priced_s(link, operation, int(whole.bytes), 8), rel=1e-6)
            assert priced == pytest.approx(one.work / one.value(), rel=0.05)


def test_a_library_that_leaves_the_ring_shows_in_the_errors() -> None:
    law = {**RING, "all_reduce": (4e-6, 400e9)}  # a tree: two messages' time instead of fourteen
    found = simulated(law)
    _, link = measured_link(found)
    assert errors(link, found)["all_reduce"][1] > 0.5
    assert "broadcast" not in errors(link, found)


def test_the_better_of_gathering_and_sending_is_the_bandwidth() -> None:
    _, link = measured_link(simulated({**RING, "all_gather": (14e-6, 300e9), "send_recv": (2e-6, 150e9)}))
    assert link.bandwidth.value == pytest.approx(300e9, rel=0.01)
    assert "all_gather" in link.bandwidth.source


def test_without_latency_messages_are_free() -> None:
    _, link = measured_link(simulated(dict.fromkeys(RINGS, (0.0, 400000000000.0))))
    assert link.latency_s is None


def test_different_machines_are_not_mixed() -> None:
    with pytest.raises(ValueError, match="one ranks"):
        collective_costs([*simulated(RING), *simulated(RING, ranks=4)])
    with pytest.raises(ValueError, match="one link"):
        measured_link([*simulated(RING), *simulated(RING, link="network")])
    with pytest.raises(ValueError, match="all_gather or send_recv"):
        measured_link(simulated({"all_reduce": (1e-6, 1e9)}))
    with pytest.raises(ValueError, match="all_gather or send_recv"):
        measured_link([])
    with pytest.raises(ValueError, match="not known"):
        measured_link(simulated(RING, link="unknown"))


def crossing(direction: str, size: int) -> int:
    """Bytes of both ways count."""
    return size * (2 if direction == "both ways" else 1)


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
        ("pinned", "to device"): (8e-6, 55e9),
        ("pinned", "both ways"): (11e-6, 90e9),
        ("pageable", "from device"): (20e-6, 8e9),
    }
    found = transfer_costs(
        copied(memory, direction, size, latency_s + crossing(direction, size) / bandwidth)
        for (memory, direction), (latency_s, bandwidth) in known.items()
        for size in COPIED
    )
    assert set(found) == set(known)
    for route, (latency_s, bandwidth) in known.items():
        assert found[route].latency_s == pytest.approx(latency_s, rel=1e-3)
        assert found[route].bandwidth_bytes_per_s == pytest.approx(bandwidth, rel=1e-3)
        assert found[route].worst_relative_error < 1e-3


def test_failures_and_other_benchmarks_make_no_line() -> None:
    good = [copied("pinned", "to device", size, 1e-5 + size / 5e10) for size in COPIED]
    lost = [copied("pinned", "from device", size, None) for size in COPIED]
    few = [copied("pageable", "to device", size, 1e-5 + size / 5e10) for size in COPIED[:2]]
    assert set(transfer_costs([*good, *lost, *few, replayed(1, 1e-5)])) == {("pinned", "to device")}


def test_processes_are_fitted_together() -> None:
    measurements = [
        copied("pinned", "to device", size, (1e-5 + size / 5e10) * slow)
        for slow in (0.99, 1.0, 1.01)
        for size in COPIED
    ]
    assert transfer_costs(measurements)["pinned", "to device"].bandwidth_bytes_per_s == pytest.approx(5e10, rel=0.01)


def test_a_replay_costs_so_much_and_a_node_so_much_more() -> None:
    found = graph_cost([replayed(nodes, 6e-6 + 1.3e-6 * nodes) for nodes in (1, 4, 16, 64, 256)])
    assert found is not None
    assert found.latency_s == pytest.approx(6e-6, rel=1e-3)
    assert 1 / found.bandwidth_bytes_per_s == pytest.approx(1.3e-6, rel=1e-3)
    assert graph_cost([replayed(1, 1e-5), replayed(4, 2e-5), replayed(4, 2e-5)]) is None
