"""Formats of figures alone, read back as their tools read them, and what those tools would compute.

Each reader is the few lines of the tool that matter, rewritten, with the file that they stand for.
"""

import json
from dataclasses import dataclass
from typing import Any

import export_samples as samples
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.exchange.figures import Export
from calibrate.exchange.to_small import BLIS, GENZ, LLM_ANALYSIS, LLM_VIEWER, TRACELENS
from roofline.hardware.spec import Level, Peaks

NAME = "example-77-roofcal-measured"
EXACT = 1e-12
RATE = st.floats(1e9, 1e17)
BANDWIDTH = st.floats(1e9, 1e14)
CAPACITY = st.floats(1e8, 1e13)


def executed(export: Export) -> dict[str, Any]:
    """What a Python file of the export defines."""
    namespace: dict[str, Any] = {}
    exec(export.files[0].content.decode(), namespace)
    return namespace


def with_rates(flops: float, bandwidth: float, capacity: float) -> Peaks:
    main = Level(name="HBM", capacity_bytes=capacity, bandwidth=samples.figure(bandwidth))
    cache = Level(name="L2", capacity_bytes=5e7, bandwidth=samples.figure(1e13))
    return samples.peaks(matrix={"bfloat16": samples.figure(flops)}, levels=(cache, main))


# LLM-Viewer: model_analyzer.py get_hardware_info, roofline_model.py roofline_analyze


def viewer_seconds(entry: dict[str, float], operations: float, accessed: float, bits: int = 16) -> float:
    bandwidth, most = entry["bandwidth"], entry["INT8" if bits <= 8 else "FP16"]
    assert entry["onchip_buffer"] > 0
    turning = most / bandwidth
    intensity = operations / accessed
    performance = intensity * bandwidth if intensity < turning else most
    return operations / performance


@given(RATE, BANDWIDTH, CAPACITY, st.integers(1, 8192))
def test_llm_viewer_computes_a_layer_as_we_do(flops: float, bandwidth: float, capacity: float, tokens: int) -> None:
    peaks = with_rates(flops, bandwidth, capacity)
    entry = executed(LLM_VIEWER.write(samples.source(peaks)))["hardware_params"][NAME]
    operations, accessed = 2.0 * tokens * 4096 * 11008, 2.0 * (4096 * 11008 + tokens * (4096 + 11008))
    expected = samples.seconds(peaks, operations, accessed)
    assert viewer_seconds(entry, operations, accessed) == pytest.approx(expected, rel=EXACT)


def test_llm_viewer_has_the_8_bit_peak_or_leaves_it_out() -> None:
    entry = executed(LLM_VIEWER.write(samples.source()))["hardware_params"][NAME]
    expected = samples.seconds(samples.peaks(), 1e15, 1e9, "int8")
    assert viewer_seconds(entry, 1e15, 1e9, bits=8) == pytest.approx(expected, rel=EXACT)
    found = LLM_VIEWER.write(samples.source(samples.peaks(matrix={"float16": samples.figure(3e14)})))
    assert "INT8" not in executed(found)["hardware_params"][NAME]
    assert "INT8" in found.left_out
    assert samples.provenance_in_comments(found.files[0].content.decode())["sixteen_bit"] == "float16"


def test_llm_viewer_needs_a_cache_and_a_16_bit_peak() -> None:
    with pytest.raises(ValueError, match="example-77 has no measured size of an on-chip cache, which LLM-Viewer needs"):
        LLM_VIEWER.write(samples.source(samples.bare()))
    with pytest.raises(ValueError, match="no measured matrix peak of bfloat16"):
        LLM_VIEWER.write(samples.source(samples.peaks(matrix={"float32": samples.figure(5e13)})))


# GenZ: unit.py Unit, LLM_inference/utils.py get_inference_system, operator_base.py get_compute_time, get_memory_time


class GenZ:
    """A `System` made from an entry of system_configs, with bf16."""

    def __init__(self, entry: dict[str, Any]) -> None:
        assert entry.get("real_values", False) is True
        self.op_per_sec = entry.get("Flops", 320) * 1e12 / 2
        self.offchip_mem_bw = entry.get("Memory_BW", 40) * 2**30
        self.off_chip_mem_size = entry.get("Memory_size", 2000) * 1024 * 2**20
        self.interchip_link_bw = entry.get("ICN", 150) * 2**30
        self.interchip_link_latency = entry.get("ICN_LL", 1) * 1e-6

    def gemm_seconds(self, m: int, n: int, k: int) -> float:
        memory = sum(elements * 2 / self.offchip_mem_bw for elements in (m * k, k * n, m * n))
        return max(m * n * k / self.op_per_sec, memory)

    def message_seconds(self, bytes_: float) -> float:
        return bytes_ / self.interchip_link_bw + self.interchip_link_latency


