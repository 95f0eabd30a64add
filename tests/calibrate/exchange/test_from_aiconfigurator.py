"""AIConfigurator's tables in our words and units, by hand."""

from pathlib import Path

import exchange_samples as samples
import numpy as np
import pandas as pd
import pytest
from each import each

from calibrate.exchange.formats import Imported, import_tables
from calibrate.exchange.tables import ImportOptions
from calibrate.kernels.fit import observations
from profiler.record.run import RequestError


def imported(frame: pd.DataFrame, tmp_path: Path, name: str = "table.parquet") -> Imported:
    return import_tables("aiconfigurator", [samples.saved(frame, tmp_path / name)], ImportOptions())


@each("name", ["gemm_perf.parquet", "gemm_perf.txt", "gemm_perf.csv"])
def test_products(tmp_path: Path, name: str) -> None:
    frame = samples.gemm()
    found = observations(imported(frame, tmp_path, name).kernels)
    assert list(found) == [("matmul", "bfloat16"), ("matmul", "fp8_block")]
    one = found["matmul", "bfloat16"]
    assert list(one.dims) == ["m", "n", "k"]
    assert one.time_s == pytest.approx(frame["latency"][:12].to_numpy() * 1e-3)  # ms
    assert one.dims["m"].tolist() == frame["m"][:12].tolist()
    assert one.group[0] == "n4096 k4096" and len(set(one.group)) == 4


def test_the_device_has_its_datasheet_and_the_source_its_provenance(tmp_path: Path) -> None:
    done = imported(samples.gemm(), tmp_path)
    assert done.device.name == "NVIDIA H200"
    assert done.device.spec is not None and done.device.spec.name == "nvidia-h200-sxm"
    (source,) = done.kernels.sources
    assert (source.rows, source.timed, source.kept, source.cleaned) == (24, 24, 24, {})
    assert source.versions == {"VLLM": "0.24.0"} and source.unit == "ms" and len(source.sha256) == 64
    assert done.kernels.table["row"].to_pylist() == list(range(24))
    assert set(done.kernels.table["kernel"].to_pylist()) == {"linear"}


def test_prefill(tmp_path: Path) -> None:
    one = observations(imported(samples.attention("context_attention"), tmp_path).kernels)[
        "prefill_attention", "bfloat16"
    ]
    sizes = {name: column[3] for name, column in one.dims.items()}
    assert sizes == {
        "batch": 4, "heads": 32, "kv_heads": 8, "head_dim": 128, "query": 2048, "context": 0, "kv": 2048,
        "window": 128, "kv_bytes": 2,
    }  # fmt: skip
    assert one.dims["kv_bytes"].tolist() == [2] * 4 + [1] * 4
    assert set(one.group) == {"heads32 kv8 dim128"}
    assert one.time_s == pytest.approx(np.full(8, 2e-4))


def test_cached_context_of_a_prefill(tmp_path: Path) -> None:
    frame = samples.attention("context_attention", step=512)
    one = observations(imported(frame, tmp_path).kernels)["prefill_attention", "bfloat16"]
    assert (one.dims["context"][0], one.dims["query"][0], one.dims["kv"][0]) == (512, 256, 768)


def test_decode(tmp_path: Path) -> None:
    frame = samples.attention("generation_attention")
    one = observations(imported(frame, tmp_path).kernels)["decode_attention", "bfloat16"]
    assert set(one.dims["query"]) == {1}
    assert one.dims["kv"][:2].tolist() == [256, 2048]  # isl 1, step 255 and 2047
    assert one.dims["context"][:2].tolist() == [255, 2047]


def test_an_older_table_has_no_window(tmp_path: Path) -> None:
    frame = samples.attention("generation_attention").drop(columns="window_size").drop_duplicates()
    one = observations(imported(frame, tmp_path).kernels)["decode_attention", "bfloat16"]
    assert set(one.dims["window"]) == {0}


def test_experts(tmp_path: Path) -> None:
    one = observations(imported(samples.moe(), tmp_path).kernels)["experts", "int4_wo"]
    assert {name: column[3] for name, column in one.dims.items()} == {
        "tokens": 1024, "hidden": 2048, "inner": 768, "topk": 8, "experts": 128, "tp": 1, "ep": 4, "skew": 1.2,
        "weight_bits": 4,
    }  # fmt: skip
    assert one.dims["skew"].tolist() == [0, 0, 1.2, 1.2]
    assert set(one.group) == {"hidden2048 inner768 topk8 experts128"}


