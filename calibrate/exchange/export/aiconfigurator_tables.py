"""AIConfigurator's op tables: GEMM, prefill and decode attention, priced kernels in milliseconds.

Its loaders (sdk/operations/gemm.py, attention.py) take gemm_dtype, m, n, k, latency; and attn_dtype, kv_cache_dtype,
batch_size, isl, num_heads, num_key_value_heads, head_dim, step, window_size, latency, where a decode row's KV length is
isl + step. The folder names a framework that AIConfigurator knows; rows and version say that roofcal made them.
"""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from calibrate.exchange.export import grids
from calibrate.exchange.export.files import File
from calibrate.exchange.export.ledger import FP8, Ledger
from calibrate.exchange.export.price import ELEMENT_BYTES
from calibrate.exchange.export.source import Source
from roofline.laws.law import Floats

FRAMEWORK = "vllm"
"""The folder of a backend that AIConfigurator has; no number in the tables is vLLM's."""
METADATA = b"roofcal"
"""Key of a table's metadata with its provenance."""
TO_MS = 1e3


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one operation; called with the provenance it becomes a parquet file."""

    path: str
    rows: pd.DataFrame

    def __call__(self, provenance: dict[str, Any]) -> File:
        table = pa.Table.from_pandas(self.rows, preserve_index=False)
        table = table.replace_schema_metadata({METADATA: json.dumps(provenance).encode()})
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        return File(self.path, sink.getvalue())


def tables(source: Source, ledger: Ledger) -> tuple[Sequence[Table], str]:
    """The three tables and the range of shapes in them."""
    fp8 = next((name for name in FP8 if ledger.matrix_or_none(name) is not None), None)
    dtypes = {"bfloat16": "bfloat16", **({"fp8": fp8} if fp8 else {})}
    gemm = grids.columns(m=grids.GEMM_M, n=grids.GEMM_NK, k=grids.GEMM_NK)
    made = [
        _table(source, "gemm", "gemm", [_gemm(source, gemm, name, dtype) for name, dtype in dtypes.items()]),
        _table(source, "attention", "context_attention", [_attention(source, kv, _prefill) for kv in dtypes.items()]),
        _table(source, "attention", "generation_attention", [_attention(source, kv, _decode) for kv in dtypes.items()]),
    ]
    shapes = f"{grids.span(gemm)}; attention of {min(grids.LENGTHS)} to {max(grids.LENGTHS)} tokens, no window"
    return made, shapes


def _table(source: Source, family: str, operation: str, parts: list[pd.DataFrame]) -> Table:
    version = f"{source.version}+roofcal"
    rows = pd.concat(parts, ignore_index=True)
    about = {
        "framework": "roofcal",
        "version": version,
        "device": source.taken.device or source.spec.name,
        "op_name": operation,
        "kernel_source": f"roofcal {source.origin}: {source.price.name}",
    }
    for i, (name, value) in enumerate(about.items()):
        rows.insert(i, name, value)
    return Table(f"data/{source.name}/{family}/{FRAMEWORK}/{version}/{operation}_perf.parquet", rows)


def _gemm(source: Source, shapes: grids.Columns, name: str, dtype: str) -> pd.DataFrame:
    dims = {size: column.astype(float) for size, column in shapes.items()}
    return pd.DataFrame({"gemm_dtype": name, **shapes, "latency": source.price("matmul", dims, dtype) * TO_MS})


Part = Callable[[Source, int], tuple[dict[str, Any], Floats]]


def _attention(source: Source, kv: tuple[str, str], part: Part) -> pd.DataFrame:
    """Arithmetic in bfloat16, the KV cache in the given type."""
    name, dtype = kv
    shapes, seconds = part(source, ELEMENT_BYTES[dtype])
    about = {"attn_dtype": "bfloat16", "kv_cache_dtype": name, "beam_width": 1, "window_size": 0}
    return pd.DataFrame({**about, **shapes, "latency": seconds * TO_MS})


def _prefill(source: Source, kv_bytes: int) -> tuple[dict[str, Any], Floats]:
    shapes = grids.attention(grids.BATCHES, grids.LENGTHS, source.main.capacity_bytes, kv_bytes)
    shapes = grids.kept(shapes, shapes["batch"] * shapes["length"] <= grids.MOST_TOKENS)
    dims = {**_sizes(shapes, kv_bytes), "query": shapes["length"].astype(float)}
    dims["context"] = np.zeros_like(dims["query"])
    return {**_named(shapes), "isl": shapes["length"], "step": 0}, source.price("prefill_attention", dims, "bfloat16")


def _decode(source: Source, kv_bytes: int) -> tuple[dict[str, Any], Floats]:
    shapes = grids.attention(grids.BATCHES, grids.LENGTHS, source.main.capacity_bytes, kv_bytes)
    dims = {**_sizes(shapes, kv_bytes), "kv": shapes["length"].astype(float)}
    seconds = source.price("decode_attention", dims, "bfloat16")
    return {**_named(shapes), "isl": 1, "step": shapes["length"] - 1}, seconds


def _sizes(shapes: grids.Columns, kv_bytes: int) -> dict[str, Floats]:
    dims = {name: shapes[name].astype(float) for name in ("batch", "heads", "kv_heads", "head_dim")}
    nothing = np.zeros_like(dims["batch"])
    return {**dims, "window": nothing, "kv_element_bytes": nothing + kv_bytes}


def _named(shapes: grids.Columns) -> dict[str, Any]:
    names = {"batch": "batch_size", "heads": "num_heads", "kv_heads": "num_key_value_heads", "head_dim": "head_dim"}
    return {theirs: shapes[ours] for ours, theirs in names.items()}
