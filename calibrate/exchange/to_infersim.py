"""InferSim: a GPU for hardware/gpu.py, and its tables of MFU under bench_data.

It counts TFLOPS × 1024 GFLOPS (or × its `TFLOPS_TO_GFLOPS`, where a version has one), and bandwidths in 2^30 bytes/s
(layers/attn.py, comm/comm.py). A product takes FLOPs ÷ (peak × mfu of the nearest table row) and has no memory roof of
its own; a prefill's causal FLOPs are all of them ÷ 1.8. The tables hold the mfu with which its own formula gives the
predicted time, so that an mfu can pass 1. It rounds an mfu to three digits; rows that it would round to 0 are left out.
"""

import numpy as np

from calibrate.exchange import op_tables
from calibrate.exchange.figures import FP8, Export, File, Ledger, Source, commented, csv_text, sidecar
from roofline.laws.law import Floats

CAUSAL = 1.8
"""Divisor of a prefill's FLOPs in InferSim."""
SMALLEST_MFU = 0.0005
"""A smaller mfu is rounded to 0 by InferSim, which then divides by it."""
LAYOUTS: tuple[tuple[int, int, int], ...] = (
    (32, 32, 128), (32, 8, 128), (64, 8, 128), (64, 4, 128), (40, 8, 128), (28, 4, 128), (32, 4, 128), (16, 2, 256),
    (16, 8, 128), (64, 8, 64), (96, 8, 128), (48, 8, 128),
)  # fmt: skip
"""Query heads, KV heads and head dimension; each layout is a file."""
SIZES = (512, 768, 1024, 1536, 2048, 2560, 3072, 4096, 5120, 6144, 7168, 8192, 10240, 12288, 14336, 16384, 24576, 28672)
KV_LENGTHS = tuple(length for length in op_tables.LENGTHS if length >= 256)


def write(source: Source) -> Export:
    """Make gpu.py, whose lines go to the end of InferSim's hardware/gpu.py, and bench_data beside it."""
    ledger = Ledger(source, "InferSim")
    peak = ledger.sixteen_bit()
    gpu = _gpu(source, ledger, peak)
    gemm = _gemm(source, ledger.sixteen, peak)
    tables = {f"bench_data/gemm/{source.name}/data.csv": gemm}
    for layout in LAYOUTS:
        name = "-".join(map(str, layout))
        tables[f"bench_data/mha/prefill/{source.name}/{name}.csv"] = _prefill(source, ledger.sixteen, peak, layout)
        tables[f"bench_data/mha/decode/{source.name}/{name}.csv"] = _decode(source, ledger.sixteen, peak, layout)
    provenance = ledger.provenance(
        folded="InferSim's 1024 GFLOPS a TFLOPS, its 2^30 bytes a GB and its causal 1.8, divided out; mfu 1 without a "
        f"table; the tables' mfu is against {peak!r} FLOP/s, as InferSim counts",
        valid=f"gemm {op_tables.span({n: gemm[n] for n in ('m', 'k', 'n')})}; attention of "
        f"{KV_LENGTHS[0]} to {KV_LENGTHS[-1]} tokens; 16-bit; mfu of three digits",
        priced=True,
    )
    files = [File.text("gpu.py", commented(provenance) + "\n" + gpu)]
    for path, table in tables.items():
        files += [File.text(path, csv_text(table)), sidecar(path, provenance)]
    return Export(tuple(files), ledger.left_out)


def _gpu(source: Source, ledger: Ledger, peak: float) -> str:
    fp8 = ledger.matrix_or_none(*FP8)
    link, network = ledger.between(), ledger.link("network")
    chip = source.spec.chip
    units = ledger.chip("units", "") if chip is not None and chip.unit == "SM" else None
    clock = ledger.chip("boost_clock_hz", "Hz")
    needed = {
        "fp16_tflops": f"{peak!r} / 1e9 / TFLOPS_TO_GFLOPS",
        "fp8_tflops": None if fp8 is None else f"{fp8!r} / 1e9 / TFLOPS_TO_GFLOPS",
        "mfu": "1.0",
        "mem": repr(ledger.capacity() / 2**30),
        "mem_bw": repr(ledger.bandwidth() / 2**30),
        "nvlink_bw": None if link is None else repr(link / 2**30),
        "rdma_bw": None if network is None else repr(network / 2**30),
    }
    optional = {
        "frequency": None if clock is None else repr(clock / 1e6),
        "num_sm": None if units is None else str(int(units)),
        "sm_version": None,
    }
    for fields, consequence in (
        (needed, "written as None, InferSim stops where it needs it"),
        (optional, "InferSim's None"),
    ):
        for name, value in fields.items():
            if value is None:
                ledger.leave_out(name, f"not known: {consequence}")
    fields = needed | {name: value for name, value in optional.items() if value is not None}
    body = "".join(f"    {name}={value},\n" for name, value in fields.items())
    constant = 'TFLOPS_TO_GFLOPS = globals().get("TFLOPS_TO_GFLOPS", 1024)'
    return f"{constant}\ngpu_map[{source.name!r}] = GPU(\n{body})\n"


Rows = dict[str, np.ndarray]


def _gemm(source: Source, dtype: str, peak: float) -> Rows:
    shapes = op_tables.columns(k=SIZES, n=SIZES, m=op_tables.GEMM_M)
    flops = 2.0 * shapes["m"] * shapes["n"] * shapes["k"]
    return _with_mfu({size: shapes[size] for size in "mkn"}, source.price("matmul", shapes, dtype), flops, peak)


def _prefill(source: Source, dtype: str, peak: float, layout: tuple[int, int, int]) -> Rows:
    shapes = op_tables.columns(seq_len=KV_LENGTHS)
    length = shapes["seq_len"]
    dims: op_tables.Sizes = {**_layout(layout), "batch": 1, "query": length, "context": 0}
    seconds = source.price("prefill_attention", dims, dtype)
    flops = 4.0 * layout[0] * layout[2] * length**2 / CAUSAL
    return _with_mfu({"dtype": np.full(length.shape, "bf16"), **shapes}, seconds, flops, peak)


def _decode(source: Source, dtype: str, peak: float, layout: tuple[int, int, int]) -> Rows:
    shapes = op_tables.columns(batch_size=op_tables.BATCHES, kv_len=KV_LENGTHS)
    batch, length = shapes["batch_size"], shapes["kv_len"]
    seconds = source.price("decode_attention", {**_layout(layout), "batch": batch, "kv": length}, dtype)
    dtypes = dict.fromkeys(("dtype", "kv_dtype"), np.full(length.shape, "bf16"))
    return _with_mfu({**dtypes, **shapes}, seconds, 4.0 * layout[0] * layout[2] * batch * length, peak)


def _layout(layout: tuple[int, int, int]) -> dict[str, int]:
    return {**dict(zip(("heads", "kv_heads", "head_dim"), layout, strict=True)), "window": 0, "kv_bytes": 2}


def _with_mfu(rows: Rows, seconds: Floats, flops: np.ndarray, peak: float) -> Rows:
    mfu = flops / seconds / peak
    table = {**rows, "latency_us": seconds * 1e6, "mfu": mfu}
    return {name: column[mfu > SMALLEST_MFU] for name, column in table.items()}
