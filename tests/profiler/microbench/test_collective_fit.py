"""Latency and bandwidth found again in simulated collectives, and collectives priced back by the roofline itself."""

import numpy as np
import pytest

from profiler.microbench.busbw import RINGS, factor, messages
from profiler.microbench.collective_fit import costs, errors, measured_link, priced_s
from profiler.record.measurement import Measurement
from roofline.graph.op import Access, Kind, Op
from roofline.hardware.spec import Figure, Level, Peaks
from roofline.price import roofline
from roofline.whatif import collectives

SIZES = tuple(4**i << 10 for i in range(10))
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


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_each_operation_has_its_own_line(noise: float) -> None:
    law = {"all_reduce": (20e-6, 360e9), "send_recv": (8e-6, 120e9)}
    found = costs(simulated(law, noise=noise))
    assert set(found) == set(law)
    for operation, (latency_s, bandwidth) in law.items():
        assert found[operation].latency_s == pytest.approx(latency_s, rel=0.01 + 2 * noise)
        assert found[operation].bandwidth_bytes_per_s == pytest.approx(bandwidth, rel=0.01 + 2 * noise)


def test_failed_cases_and_other_benchmarks_are_left_out() -> None:
    failed = Measurement(benchmark="collective", case="x", unit="B/s", work=1, status="failed", reason="no")
    other = Measurement(benchmark="memory", case="x", unit="B/s", work=1, status="done", samples=(1.0,))
    few = simulated({"broadcast": (1e-6, 1e9)})[:2]
    assert costs([failed, other, *few]) == {}


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
        costs([*simulated(RING), *simulated(RING, ranks=4)])
    with pytest.raises(ValueError, match="one link"):
        measured_link([*simulated(RING), *simulated(RING, link="network")])
    with pytest.raises(ValueError, match="all_gather or send_recv"):
        measured_link(simulated({"all_reduce": (1e-6, 1e9)}))
    with pytest.raises(ValueError, match="all_gather or send_recv"):
        measured_link([])
    with pytest.raises(ValueError, match="not known"):
        measured_link(simulated(RING, link="unknown"))
