"""AIConfigurator: a system yaml and the op tables under its data_dir, laid out as its `systems` folder.

All SI in the yaml; its GEMM speed of light is max(2mnk ÷ *_tc_flops, bytes ÷ mem_bw), its memory operations
bytes ÷ (mem_bw × mem_bw_empirical_scaling_factor) + mem_empirical_constant_latency (sdk/perf_database.py). What roofcal
does not know (GPUs in a node, NCCL's memory) stays a comment to fill in.

Op tables are GEMM, prefill and decode attention, predicted, in milliseconds. Its loaders (sdk/operations/gemm.py,
attention.py) take gemm_dtype, m, n, k, latency; and attn_dtype, kv_cache_dtype, batch_size, isl, num_heads,
num_key_value_heads, head_dim, step, window_size, latency, where a decode row's KV length is isl + step. The folder
names a framework that AIConfigurator knows; rows and version say that roofcal made them.
"""

import io
import json
import math
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from calibrate.exchange import op_tables
from calibrate.exchange.figures import FP8, Export, File, Ledger, Source, commented
from roofline.dtypes import ELEMENT_BYTES

UNKNOWN = "not known to roofcal; AIConfigurator stops where it needs it, fill it in"
FRAMEWORK = "vllm"
"""The folder of a backend that AIConfigurator has; no number in the tables is vLLM's."""
METADATA = b"roofcal"
"""Key of a table's metadata with its provenance."""
TO_MS = 1e3
SIZES = {"batch": "batch_size", "heads": "num_heads", "kv_heads": "num_key_value_heads", "head_dim": "head_dim"}
"""Maps roofcal's name of a size of attention to its column."""


def write(source: Source) -> Export:
    """Make <name>.yaml and data/<name>/<family>/<framework>/<version>/<op>_perf.parquet."""
    ledger = Ledger(source, "AIConfigurator")
    if ledger.sixteen != "bfloat16":
        raise ValueError(ledger.refusal("matrix peak of bfloat16"))
    gpu = {
        "mem_bw": ledger.bandwidth(),
        "mem_bw_empirical_scaling_factor": 1.0,
        "mem_empirical_constant_latency": 0.0,
        "mem_capacity": ledger.capacity(),
        "bfloat16_tc_flops": ledger.sixteen_bit(),
        "float16_tc_flops": ledger.matrix_or_none("float16"),
        "int8_tc_flops": ledger.matrix_or_none("int8"),
        "fp8_tc_flops": ledger.matrix_or_none(*FP8),
        "fp4_tc_flops": ledger.matrix_or_none("float4_e2m1fn_x2"),
        "power": ledger.chip("power_w", "W"),
        "sm_version": None,
    }
    node = {
        "num_gpus_per_node": None,
        "inter_node_bw": ledger.link("network"),
        "intra_node_bw": ledger.between(),
        "pcie_bw": ledger.link("pcie"),
        "p2p_latency": ledger.between_latency(),
    }
    misc = dict.fromkeys(("nccl_mem", "other_mem", "nccl_version"))
    lines = [f"data_dir: data/{source.name}"]
    for title, section in (("gpu", gpu), ("node", node), ("misc", misc)):
        lines.append(f"{title}:" if any(value is not None for value in section.values()) else f"{title}: {{}}")
        for name, value in section.items():
            if value is None:
                ledger.leave_out(f"{title}.{name}", _then(name))
                lines.append(f"  # {name}: {_then(name)}")
            else:
                lines.append(f"  {name}: {number(value)}")
    tables, shapes = _tables(source, ledger)
    provenance = ledger.provenance(
        folded="efficiency: mem_bw_empirical_scaling_factor 1 and constant latency 0, as the bare roofline has it",
        valid=f"op tables: {shapes}",
        priced=True,
    )
    main = File.text(f"{source.name}.yaml", commented(provenance) + "\n" + "\n".join(lines) + "\n")
    return Export((main, *(_parquet(path, rows, provenance) for path, rows in tables.items())), ledger.left_out)


