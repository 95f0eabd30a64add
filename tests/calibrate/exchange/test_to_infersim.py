"""InferSim's files, read as hardware/gpu.py, mfu/mfu.py, layers/attn.py and comm/comm.py read them."""

import csv
import io
from dataclasses import dataclass
from typing import Any

import export_samples as samples
import pytest
from each import each
from hypothesis import given
from hypothesis import strategies as st

from calibrate.exchange import to_infersim
from calibrate.exchange.figures import Export
from calibrate.exchange.to_infersim import LAYOUTS, SIZES

NAME = "example-77-roofcal-measured"
ROUNDED = 0.0005
"""InferSim rounds an MFU to three digits."""


@dataclass
class GPU:
    fp16_tflops: float
    fp8_tflops: float
    mfu: float
    mem: float
    mem_bw: float
    nvlink_bw: float
    rdma_bw: float
    frequency: float | None = None
    num_sm: int | None = None
    sm_version: int | None = None


def gpu_of(export: Export, **constants: float) -> GPU:
    """hardware/gpu.py with our lines at its end."""
    namespace: dict[str, Any] = {"GPU": GPU, "gpu_map": {}, **constants}
    exec(export.files[0].content.decode(), namespace)
    gpu = namespace["gpu_map"][NAME]
    assert isinstance(gpu, GPU)
    return gpu


@pytest.fixture(scope="module")
def export() -> Export:
    return to_infersim.write(samples.source())


def table(export: Export, path: str) -> list[list[str]]:
    """bench_data file without its header; found as InferSim does, by the device's name in lower case."""
    content = {file.path: file.content for file in export.files}[path.format(NAME.lower())].decode()
    reader = csv.reader(io.StringIO(content))
    next(reader)
    return list(reader)


def gemm_mfu(rows: list[list[str]], m: int, k: int, n: int) -> float:
    """get_gemm_mfu: the nearest larger k and n, the largest m that is not above."""
    above = [(int(row[1]), int(row[2])) for row in rows if int(row[1]) >= k and int(row[2]) >= n]
    best = min(above, key=lambda kn: (kn[0] - k) ** 2 + (kn[1] - n) ** 2)
    mfu = 1.0
    for row in rows:
        if (int(row[1]), int(row[2])) == best and int(row[0]) <= m:
            mfu = float(row[4])
    return round(mfu, 3)


@each("m", [64, 256, 1024, 8192])
@each(("k", "n"), [(4096, 4096), (5120, 28672), (8192, 1024)])
def test_its_gemm_takes_as_long_as_ours(export: Export, m: int, k: int, n: int) -> None:
    mfu = gemm_mfu(table(export, "bench_data/gemm/{}/data.csv"), m, k, n)
    gflops = 2.0 * m * k * n / 1e9
    found = gflops / (gpu_of(export).fp16_tflops * 1024 * mfu)
    expected = samples.seconds(samples.peaks(), 2.0 * m * k * n, 2.0 * (m * k + k * n + m * n))
    assert found == pytest.approx(expected, rel=1.01 * ROUNDED / mfu)


def test_rows_hold_the_time_and_its_mfu_to_the_bit(export: Export) -> None:
    rows = table(export, "bench_data/gemm/{}/data.csv")
    assert {int(row[1]) for row in rows} == set(SIZES)
    for row in rows[::97]:
        m, k, n = map(int, row[:3])
        expected = samples.seconds(samples.peaks(), 2.0 * m * k * n, 2.0 * (m * k + k * n + m * n))
        assert float(row[3]) == pytest.approx(expected * 1e6, rel=1e-9)
        assert float(row[4]) == pytest.approx(2.0 * m * k * n / expected / 701.3e12, rel=1e-9)
        assert round(float(row[4]), 3) > 0


