"""Laws of a CPU: limits by hand, what must not happen, and constants that come back from simulated kernels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from law_checks import columns

from roofline.laws.cpu import DECODE, GRAIN, CoreAttention, CoreMatmul, CoreStreaming, HostGap
from roofline.laws.kinds import law_for
from roofline.laws.law import EVICTED_BY, Facts, Law
from roofline.laws.streams import Matvec, Streaming

FACTS = Facts(4, 32e6, 40e9, {"float32": 400e9}, 100e9, cores=True)
SIZE = st.floats(1, 1e5)


def priced(law: Law, dims: dict[str, np.ndarray], **changed: float) -> np.ndarray:
    values = {c.name: c.prior for c in law.constants(FACTS, "float32")} | changed
    return law.time_s(dims, FACTS, "float32", values)


def test_long_products_reach_the_rate_and_single_panels_the_bandwidth() -> None:
    large = columns(1, m=1e5, n=1e5, k=1e5, cold=0)
    assert priced(CoreMatmul(), large, rate=400e9, sharpness=6.0) == pytest.approx(2e15 / 400e9, rel=0.01)
    wide = columns(1, m=2, n=1e6, k=1e4, cold=1)
    seconds = priced(CoreMatmul(), wide, memory=10e9, rate=480e9, half_m=0.1, sharpness=6.0)
    assert seconds == pytest.approx(4e10 / 10e9, rel=0.05)


def test_cold_weights_cost_their_bytes_and_the_wait_for_the_first() -> None:
    dims = columns(2, m=8, n=512, k=512, cold=np.array([0.0, 0.97]))
    warm, cold = priced(CoreMatmul(), dims, memory=10e9, cache=100e9, latency=5e-6, sharpness=1.0)
    weights, others = 4 * 512 * 512, 4 * 2 * 8 * 512
    held = weights**2 / (weights**2 + (0.5 * 32e6) ** 2)
    more = (0.97 * (weights + others) - held * weights) * (1 / 10e9 - 1 / 100e9)
    waited = 5e-6 * (min(1.0, 0.97 * (weights + others) / weights) - held)
    assert cold - warm == pytest.approx(more + waited, rel=1e-6)


@given(m=SIZE, n=SIZE, k=SIZE, more=st.floats(1.0, 8.0))
def test_more_work_never_takes_less(m: float, n: float, k: float, more: float) -> None:
    for grown in ({"m": m * more}, {"n": n * more}, {"k": k * more}):
        one = priced(CoreMatmul(), columns(1, m=m, n=n, k=k, cold=0))
        other = priced(CoreMatmul(), columns(1, **({"m": m, "n": n, "k": k} | grown), cold=0))
        assert other >= one * (1 - 1e-9)


def test_a_matrix_vector_product_streams_its_matrix() -> None:
    dims = columns(1, bytes_read=4e9, bytes_written=0, elements=1e4, cold=1)
    assert priced(Matvec(), dims, memory=20e9, output=1e-8) == pytest.approx(0.2 + 1e-4, rel=0.01)
    cached = columns(1, bytes_read=1e5, bytes_written=0, elements=1, cold=0)
    assert priced(Matvec(), cached, launch=1e-6, cache=80e9) == pytest.approx(1e-6 + 1e5 / 80e9, rel=0.01)


def test_rows_out_of_main_memory_are_begun_one_by_one_and_short_ones_less() -> None:
    def per_row(elements: float, cold: float) -> float:
        dims = columns(1, bytes_read=elements * 1e4, bytes_written=0, elements=1e4, cold=cold)
        free = {"launch": 0.0, "output": 0.0, "latency": 0.0, "fetch": 0.0, "memory": 1e30, "cache": 1e30}
        return float(priced(Matvec(), dims, row=1e-7, ramp=1000.0, resident=1e6, **free)[0]) / 1e4

    assert per_row(1e6, 1.0) == pytest.approx(1e-7, rel=1e-3)
    assert per_row(1000, 1.0) == pytest.approx(1e-7 / np.sqrt(2), rel=1e-3)
    assert per_row(10, 1.0) == pytest.approx(1e-9, rel=1e-3)
    assert per_row(1e6, 0.0) == pytest.approx(0, abs=1e-12)


def test_a_matrix_stored_the_other_way_round_has_as_many_streams_as_it_has_rows() -> None:
    dims = columns(2, bytes_read=4e6, bytes_written=0, elements=100, cold=1) | {"rows": np.array([100.0, 10000.0])}
    few, many = priced(Matvec(), dims, row=1e-7, ramp=1.0)
    assert many - few == pytest.approx(9900e-7, rel=1e-3)


def streams(elements: np.ndarray, operands: int = 2) -> dict[str, np.ndarray]:
    moved = {"bytes_read": 4 * operands * elements, "bytes_written": 4 * elements}
    return columns(len(elements), **moved, elements=elements, kernels=1, cold=0)


def test_a_small_stream_is_one_core_s_and_a_large_one_all_cores() -> None:
    free = {"launch": 0.0, "number": 0.0, "element": 1e-9, "cache": 1e30, "memory": 1e30}
    few, grain, shared, many = priced(CoreStreaming(), streams(np.array([1e3, GRAIN, 4 * GRAIN, 8 * GRAIN])), **free)
    assert few == pytest.approx(FACTS.units * 1e3 * 1e-9)
    assert grain == pytest.approx(shared) == pytest.approx(4 * GRAIN * 1e-9)
    assert many == pytest.approx(2 * shared)


def test_an_operand_that_is_a_number_costs_its_making() -> None:
    elements = np.array([1.0, 1e3])
    tensors, numbers = (priced(CoreStreaming(), streams(elements, n), cache=1e30, number=3e-6) for n in (2, 1))
    assert numbers - tensors == pytest.approx([3e-6, 3e-6])


@pytest.mark.parametrize("operands", [1, 2])
def test_a_longer_stream_never_takes_less(operands: int) -> None:
    times = priced(CoreStreaming(), streams(np.geomspace(1, 1e8, 4000), operands))
    assert (np.diff(times) >= 0).all()


SIZES = {"m": 8, "n": 64, "k": 64, "bytes_read": 1e4, "bytes_written": 256, "elements": 64, "kernels": 1, "flops": 1}
HEADS = {"batch": 1, "heads": 8, "kv_heads": 2, "head_dim": 64, "window": 0, "kv_bytes": 4, "query": 1, "kv": 9}


ALL = [CoreMatmul(), Matvec(), Streaming(), CoreStreaming(), CoreAttention(), CoreAttention(DECODE)]


@pytest.mark.parametrize("law", ALL)
def test_code_that_others_have_driven_out_is_fetched(law: Law) -> None:
    sizes = SIZES | HEADS | {"context": 8, "cold": 0}
    reach = np.array([0.0, EVICTED_BY * FACTS.cache_bytes, 1e15])
    times = priced(law, columns(3, **sizes) | {"reach": reach}, fetch=1e-5)
    assert times - times[0] == pytest.approx([0, 0.5e-5, 1e-5], rel=1e-6)
    assert priced(law, columns(1, **sizes), fetch=1e-5)[0] == times[0]


def test_a_gap_is_an_operator_s_and_its_modules_and_longer_when_cold() -> None:
    half = 4 * FACTS.cache_bytes  # of what `held` caches are
    dims = columns(5, modules=np.array([0.0, 3.0, 3.0, 3.0, 3.0])) | {
        "reach": np.array([0.0, 0.0, 1e15, half, 0.0]),
        "streamed": np.array([0.0, 0.0, 0.0, 0.0, half / 0.25]),
    }
    found = priced(HostGap(), dims, operation=2e-6, module=1e-6, cold=3.0, held=4.0, share=0.25)
    assert found == pytest.approx([2e-6, 5e-6, 15e-6, 10e-6, 10e-6])


@pytest.mark.parametrize("kind", ["core_prefill_attention", DECODE])
def test_longer_contexts_and_more_sequences_take_longer(kind: str) -> None:
    law = CoreAttention(kind)
    sizes = {"batch": 2, "heads": 8, "kv_heads": 2, "head_dim": 64, "window": 0, "kv_bytes": 4, "query": 16, "kv": 40}
    lengths = np.array([16.0, 64.0, 1024.0, 8192.0])
    grown = "kv" if kind == DECODE else "context"
    times = priced(law, columns(4, **(sizes | {"context": 24})) | {grown: lengths})
    assert (np.diff(times) > 0).all()
    batches = priced(law, columns(3, **(sizes | {"context": 24})) | {"batch": np.array([1.0, 8.0, 64.0])})
    assert (np.diff(batches) > 0).all()


def test_a_window_wider_than_the_context_is_none_and_pairs_are_exact() -> None:
    law = CoreAttention()
    sizes = {"batch": 1, "heads": 2, "kv_heads": 2, "head_dim": 8, "kv_bytes": 4, "query": 3, "context": 5}
    free, wide, narrow = priced(law, columns(3, **sizes) | {"window": np.array([0.0, 100.0, 2.0])})
    assert free == wide > narrow
    pairs_only = {"fixed": 0.0, "piece": 0.0, "rate": 1e30, "exponentials": 1.0, "memory": 1e30, "cache": 1e30}
    found = priced(law, columns(2, **sizes) | {"window": np.array([0.0, 2.0])}, **pairs_only)
    assert found == pytest.approx([2 * (6 + 7 + 8), 2 * 3 * 2])


def test_keys_and_values_that_no_cache_holds_come_from_main_memory() -> None:
    sizes = {"batch": 2, "heads": 8, "kv_heads": 2, "head_dim": 64, "window": 0, "kv_bytes": 4, "kv": 40}
    dims = columns(2, **sizes) | {"cold": np.array([0.0, 0.5])}
    warm, half = priced(CoreAttention(DECODE), dims, memory=1e9, cache=1e10)
    moved = 4 * 2 * 64 * (2 * 8 + 2 * 2 * 40)
    assert half - warm == pytest.approx(0.5 * moved * (1 / 1e9 - 1 / 1e10), rel=1e-9)


def test_cores_have_laws_of_their_own_and_other_devices_theirs() -> None:
    gpu = Facts(132, 50e6, 4.8e12, {"float32": 6e13}, 6e13)
    for kind, name in (("matmul", "core_matmul"), ("decode_attention", DECODE), ("matmul_row_major", "core_matmul")):
        assert law_for(kind, "float32", FACTS)[0].name == name
        assert law_for(kind, "float32", gpu)[0].name == kind.removesuffix("_row_major")
    assert law_for("aten::mul", "float32", FACTS)[0].name == "core_pointwise"
    assert law_for("aten::mean", "float32", FACTS)[0].name == "core_norm"
    assert law_for("aten::mul", "float32", gpu)[0].name == "pointwise"
    assert law_for("matvec_row_major", "float32", FACTS)[0].name == "matvec"
