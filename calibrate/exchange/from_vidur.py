"""Imports Vidur's CSV tables: mlp.csv, a decoder's linear layers (several kernels in a row), and all_reduce.csv; ms.

The medians of a row are its times. Shapes follow from its columns: `attn_pre_proj` is query, key and value in one
product; with `use_gated_mlp`, `mlp_up_proj` is gate and up in one, and `mlp_act` reads both. Tensor parallelism splits
the output of the first product and the depth of the second; norms, the addition and the embedding's rows stay whole.
`size` of a collective is in bytes; each rank has a row, and these are repeats of one shape. The tables name neither
their device nor a dtype: Vidur measures in float16.

Example: ``parse(read_table(path)[0], path, ImportOptions()).frame``
"""

from pathlib import Path

import numpy as np
import pandas as pd

from calibrate.exchange.tables import Floats, ImportOptions, Parsed, complete, numbers, require, without, words
from profiler.record.run import RequestError
from roofline.dtypes import BITS

UNIT, SECONDS = "ms", 1e-3
LINEAR = ("emb", "input_layernorm", "attn_pre_proj", "attn_rope", "attn_post_proj", "post_attention_layernorm",
          "mlp_up_proj", "mlp_act", "mlp_down_proj", "add")  # fmt: skip
SIZES = ("n_head", "n_kv_head", "n_embd", "n_expanded_embd", "vocab_size", "use_gated_mlp", "num_tokens",
         "num_tensor_parallel_workers")  # fmt: skip
ATTENTION = "time_stats.attn_prefill.median"
FRAMEWORK = "vidur"


def parse(frame: pd.DataFrame, path: Path, options: ImportOptions) -> Parsed:
    """Read the rows of a table. Raises RequestError, one line, where it is neither table or lacks columns."""
    dtype = options.dtype or "float16"
    dropped: dict[str, int] = {}
    if "collective" in frame.columns or "time_stats.all_reduce.median" in frame.columns:
        rows = _collectives(frame, path, dropped)
    elif ATTENTION in frame.columns:
        raise RequestError(f"{path} is Vidur's attention table, which mixes steps; import mlp.csv and all_reduce.csv")
    else:
        rows = _linear(frame, path, dtype)
    if rows.empty:
        raise RequestError(f"{path}: no row is left ({', '.join(dropped)}); nothing to import")
    rows = rows.assign(dtype=dtype, framework=FRAMEWORK)
    return Parsed(frame=complete(rows), unit=UNIT, rows=len(frame), dropped=dropped)


def _linear(frame: pd.DataFrame, path: Path, dtype: str) -> pd.DataFrame:
    times = {name: f"time_stats.{name}.median" for name in LINEAR}
    require(frame, (*times.values(), *SIZES), path, "a Vidur table of linear layers")
    sizes = {name: numbers(frame[name]) for name in SIZES if name != "use_gated_mlp"}
    gated = words(frame["use_gated_mlp"]).str.lower().isin(("true", "1", "1.0")).to_numpy()
    shapes = _shapes(sizes, gated, BITS[dtype] / 8)
    parts = [
        pd.DataFrame(
            {"op": name, "time_s": numbers(frame[column]) * SECONDS, "row": np.arange(len(frame)), **shapes[name]}
        )
        for name, column in times.items()
    ]
    return pd.concat(parts, ignore_index=True)


def _shapes(sizes: dict[str, Floats], gated: np.ndarray, width: float) -> dict[str, dict[str, object]]:
    """Kind and sizes of each of `LINEAR`; an element has `width` bytes."""
    tokens, hidden, ranks = sizes["num_tokens"], sizes["n_embd"], sizes["num_tensor_parallel_workers"]
    with np.errstate(divide="ignore", invalid="ignore"):  # the cleaning drops zero sizes
        head = hidden / sizes["n_head"]
        heads = sizes["n_head"] / ranks
        kv_heads = np.maximum(sizes["n_kv_head"] / ranks, 1)
        inner = sizes["n_expanded_embd"] / ranks
        up = np.where(gated, 2.0, 1.0)
    wide, turned = tokens * hidden, tokens * (heads + kv_heads) * head
    norm = _stream("norm", wide, wide, wide, width, 4) | {"tokens": tokens, "hidden": hidden}
    return {
        "emb": _stream("embedding", wide, wide, wide, width, 0) | {"tokens": tokens, "hidden": hidden, "gathered": 1.0},
        "input_layernorm": norm,
        "attn_pre_proj": _product(tokens, (heads + 2 * kv_heads) * head, hidden),
        "attn_rope": _stream("pointwise", turned, turned, turned, width, 3),
        "attn_post_proj": _product(tokens, hidden, heads * head),
        "post_attention_layernorm": norm,
        "mlp_up_proj": _product(tokens, up * inner, hidden),
        "mlp_act": _stream("pointwise", tokens * inner, up * tokens * inner, tokens * inner, width, 5),
        "mlp_down_proj": _product(tokens, hidden, inner),
        "add": _stream("pointwise", wide, 2 * wide, wide, width, 1),
    }


def _product(m: Floats, n: Floats, k: Floats) -> dict[str, object]:
    group = [f"n{columns:g} k{depth:g}" for columns, depth in zip(n, k, strict=True)]
    return {"kind": "matmul", "m": m, "n": n, "k": k, "group": group}


def _stream(kind: str, elements: Floats, read: Floats, written: Floats, width: float, flops: int) -> dict[str, object]:
    """Sizes of a streaming kernel that reads and writes so many elements, with `flops` for each one written."""
    return {
        "kind": kind,
        "elements": elements,
        "bytes_read": read * width,
        "bytes_written": written * width,
        "flops": elements * flops,
        "kernels": 1.0,
        "group": [f"elements{count:.0f}" if np.isfinite(count) else "?" for count in elements],
    }


def _collectives(frame: pd.DataFrame, path: Path, dropped: dict[str, int]) -> pd.DataFrame:
    names = ("time_stats.all_reduce.median", "num_workers", "size", "collective", "devices_per_node")
    require(frame, names, path, "a Vidur table of collectives")
    op = words(frame["collective"])
    rows = pd.DataFrame(
        {
            "kind": "collective",
            "op": op,
            "time_s": numbers(frame[names[0]]) * SECONDS,
            "ranks": numbers(frame["num_workers"]),
            "bytes": numbers(frame["size"]),
            "row": np.arange(len(frame)),
            "per_node": numbers(frame["devices_per_node"]),
        }
    )
    placed = zip(op, rows["ranks"], rows["per_node"], strict=True)
    rows["group"] = [f"{name} ranks{ranks:g} a node{near:g}" for name, ranks, near in placed]
    return without(rows, op != "all_reduce", "unknown operation", dropped)