def _parquet(path: str, rows: pd.DataFrame, provenance: dict[str, Any]) -> File:
    table = pa.Table.from_pandas(rows, preserve_index=False)
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({METADATA: json.dumps(provenance).encode()}), sink, compression="zstd")
    return File(path, sink.getvalue())


def _then(name: str) -> str:
    if name in ("fp8_tc_flops", "fp4_tc_flops"):
        return f"no such peak; AIConfigurator takes {2 if name.startswith('fp8') else 4} × bfloat16_tc_flops instead"
    return UNKNOWN


def number(value: float) -> str:
    """A number as YAML 1.1 reads it back, to the bit: "1e-05" would be a string there."""
    if not math.isfinite(value):
        raise ValueError(f"{value} is no number of a system file")
    if value == int(value):
        return str(int(value))
    text = repr(value)
    mantissa, exponent, power = text.partition("e")
    return text if not exponent or "." in mantissa else f"{mantissa}.0e{power}"


def _tables(source: Source, ledger: Ledger) -> tuple[dict[str, pd.DataFrame], str]:
    """The rows of the three tables by their paths, and the range of shapes in them."""
    fp8 = next((name for name in FP8 if ledger.matrix_or_none(name) is not None), None)
    dtypes = {"bfloat16": "bfloat16", **({"fp8": fp8} if fp8 else {})}
    gemm = op_tables.columns(m=op_tables.GEMM_M, n=op_tables.GEMM_NK, k=op_tables.GEMM_NK)
    parts = {
        ("gemm", "gemm"): [_gemm(source, gemm, name, dtype) for name, dtype in dtypes.items()],
        ("attention", "context_attention"): [_attention(source, *kv, decode=False) for kv in dtypes.items()],
        ("attention", "generation_attention"): [_attention(source, *kv, decode=True) for kv in dtypes.items()],
    }
    version, tables = f"{source.version}+roofcal", {}
    for (family, operation), frames in parts.items():
        rows = pd.concat(frames, ignore_index=True)
        about = {
            "framework": "roofcal",
            "version": version,
            "device": source.taken.device or source.spec.name,
            "op_name": operation,
            "kernel_source": f"roofcal {source.origin}: {source.price.name}",
        }
        for i, (name, value) in enumerate(about.items()):
            rows.insert(i, name, value)
        tables[f"data/{source.name}/{family}/{FRAMEWORK}/{version}/{operation}_perf.parquet"] = rows
    lengths = f"attention of {min(op_tables.LENGTHS)} to {max(op_tables.LENGTHS)} tokens, no window"
    return tables, f"{op_tables.span(gemm)}; {lengths}"


def _gemm(source: Source, shapes: op_tables.Columns, name: str, dtype: str) -> pd.DataFrame:
    return pd.DataFrame({"gemm_dtype": name, **shapes, "latency": source.price("matmul", shapes, dtype) * TO_MS})


def _attention(source: Source, name: str, dtype: str, *, decode: bool) -> pd.DataFrame:
    """Rows with arithmetic in bfloat16 and the KV cache in `dtype`, which AIConfigurator calls `name`."""
    kv_bytes = ELEMENT_BYTES[dtype]
    shapes = op_tables.attention_shapes(op_tables.BATCHES, op_tables.LENGTHS, source.main.capacity_bytes, kv_bytes)
    if not decode:
        shapes = op_tables.kept(shapes, shapes["batch"] * shapes["length"] <= op_tables.MOST_TOKENS)
    length, sizes = shapes["length"], {size: shapes[size] for size in SIZES}
    lengths: op_tables.Sizes = {"kv": length} if decode else {"query": length, "context": 0}
    kind = "decode_attention" if decode else "prefill_attention"
    seconds = source.price(kind, {**sizes, **lengths, "window": 0, "kv_bytes": kv_bytes}, "bfloat16")
    return pd.DataFrame(
        {
            "attn_dtype": "bfloat16",
            "kv_cache_dtype": name,
            "beam_width": 1,
            "window_size": 0,
            **{column: sizes[size] for size, column in SIZES.items()},
            "isl": 1 if decode else length,
            "step": length - 1 if decode else 0,
            "latency": seconds * TO_MS,
        }
    )
