"""Small made-up tables in the exact columns of other tools; times follow a made-up device, so that units make sense."""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

RATE, BANDWIDTH, LAUNCH = 5e14, 2e12, 4e-6
"""Of the made-up device: FLOP/s, bytes/s, seconds."""

COMMON: Mapping[str, Any] = {"framework": "VLLM", "version": "0.24.0", "device": "NVIDIA H200"}


def gemm(**more: Any) -> pd.DataFrame:
    """24 products of two dtypes."""
    rows = []
    for dtype, m, (n, k) in product(
        ("bfloat16", "fp8_block"), (1, 64, 4096), ((4096, 4096), (1024, 4096), (4096, 512), (8192, 64))
    ):
        seconds = LAUNCH + 2 * m * n * k / RATE + 2 * (m * k + n * k + m * n) / BANDWIDTH
        about = {"op_name": "gemm", "kernel_source": "linear", "gemm_dtype": dtype, "m": m, "n": n, "k": k}
        rows.append({**COMMON, **about, "latency": seconds * 1e3} | more)
    return pd.DataFrame(rows)


def attention(op: str, **more: Any) -> pd.DataFrame:
    """Eight calls of "context_attention" or "generation_attention", without and with a window, in two cache dtypes."""
    rows = []
    for cached, window, length in product(("bfloat16", "fp8"), (0, 128), (256, 2048)):
        isl, step = (length, 0) if op == "context_attention" else (1, length - 1)
        rows.append(
            {
                **COMMON, "op_name": op, "kernel_source": "vllm_flash_attn_fa3", "batch_size": 4, "isl": isl,
                "num_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "beam_width": 1, "attn_dtype": "bfloat16",
                "kv_cache_dtype": cached, "step": step, "window_size": window,
                "latency": 0.2 if op == "context_attention" else 0.05,
            } | more
        )  # fmt: skip
    return pd.DataFrame(rows)


def moe(**more: Any) -> pd.DataFrame:
    """Four calls of grouped experts."""
    rows = []
    for distribution, tokens in product(("balanced", "power_law_1.2"), (1, 1024)):
        rows.append(
            {
                **COMMON, "op_name": "moe", "kernel_source": "triton", "moe_dtype": "int4_wo", "num_tokens": tokens,
                "hidden_size": 2048, "inter_size": 768, "topk": 8, "num_experts": 128, "moe_tp_size": 1,
                "moe_ep_size": 4, "distribution": distribution, "latency": 0.3,
            } | more
        )  # fmt: skip
    return pd.DataFrame(rows)


def nccl(**more: Any) -> pd.DataFrame:
    """Six collectives."""
    rows = []
    for op, size in product(("all_reduce", "alltoall", "all_gather"), (512, 1 << 20)):
        about = {"op_name": op, "kernel_source": "NCCL", "nccl_dtype": "half", "num_gpus": 4, "message_size": size}
        rows.append({**COMMON, "framework": "TRTLLM", "version": "2.29.2", **about, "latency": 0.02} | more)
    return pd.DataFrame(rows)


LINEAR = ("emb", "input_layernorm", "attn_pre_proj", "attn_rope", "attn_post_proj", "post_attention_layernorm",
          "mlp_up_proj", "mlp_act", "mlp_down_proj", "add")  # fmt: skip


def vidur_linear(tokens: tuple[int, ...] = (64, 64, 128), ranks: int = 2) -> pd.DataFrame:
    """Linear layers of a model of width 1024, 16 heads, 4 of keys and values, gated, 2816 inner."""
    rows = []
    for place, count in enumerate(tokens):
        times = {f"time_stats.{name}.{of}": 0.02 + 0.001 * place for name in LINEAR for of in ("min", "median", "std")}
        model = {"n_head": 16, "n_kv_head": 4, "n_embd": 1024, "n_expanded_embd": 2816, "vocab_size": 32000}
        rows.append(
            {**times, **model, "use_gated_mlp": True, "num_tokens": count, "num_tensor_parallel_workers": ranks}
        )
    return pd.DataFrame(rows)


def vidur_all_reduce() -> pd.DataFrame:
    """Two sizes, the second one twice."""
    rows = [(0.02, 2048), (0.05, 1 << 20), (0.07, 1 << 20)]
    about = {"rank": 0, "num_workers": 4, "collective": "all_reduce", "devices_per_node": 4, "max_devices_per_node": 8}
    return pd.DataFrame([{"time_stats.all_reduce.median": time, "size": size, **about} for time, size in rows])


def layers() -> pd.DataFrame:
    """Three modules at two token counts."""
    rows = [(name, tokens, 0, 1, 5000 * tokens) for name in ("q_proj", "input_layernorm", "attn") for tokens in (2, 8)]
    return pd.DataFrame(rows, columns=["layer_name", "input", "kv_cache", "tp_size", "latency(ns)"])


def saved(frame: pd.DataFrame, path: Path) -> Path:
    """The table on disk, as parquet or as CSV by the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return path