def test_collectives_count_elements(tmp_path: Path) -> None:
    one = observations(imported(samples.nccl(), tmp_path).kernels)["collective", "float16"]
    assert one.dims["bytes"].tolist() == [1024, 1 << 21] * 3  # two bytes an element
    assert one.dims["operation"].tolist() == [0, 0, 3, 3, 1, 1]
    assert set(one.dims["ranks"]) == {4} and one.group[2] == "all_to_all ranks4"


def test_files_of_one_device_become_one_table(tmp_path: Path) -> None:
    paths = [
        samples.saved(frame, tmp_path / name)
        for frame, name in ((samples.gemm(), "a.parquet"), (samples.nccl(), "b.csv"))
    ]
    done = import_tables("aiconfigurator", paths, ImportOptions())
    assert [source.kept for source in done.kernels.sources] == [24, 6]
    assert done.kernels.table["source"].to_pylist() == [0] * 24 + [1] * 6


@each(
    ("frame", "message"),
    [
        (samples.gemm().drop(columns=["k", "latency"]), "missing column latency of an AIConfigurator table"),
        (samples.gemm().drop(columns=["k", "m"]), "missing columns m, k of an AIConfigurator gemm table"),
        (samples.gemm(op_name="mla"), "op_name 'mla' is not supported; there are gemm, context_attention"),
        (samples.gemm(gemm_dtype="posit8"), "no row has a dtype that is known .there are posit8."),
        (samples.gemm().head(0), "has no rows"),
        (pd.concat([samples.gemm(), samples.gemm(device="NVIDIA B200")]), "NVIDIA B200 and NVIDIA H200; split it"),
        (pd.concat([samples.gemm(), samples.moe()]), "mixes gemm and moe; split it"),
        (samples.attention("context_attention", beam_width=4), "no row is left .beam search"),
        (samples.moe(distribution="zipf"), "no row is left .unknown distribution of loads"),
    ],
)
def test_what_cannot_be_imported_is_refused_in_one_line(tmp_path: Path, frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refusal:
        imported(frame, tmp_path)
    assert "table.parquet" in str(refusal.value) and "\n" not in str(refusal.value)


def test_unknown_rows_among_known_ones_are_counted(tmp_path: Path) -> None:
    frame = pd.concat([samples.gemm(), samples.gemm(gemm_dtype="posit8").head(3), samples.gemm(op_name="mla").head(2)])
    (source,) = imported(frame, tmp_path).kernels.sources
    assert source.cleaned == {"unknown operation": 2, "unknown dtype": 3} and source.kept == 24


def test_an_engines_own_all_reduce_is_a_kind_of_its_own(tmp_path: Path) -> None:
    about = {**samples.COMMON, "op_name": "all_reduce", "allreduce_dtype": "half", "num_gpus": 4}
    sources = ("vLLM_custom_graph", "vLLM_custom_graph", "vLLM_custom_eager")
    rows = [
        {**about, "kernel_source": source, "message_size": size, "latency": latency}
        for source, size, latency in zip(sources, (1024, 65536, 1024), (0.006, 0.009, 0.05), strict=True)
    ]
    table = observations(imported(pd.DataFrame(rows), tmp_path).kernels)["own_all_reduce", "float16"]
    assert table.dims["bytes"].tolist() == [2048, 131072]  # elements of two bytes; what the host launched is left out
    assert table.time_s.tolist() == [6e-6, 9e-6]


def test_latent_attention_reads_one_vector_for_all_heads(tmp_path: Path) -> None:
    about = {**samples.COMMON, "kernel_source": "flashmla", "mla_dtype": "bfloat16", "kv_cache_dtype": "bfloat16"}
    about |= {"op_name": "mla_generation", "batch_size": 8, "isl": 1, "latency": 0.03}
    shapes = [{"num_heads": heads, "tp_size": 128 // heads, "step": 4095} for heads in (16, 128)]
    table = observations(imported(pd.DataFrame([about | shape for shape in shapes]), tmp_path).kernels)
    decode = table["latent_decode_attention", "bfloat16"]
    assert decode.dims["heads"].tolist() == [16, 128]
    assert decode.dims["kv_heads"].tolist() == [1, 1]
    assert (decode.dims["head_dim"] * 2).tolist() == [576, 576]
    assert decode.dims["kv"].tolist() == [4096, 4096]
    # tables of an earlier collector name the heads of all ranks in every row
    older = pd.DataFrame([about | {"num_heads": 128, "tp_size": ranks, "step": 4095} for ranks in (1, 8)])
    (tmp_path / "older").mkdir()
    table = observations(imported(older, tmp_path / "older").kernels)
    assert table["latent_decode_attention", "bfloat16"].dims["heads"].tolist() == [128, 16]
