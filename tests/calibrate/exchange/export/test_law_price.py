"""Tables of a calibrated spec: read back, they hold what its laws say, and the roofline's where it has no law."""

import io

import numpy as np
import pandas as pd
import pytest
from calibrated_laws import at_priors
from export_samples import NOW, spec

from calibrate.exchange.export import aiconfigurator
from calibrate.exchange.export.law_price import LawPrice
from calibrate.exchange.export.price import RooflinePrice
from calibrate.exchange.export.source import source_of
from roofline.hardware.facts import facts_of

PLAIN = spec()
FACTS = facts_of(PLAIN)
LAWS = {kind: at_priors(kind, "bfloat16", FACTS) for kind in ("matmul", "decode_attention", "pointwise", "matvec")}
CALIBRATED = PLAIN.model_copy(update={"calibrated": (LAWS["matmul"], LAWS["decode_attention"])})


def table(of: str) -> pd.DataFrame:
    made = aiconfigurator.write(source_of(CALIBRATED, None, version="1", now=NOW))
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
    found = price("pointwise", {"read_bytes": 64e3 * one, "write_bytes": 32e3 * one}, "bfloat16")
    dims = {"bytes_read": 64e3 * one, "bytes_written": 32e3 * one, "kernels": one, "elements": one, "flops": 0 * one}
    assert found == pytest.approx(LAWS["pointwise"].time_s(dims, FACTS))
    m, n, k = np.array([1.0, 2.0]), 4096 * one, 1024 * one
    first, second = price("matmul", {"m": m, "n": n, "k": k}, "bfloat16")
    assert second == pytest.approx(LAWS["matmul"].time_s({"m": m, "n": n, "k": k}, FACTS)[1])
    moved = 2 * (1024 + 4096 * 1024 + 4096)
    dims = {"bytes_read": moved * one, "bytes_written": 0 * one, "elements": n}
    assert first == pytest.approx(LAWS["matvec"].time_s(dims, FACTS)[0])