@each("layout", LAYOUTS[:5])
def test_its_prefill_attention_takes_as_long_as_ours(export: Export, layout: tuple[int, int, int]) -> None:
    heads, kv_heads, head_dim = layout
    gpu, length = gpu_of(export), 4096
    mfu = 1.0
    for row in table(export, f"bench_data/mha/prefill/{{}}/{heads}-{kv_heads}-{head_dim}.csv"):
        if int(row[1]) > length:
            break
        mfu = float(row[3])
    gflops = 2 * 2.0 * heads * head_dim * length / 1e9
    core = length * gflops / 1.8 / (gpu.fp16_tflops * 1024 * round(mfu, 3))
    cache = 2 * 2 * kv_heads * head_dim * length / 1024**3 / gpu.mem_bw
    flops = 4.0 * heads * head_dim * length * (length + 1) / 2
    bytes_ = head_dim * length * (4.0 * heads + 4.0 * kv_heads)
    expected = samples.seconds(samples.peaks(), flops, bytes_)
    assert max(core, cache) == pytest.approx(expected, rel=1.01 * ROUNDED / mfu)


@each(("batch", "length"), [(1, 8192), (32, 4096), (256, 1024)])
def test_its_decode_attention_takes_as_long_as_ours(export: Export, batch: int, length: int) -> None:
    heads, kv_heads, head_dim = 32, 8, 128
    gpu = gpu_of(export)
    rows = [r for r in table(export, f"bench_data/mha/decode/{{}}/{heads}-{kv_heads}-{head_dim}.csv") if r[1] == "bf16"]
    nearest_batch = nearest_length = 1
    for row in rows:
        if int(row[2]) > batch:
            break
        nearest_batch = int(row[2])
    for row in rows:
        if int(row[3]) > length:
            break
        nearest_length = int(row[3])
    (mfu,) = [float(r[5]) for r in rows if (int(r[2]), int(r[3])) == (nearest_batch, nearest_length)]
    core = batch * 4.0 * heads * head_dim * length / 1e9 / (gpu.fp16_tflops * 1024 * round(mfu, 3))
    cache = 2 * 2 * kv_heads * head_dim * length * batch / 1024**3 / gpu.mem_bw
    bytes_ = batch * head_dim * (4.0 * heads + 4.0 * kv_heads * length)
    expected = samples.seconds(samples.peaks(), batch * 4.0 * heads * head_dim * length, bytes_)
    assert max(core, cache) == pytest.approx(expected, rel=1.01 * ROUNDED / mfu)


@given(st.sampled_from([None, 1000, 1024]))
def test_peaks_come_back_whatever_it_counts_as_a_tflops(factor: float | None) -> None:
    gpu = gpu_of(infersim_alone(), **({} if factor is None else {"TFLOPS_TO_GFLOPS": factor}))
    assert gpu.fp16_tflops * (factor or 1024) * 1e9 == pytest.approx(701.3e12, rel=1e-12)
    assert gpu.fp8_tflops * (factor or 1024) * 1e9 == pytest.approx(1301.9e12, rel=1e-12)


_MADE: list[Export] = []


def infersim_alone() -> Export:
    if not _MADE:
        _MADE.append(to_infersim.write(samples.source()))
    return _MADE[0]


def test_its_gpu_has_our_memory_links_and_clock(export: Export) -> None:
    gpu = gpu_of(export)
    assert gpu.mem * 1024**3 == pytest.approx(77.7e9)
    assert 1e9 / 1024**3 / gpu.mem_bw == pytest.approx(samples.seconds(samples.peaks(), 0, 1e9), rel=1e-12)
    expected = samples.message_seconds(samples.peaks(), "nvlink", 1e9)
    assert 1e9 / 1024**3 / gpu.nvlink_bw == pytest.approx(expected, rel=1e-12)
    assert gpu.rdma_bw * 1024**3 == pytest.approx(43.1e9)
    assert (gpu.mfu, gpu.frequency, gpu.num_sm, gpu.sm_version) == (1.0, pytest.approx(1977), 131, None)


def test_what_is_not_known_is_none() -> None:
    bare = to_infersim.write(samples.source(samples.bare(), chip=None, datasheet=None))
    gpu = gpu_of(bare)
    assert (gpu.fp8_tflops, gpu.nvlink_bw, gpu.rdma_bw, gpu.frequency, gpu.num_sm) == (None,) * 5
    assert {"fp8_tflops", "nvlink_bw", "rdma_bw", "frequency", "num_sm", "sm_version"} == set(bare.left_out)
