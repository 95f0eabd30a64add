"""llm-analysis: a JSON file of its gpu_configs.

`GPUConfig(**json)` (config.py) refuses unknown keys, so provenance is a file beside it; every file in gpu_configs is
read as a GPU, so only the file itself goes there. Bandwidths are × 10^9, memory × 2^30, TFLOPS × 10^12, latency in
seconds (analysis.py). An absent inter-node bandwidth would become 200, so that it is null instead; 8- and 4-bit peaks
become 2× and 4× the 16-bit one where they are absent, and null, which the provenance says.
"""

from calibrate.exchange.export.files import Export, File, json_text, sidecar
from calibrate.exchange.export.ledger import Ledger
from calibrate.exchange.export.source import Source


def write(source: Source) -> Export:
    """The GPU's file, and its provenance beside it."""
    ledger = Ledger(source, "llm-analysis")
    entry: dict[str, str | float | None] = {
        "name": source.name,
        "mem_per_GPU_in_GB": ledger.capacity() / 2**30,
        "hbm_bandwidth_in_GB_per_sec": ledger.bandwidth() / 1e9,
        "intra_node_bandwidth_in_GB_per_sec": _scaled(ledger.between(), 1e9),
        "intra_node_min_message_latency": ledger.between_latency(),
        "peak_fp16_TFLOPS": ledger.sixteen_bit() / 1e12,
        "inter_node_bandwidth_in_GB_per_sec": _scaled(ledger.network(), 1e9),
    }
    for name, value in entry.items():
        if value is None:
            ledger.leave_out(name, "not known; null, so that llm-analysis stops where it needs it")
    for name, dtypes, times in (
        ("peak_i8_TFLOPS", ("int8", "float8_e4m3fn", "float8_e4m3fnuz"), 2),
        ("peak_i4_TFLOPS", ("int4", "float4_e2m1fn_x2"), 4),
    ):
        peak = ledger.matrix_or_none(*dtypes)
        if peak is None:
            ledger.leave_out(name, f"not known; llm-analysis then assumes {times} × peak_fp16_TFLOPS by itself")
        else:
            entry[name] = peak / 1e12
    provenance = ledger.provenance(
        folded="efficiency: use flops_efficiency and hbm_memory_efficiency 1; "
        "memory in GiB, as llm-analysis counts it, bandwidths in 1e9 bytes/s"
    )
    path = f"{source.name}.json"
    return Export((File.text(path, json_text(entry)), sidecar(path, provenance)), ledger.left_out)


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit
