"""The seam that op tables are priced through: against shapes counted one by one, `roofline` itself, and laws."""

import io

import export_samples as samples
import numpy as np
import pandas as pd
import pytest
from calibrated_laws import at_priors
from hypothesis import given
from hypothesis import strategies as st

from calibrate.exchange import to_aiconfigurator
from calibrate.exchange.figures import source_of
from calibrate.exchange.op_tables import LawPrice, RooflinePrice
from roofline.graph.op import attention_pairs
from roofline.hardware.spec import facts_of
from roofline.laws.kinds import work_of

SIZE = st.integers(1, 4096)
PLAIN = samples.spec()
FACTS = facts_of(PLAIN)
LAWS = {kind: at_priors(kind, "bfloat16", FACTS) for kind in ("matmul", "decode_attention", "pointwise", "matvec")}
CALIBRATED = PLAIN.model_copy(update={"calibrated": (LAWS["matmul"], LAWS["decode_attention"])})


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
    work = work_of("prefill_attention", {**dims, **one(kv_bytes=2)}, "bfloat16")
    pairs = attention_pairs(query, context, True, window or None)
    assert work.flops == pytest.approx(4 * 3 * 8 * 64 * pairs)
    seen = [
        key for i in range(query) for key in range(max(0, context + i + 1 - window) if window else 0, context + i + 1)
    ]
    keys = max(seen) - min(seen) + 1
    assert work.bytes == pytest.approx(3 * 64 * (2 * 2 * query * 8 + 2 * 2 * keys * 2))


@given(st.integers(1, 300), st.integers(0, 200), st.sampled_from([1, 2]))
def test_decode_reads_each_kv_head_once(kv: int, window: int, kv_bytes: int) -> None:
    dims = one(batch=5, kv=kv, heads=8, kv_heads=2, head_dim=64, window=window, kv_bytes=kv_bytes)
    work = work_of("decode_attention", dims, "bfloat16")
    seen = min(kv, window) if window else kv
    assert work.flops == pytest.approx(4 * 5 * 8 * 64 * seen)
    assert work.bytes == pytest.approx(5 * 64 * (2 * 2 * 8 + 2 * kv_bytes * seen * 2))


def test_pointwise_work_is_its_bytes() -> None:
    (found,) = RooflinePrice(samples.peaks())("pointwise", one(bytes_read=3e6, bytes_written=1e6), "bfloat16")
    assert found == pytest.approx(samples.seconds(samples.peaks(), 0, 4e6), rel=1e-12)


def test_an_unknown_kind_or_dtype_or_peak_is_one_line() -> None:
    price = RooflinePrice(samples.peaks())
    for kind, dtype, said in (("sort", "bfloat16", "known: matmul"), ("matmul", "int3", "element size")):
        with pytest.raises(ValueError, match=said):
            price(kind, one(m=1, n=1, k=1), dtype)
    with pytest.raises(ValueError, match="no peak matrix int8"):
        RooflinePrice(samples.bare())("matmul", one(m=1, n=1, k=1), "int8")


def table(of: str) -> pd.DataFrame:
    made = to_aiconfigurator.write(source_of(CALIBRATED, None, version="1", now=samples.NOW))
    content = next(file.content for file in made.files if file.path.endswith(f"{of}_perf.parquet"))
    return pd.read_parquet(io.BytesIO(content))


def test_aiconfigurator_s_gemm_table_holds_the_law_s_milliseconds() -> None:
    rows = table("gemm")
    sixteen = rows[rows["gemm_dtype"] == "bfloat16"]
    dims = {name: sixteen[name].to_numpy(dtype=float) for name in "mnk"}
    assert sixteen["latency"].to_numpy() == pytest.approx(1e3 * LAWS["matmul"].time_s(dims, FACTS))
    assert sixteen["kernel_source"].str.contains("calibrated laws .decode_attention, matmul.").all()
    eight = rows[rows["gemm_dtype"] == "fp8"]  # no law: the roofline
    dims = {name: eight[name].to_numpy(dtype=float) for name in "mnk"}
    assert PLAIN.measured is not None
    bare = RooflinePrice(PLAIN.measured)("matmul", dims, "float8_e4m3fn")
    assert eight["latency"].to_numpy() == pytest.approx(1e3 * bare)


def test_its_decode_table_too() -> None:
    rows = table("generation_attention")
    rows = rows[rows["kv_cache_dtype"] == "bfloat16"]
    names = {"batch": "batch_size", "heads": "num_heads", "kv_heads": "num_key_value_heads", "head_dim": "head_dim"}
    dims = {ours: rows[theirs].to_numpy(dtype=float) for ours, theirs in names.items()}
    dims["kv"] = (rows["isl"] + rows["step"]).to_numpy(dtype=float)
    dims |= {"window": np.zeros(len(rows)), "kv_bytes": np.full(len(rows), 2.0)}
    assert rows["latency"].to_numpy() == pytest.approx(1e3 * LAWS["decode_attention"].time_s(dims, FACTS))


def test_streams_and_single_rows_go_to_their_own_laws() -> None:
    assert PLAIN.measured is not None
    everything = PLAIN.model_copy(update={"calibrated": tuple(LAWS.values())})
    price = LawPrice(everything, RooflinePrice(PLAIN.measured))
    one = np.ones(2)
    found = price("pointwise", {"bytes_read": 64e3 * one, "bytes_written": 32e3 * one}, "bfloat16")
    dims = {"bytes_read": 64e3 * one, "bytes_written": 32e3 * one, "kernels": one, "elements": one, "flops": 0 * one}
    assert found == pytest.approx(LAWS["pointwise"].time_s(dims, FACTS))
    m, n, k = np.array([1.0, 2.0]), 4096 * one, 1024 * one
    first, second = price("matmul", {"m": m, "n": n, "k": k}, "bfloat16")
    assert second == pytest.approx(LAWS["matmul"].time_s({"m": m, "n": n, "k": k}, FACTS)[1])
    moved = 2 * (1024 + 4096 * 1024 + 4096)
    dims = {"bytes_read": moved * one, "bytes_written": 0 * one, "elements": n}
    assert first == pytest.approx(LAWS["matvec"].time_s(dims, FACTS)[0])
