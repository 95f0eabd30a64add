"""The seam that op tables are priced through, against shapes counted one by one and against `roofline` itself."""

import export_samples as samples
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.exchange.export.price import RooflinePrice, work_of
from roofline.graph.op import attention_pairs

SIZE = st.integers(1, 4096)


def one(**sizes: float) -> dict[str, np.ndarray]:
    return {name: np.array([float(size)]) for name, size in sizes.items()}


@given(SIZE, SIZE, SIZE, st.sampled_from(["bfloat16", "float8_e4m3fn"]))
def test_a_product_is_priced_as_the_roofline_prices_it(m: int, n: int, k: int, dtype: str) -> None:
    element = 2 if dtype == "bfloat16" else 1
    expected = samples.seconds(samples.peaks(), 2.0 * m * n * k, element * (m * k + k * n) + 2 * m * n, dtype)
    (found,) = RooflinePrice(samples.peaks())("matmul", one(m=m, n=n, k=k), dtype)
    assert found == pytest.approx(expected, rel=1e-12)


@given(st.integers(1, 300), st.integers(0, 300), st.integers(0, 200))
def test_prefill_counts_the_unmasked_pairs(query: int, context: int, window: int) -> None:
    dims = one(batch=3, query=query, context=context, heads=8, kv_heads=2, head_dim=64, window=window)
    work = work_of("prefill_attention", {**dims, **one(kv_element_bytes=2)}, "bfloat16")
    pairs = attention_pairs(query, context, True, window or None)
    assert work.matrix_flops == pytest.approx(4 * 3 * 8 * 64 * pairs)
    seen = [
        key for i in range(query) for key in range(max(0, context + i + 1 - window) if window else 0, context + i + 1)
    ]
    keys = max(seen) - min(seen) + 1
    assert work.bytes == pytest.approx(3 * 64 * (2 * 2 * query * 8 + 2 * 2 * keys * 2))


@given(st.integers(1, 300), st.integers(0, 200), st.sampled_from([1, 2]))
def test_decode_reads_each_kv_head_once(kv: int, window: int, kv_bytes: int) -> None:
    dims = one(batch=5, kv=kv, heads=8, kv_heads=2, head_dim=64, window=window, kv_element_bytes=kv_bytes)
    work = work_of("decode_attention", dims, "bfloat16")
    seen = min(kv, window) if window else kv
    assert work.matrix_flops == pytest.approx(4 * 5 * 8 * 64 * seen)
    assert work.bytes == pytest.approx(5 * 64 * (2 * 2 * 8 + 2 * kv_bytes * seen * 2))


def test_pointwise_work_is_its_bytes() -> None:
    (found,) = RooflinePrice(samples.peaks())("pointwise", one(read_bytes=3e6, write_bytes=1e6), "bfloat16")
    assert found == pytest.approx(samples.seconds(samples.peaks(), 0, 4e6), rel=1e-12)


def test_an_unknown_kind_or_dtype_or_peak_is_one_line() -> None:
    price = RooflinePrice(samples.peaks())
    for kind, dtype, said in (("sort", "bfloat16", "known: matmul"), ("matmul", "int3", "element size")):
        with pytest.raises(ValueError, match=said):
            price(kind, one(m=1, n=1, k=1), dtype)
    with pytest.raises(ValueError, match="no peak matrix int8"):
        RooflinePrice(samples.bare())("matmul", one(m=1, n=1, k=1), "int8")
