"""AIConfigurator's files, read as sdk/perf_database.py and sdk/operations/{gemm,attention}.py read them."""

import io
import json
from collections.abc import Iterator
from typing import Any

import export_samples as samples
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from calibrate.exchange import to_aiconfigurator
from calibrate.exchange.figures import Export
from calibrate.exchange.to_aiconfigurator import METADATA

NAME = "example-77-roofcal-measured"
FOLDER = f"data/{NAME}/{{}}/vllm/9.8.7+roofcal/{{}}_perf.parquet"


@pytest.fixture(scope="module")
def export() -> Export:
    return to_aiconfigurator.write(samples.source())


def rows(export: Export, family: str, operation: str) -> pd.DataFrame:
    content = {file.path: file.content for file in export.files}[FOLDER.format(family, operation)]
    return pd.read_parquet(io.BytesIO(content))


def some(table: pd.DataFrame) -> Iterator[Any]:
    yield from table.sample(200, random_state=1).itertuples()


def system(export: Export) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(export.files[0].content)
    return found


def test_its_speed_of_light_of_a_gemm_is_our_roofline(export: Export) -> None:
    gpu = system(export)["gpu"]
    for m, n, k in ((1, 4096, 4096), (64, 28672, 8192), (8192, 8192, 8192)):
        bytes_ = 2 * (m * n + m * k + n * k)
        light = max(2 * m * n * k / gpu["bfloat16_tc_flops"], bytes_ / gpu["mem_bw"])
        assert light == pytest.approx(samples.seconds(samples.peaks(), 2.0 * m * n * k, bytes_), rel=1e-12)


def test_its_memory_operation_is_our_roofline(export: Export) -> None:
    gpu = system(export)["gpu"]
    scaled = gpu["mem_bw"] * gpu["mem_bw_empirical_scaling_factor"]
    found = 2e6 / scaled + gpu["mem_empirical_constant_latency"]
    assert found == pytest.approx(samples.seconds(samples.peaks(), 0, 2e6), rel=1e-12)


def test_the_system_file_is_si_and_says_what_is_left_out(export: Export) -> None:
    read = system(export)
    assert read["data_dir"] == f"data/{NAME}"
    assert read["gpu"] == {
        "mem_bw": 3.337e12,
        "mem_bw_empirical_scaling_factor": 1,
        "mem_empirical_constant_latency": 0,
        "mem_capacity": 77.7e9,
        "bfloat16_tc_flops": 701.3e12,
        "float16_tc_flops": 689.7e12,
        "int8_tc_flops": 1299.1e12,
        "fp8_tc_flops": 1301.9e12,
        "power": 690,
    }
    assert read["node"] == {"inter_node_bw": 43.1e9, "intra_node_bw": 371.9e9, "pcie_bw": 51.3e9, "p2p_latency": 6.3e-6}
    assert read["misc"] == {}
    assert {"gpu.fp4_tc_flops", "node.num_gpus_per_node", "misc.nccl_mem"} <= set(export.left_out)
    assert "# nccl_mem: not known" in export.files[0].content.decode()


@given(st.floats(min_value=0, allow_infinity=False) | st.integers(0, 2**53).map(float))
def test_a_number_comes_back_from_yaml_to_the_bit(value: float) -> None:
    read = yaml.safe_load(f"a: {to_aiconfigurator.number(value)}")["a"]
    assert isinstance(read, int | float)
    assert read == value


def test_gemm_rows_are_our_roofline_in_milliseconds(export: Export) -> None:
    table = rows(export, "gemm", "gemm")
    assert list(table.columns[:10]) == [
        *("framework", "version", "device", "op_name", "kernel_source", "gemm_dtype", "m", "n", "k", "latency")
    ]
    assert not table.duplicated(["gemm_dtype", "m", "n", "k"]).any()
    assert set(table.gemm_dtype) == {"bfloat16", "fp8"}
    for row in some(table):
        dtype, element = ("bfloat16", 2) if row.gemm_dtype == "bfloat16" else ("float8_e4m3fn", 1)
        bytes_ = element * (row.m * row.k + row.k * row.n) + 2 * row.m * row.n
        expected = samples.seconds(samples.peaks(), 2.0 * row.m * row.n * row.k, bytes_, dtype)
        assert row.latency == pytest.approx(expected * 1e3, rel=1e-9)


def test_prefill_rows_are_our_roofline_in_milliseconds(export: Export) -> None:
    table = rows(export, "attention", "context_attention")
    assert (table.step == 0).all()
    assert not table.duplicated(ATTENTION).any()
    for row in some(table):
        kv = 2 if row.kv_cache_dtype == "bfloat16" else 1
        flops = 4.0 * row.batch_size * row.num_heads * row.head_dim * row.isl * (row.isl + 1) / 2
        moved = 4 * row.isl * row.num_heads + 2 * kv * row.isl * row.num_key_value_heads
        expected = samples.seconds(samples.peaks(), flops, row.batch_size * row.head_dim * moved)
        assert row.latency == pytest.approx(expected * 1e3, rel=1e-9)


ATTENTION = ["kv_cache_dtype", "batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim"]


def test_decode_rows_are_our_roofline_in_milliseconds(export: Export) -> None:
    table = rows(export, "attention", "generation_attention")
    assert not table.duplicated(ATTENTION).any()
    for row in some(table):
        length, kv = row.isl + row.step, 2 if row.kv_cache_dtype == "bfloat16" else 1
        flops = 4.0 * row.batch_size * row.num_heads * row.head_dim * length
        moved = 4 * row.num_heads + 2 * kv * length * row.num_key_value_heads
        expected = samples.seconds(samples.peaks(), flops, row.batch_size * row.head_dim * moved)
        assert row.latency == pytest.approx(expected * 1e3, rel=1e-9)
        assert 2 * kv * row.batch_size * length * row.num_key_value_heads * row.head_dim <= 77.7e9


def test_tables_say_who_made_them(export: Export) -> None:
    head = samples.provenance_in_comments(export.files[0].content.decode())
    for file in export.files[1:]:
        metadata = pq.read_metadata(io.BytesIO(file.content)).metadata
        assert json.loads(metadata[METADATA]) == head
    table = rows(export, "gemm", "gemm")
    assert set(table.framework) == {"roofcal"}
    assert set(table.kernel_source) == {"roofcal measured: bare roofline, cold operands, no fixed cost"}
    assert head["priced_by"].startswith("bare roofline")
    assert "m 1–32768" in head["valid"]


def test_without_fp8_there_are_no_fp8_rows() -> None:
    bare = to_aiconfigurator.write(samples.source(samples.bare()))
    assert set(rows(bare, "gemm", "gemm").gemm_dtype) == {"bfloat16"}
    assert "2 × bfloat16_tc_flops" in bare.left_out["gpu.fp8_tc_flops"]
    assert "node:" in bare.files[0].content.decode()
    assert system(bare)["node"] == {}


def test_without_bfloat16_it_is_refused() -> None:
    with pytest.raises(ValueError, match="no measured matrix peak of bfloat16, which AIConfigurator needs"):
        to_aiconfigurator.write(samples.source(samples.peaks(matrix={"float16": samples.figure(1e14)})))