@given(RATE, BANDWIDTH, CAPACITY, st.integers(1, 8192))
def test_genz_computes_a_gemm_as_we_do(flops: float, bandwidth: float, capacity: float, m: int) -> None:
    peaks = with_rates(flops, bandwidth, capacity)
    system = GenZ(executed(GENZ.write(samples.source(peaks)))["system_configs"][NAME])
    expected = samples.seconds(peaks, 2.0 * m * 4096 * 1024, 2.0 * (m * 1024 + 1024 * 4096 + m * 4096))
    assert system.gemm_seconds(m, 4096, 1024) == pytest.approx(expected, rel=EXACT)
    assert system.off_chip_mem_size == pytest.approx(capacity, rel=EXACT)


def test_genz_passes_a_message_as_we_do() -> None:
    system = GenZ(executed(GENZ.write(samples.source()))["system_configs"][NAME])
    expected = samples.message_seconds(samples.peaks(), "nvlink", 1e7, messages=1)
    assert system.message_seconds(1e7) == pytest.approx(expected, rel=EXACT)


def test_genz_takes_no_default_for_a_link_that_is_not_known() -> None:
    found = GENZ.write(samples.source(samples.bare()))
    system = GenZ(executed(found)["system_configs"][NAME])
    with pytest.raises(ZeroDivisionError):
        system.message_seconds(1.0)
    assert set(found.left_out) == {"ICN", "ICN_LL"}


# llm-analysis: config.py GPUConfig, analysis.py get_latency_fwd_per_layer_mlp, get_latency_fwd_per_tp_comm


@dataclass
class GPUConfig:
    name: str
    mem_per_GPU_in_GB: float
    hbm_bandwidth_in_GB_per_sec: float
    intra_node_bandwidth_in_GB_per_sec: float
    intra_node_min_message_latency: float
    peak_fp16_TFLOPS: float
    peak_i8_TFLOPS: float | None = None
    peak_i4_TFLOPS: float | None = None
    inter_node_bandwidth_in_GB_per_sec: float = 200

    def weight_seconds(self, bytes_: float) -> float:
        return bytes_ / (self.hbm_bandwidth_in_GB_per_sec * 10**9)

    def compute_seconds(self, flops: float) -> float:
        return flops / (self.peak_fp16_TFLOPS * 10**12)

    def memory(self) -> float:
        return self.mem_per_GPU_in_GB * 1024**3

    def allreduce_seconds(self, bytes_: float) -> float:
        return max(bytes_ / (self.intra_node_bandwidth_in_GB_per_sec * 10**9), self.intra_node_min_message_latency)


@given(RATE, BANDWIDTH, CAPACITY)
def test_llm_analysis_loads_weights_as_we_do(flops: float, bandwidth: float, capacity: float) -> None:
    peaks = with_rates(flops, bandwidth, capacity)
    gpu = GPUConfig(**json.loads(LLM_ANALYSIS.write(samples.source(peaks)).files[0].content))
    assert gpu.weight_seconds(13.5e9) == pytest.approx(samples.seconds(peaks, 0, 13.5e9), rel=EXACT)
    assert gpu.compute_seconds(1e13) == pytest.approx(samples.seconds(peaks, 1e13, 0), rel=EXACT)
    assert gpu.memory() == pytest.approx(capacity, rel=EXACT)


def test_llm_analysis_has_links_and_narrow_peaks() -> None:
    gpu = GPUConfig(**json.loads(LLM_ANALYSIS.write(samples.source()).files[0].content))
    assert gpu.allreduce_seconds(1e9) == pytest.approx(samples.message_seconds(samples.peaks(), "nvlink", 1e9))
    assert gpu.allreduce_seconds(1) == 6.3e-6
    assert (gpu.peak_i8_TFLOPS, gpu.peak_i4_TFLOPS) == (pytest.approx(1299.1), None)
    assert gpu.inter_node_bandwidth_in_GB_per_sec == pytest.approx(43.1)


