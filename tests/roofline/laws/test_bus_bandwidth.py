"""Bus bandwidth against published output of nccl-tests, and against what the analytical side lets a rank send."""

import pytest

from roofline.graph.op import Access, Kind, Op
from roofline.laws.work import RINGS, factor, messages
from roofline.whatif import pipeline as collectives

PUBLISHED = (
    # github.com/NVIDIA/nccl-tests/issues/78: 256 GPUs
    ("all_reduce", 256, 33554432, 1464.2, 22.92, 45.65),
    ("all_reduce", 256, 1073741824, 29896, 35.92, 71.55),
    # github.com/kvcache-ai/Mooncake/pull/3484: 8 GPUs
    ("all_reduce", 8, 33554432, 195.40, 171.72, 300.51),
    # github.com/NVIDIA/nccl-tests/issues/314: 8 H20
    ("all_to_all", 8, 1048576, 58.14, 18.04, 15.78),
    ("all_to_all", 8, 4194304, 59.35, 70.67, 61.84),
    # github.com/NVIDIA/nccl-tests/issues/214: 2 A40
    ("send_recv", 2, 8192, 31.76, 0.26, 0.26),
)
"""Operation, ranks, bytes, µs, and the algorithm and bus bandwidth that nccl-tests printed, GB/s."""


def test_published_rows() -> None:
    for operation, ranks, size, time_us, alg_gb, bus_gb in PUBLISHED:
        row = f"{operation} {size} among {ranks}"  # two digits are printed
        gb_per_s = size / time_us * 1e-3
        assert gb_per_s == pytest.approx(alg_gb, abs=0.011), row
        assert gb_per_s * factor(operation, ranks) == pytest.approx(bus_gb, abs=0.011), row


def test_factors() -> None:
    assert {operation: factor(operation, 8) for operation in RINGS} == {
        "all_reduce": 2 * 7 / 8,
        "all_gather": 7 / 8,
        "reduce_scatter": 7 / 8,
        "all_to_all": 7 / 8,
        "broadcast": 1,
        "send_recv": 1,
    }


@pytest.mark.parametrize("ranks", [2, 3, 8, 64])
def test_a_rank_sends_what_the_analytical_side_says(ranks: int) -> None:
    like = Op(
        path="", name="", kind=Kind.POINTWISE, dims={}, dtype="float32", matrix_flops=0, vector_flops=0, reads=(),
        writes=(),
    )  # fmt: skip
    whole, part = Access(tensor=0, bytes=ranks << 20), Access(tensor=1, bytes=1 << 20)
    ops = {
        "all_reduce": collectives.all_reduce(whole, ranks=ranks, link="nvlink", like=like),
        "all_gather": collectives.all_gather(part, whole, ranks=ranks, link="nvlink", like=like),
        "all_to_all": collectives.all_to_all(whole, whole, ranks=ranks, link="nvlink", like=like),
        "send_recv": collectives.send(whole, link="nvlink", like=like),
    }
    for operation, op in ops.items():
        assert op.link_bytes == pytest.approx(factor(operation, ranks) * whole.bytes)
        assert op.messages == messages(operation, ranks)
    for of in (factor, messages):  # an all-reduce is a reduce-scatter and an all-gather
        assert of("reduce_scatter", ranks) + of("all_gather", ranks) == pytest.approx(of("all_reduce", ranks))


def test_one_rank_has_no_bandwidth() -> None:
    for operation in RINGS:
        with pytest.raises(ValueError, match="two or more"):
            factor(operation, 1)


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(ValueError, match="all_reduce"):
        factor("gather", 2)