def test_llm_analysis_takes_no_default_for_a_link_that_is_not_known() -> None:
    found = LLM_ANALYSIS.write(samples.source(samples.bare()))
    gpu = GPUConfig(**json.loads(found.files[0].content))
    assert gpu.inter_node_bandwidth_in_GB_per_sec is None
    with pytest.raises(TypeError):
        gpu.allreduce_seconds(1)
    assert "2 ×" in found.left_out["peak_i8_TFLOPS"]


# BLIS: sim/config.go HardwareCalib, sim/latency/roofline.go, hw_config_strict_test.go


BLIS_KEYS = {"TFlopsPeak", "TFlopsFP8", "BwPeakTBs", "mfuPrefill", "mfuDecode", "MemoryGiB"}
BLIS_KEYS |= {"IntraNodeBwGBps", "InterNodeBwGBps", "_comment"}


@given(RATE, BANDWIDTH, CAPACITY, st.integers(1, 8192))
def test_blis_computes_a_gemm_as_we_do(flops: float, bandwidth: float, capacity: float, m: int) -> None:
    peaks = with_rates(flops, bandwidth, capacity)
    entry = json.loads(BLIS.write(samples.source(peaks)).files[0].content)[NAME]
    compute = 2.0 * m * 4096 * 4096 / (entry["TFlopsPeak"] * 1e12 * entry["mfuPrefill"])
    weights = 2.0 * 4096 * 4096 / (entry["BwPeakTBs"] * 1e12)
    expected = samples.seconds(peaks, 2.0 * m * 4096 * 4096, 2.0 * 4096 * 4096)
    assert max(compute, weights) == pytest.approx(expected, rel=EXACT)
    assert entry["MemoryGiB"] * 2**30 == pytest.approx(capacity, rel=EXACT)
    assert "TFlopsFP8" not in entry


def test_blis_is_strict_and_has_the_links() -> None:
    entry = json.loads(BLIS.write(samples.source()).files[0].content)[NAME]
    assert set(entry) == BLIS_KEYS
    assert isinstance(entry["_comment"], str)
    assert all(isinstance(value, float) for name, value in entry.items() if name != "_comment")
    assert entry["TFlopsFP8"] == pytest.approx(1301.9)
    assert (entry["IntraNodeBwGBps"], entry["InterNodeBwGBps"]) == pytest.approx((371.9, 43.1))
    assert set(BLIS.write(samples.source(samples.bare())).left_out) == {
        "TFlopsFP8",
        "IntraNodeBwGBps",
        "InterNodeBwGBps",
    }


# TraceLens: PerfModel, get_max_achievable_tflops: "{matrix or vector}_{precision}" of the arch file


def tracelens_seconds(arch: dict[str, Any], operations: float, accessed: float, unit: str, precision: str) -> float:
    most = arch["max_achievable_tflops"][f"{unit}_{precision}"] * 1e12
    return max(operations / most, accessed / (arch["mem_bw_gbps"] * 1e9))


@given(RATE, BANDWIDTH, CAPACITY, st.integers(1, 8192))
def test_tracelens_has_the_roofline_that_we_have(flops: float, bandwidth: float, capacity: float, tokens: int) -> None:
    peaks = with_rates(flops, bandwidth, capacity)
    arch = json.loads(TRACELENS.write(samples.source(peaks)).files[0].content)
    assert (arch["name"], arch["memory_gb"]) == (NAME, pytest.approx(capacity / 1e9))
    operations, accessed = 2.0 * tokens * 4096 * 11008, 2.0 * (4096 * 11008 + tokens * (4096 + 11008))
    expected = samples.seconds(peaks, operations, accessed)
    assert tracelens_seconds(arch, operations, accessed, "matrix", "bf16") == pytest.approx(expected, rel=EXACT)


def test_tracelens_has_each_rate_under_its_own_name_and_no_other() -> None:
    arch = json.loads(TRACELENS.write(samples.source()).files[0].content)
    rates = {"matrix_bf16": 701.3, "matrix_fp16": 689.7, "matrix_fp8": 1301.9, "matrix_int8": 1299.1}
    assert arch["max_achievable_tflops"] == pytest.approx(rates | {"vector_fp32": 51.7})
    assert arch["_reference"].startswith("roofcal 9.8.7: measured figures of example-77")
    with pytest.raises(ValueError, match="no measured rate of matrix or vector work, which TraceLens needs"):
        TRACELENS.write(samples.source(samples.peaks(matrix={}, vector={})))
