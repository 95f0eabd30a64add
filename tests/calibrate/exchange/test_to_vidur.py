"""Vidur's files, read as execution_time_predictor/sklearn_execution_time_predictor.py reads them."""

import io

import export_samples as samples
import pandas as pd
import pytest
from each import each

from calibrate.exchange import to_vidur
from calibrate.exchange.figures import Export
from calibrate.exchange.to_vidur import MODELS

MLP = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj", "mlp_act", "input_layernorm")
MLP += ("post_attention_layernorm", "attn_rope", "add")
COLUMNS = ["n_head", "n_kv_head", "n_embd", "n_expanded_embd", "vocab_size", "use_gated_mlp"]
SEVENTY = "meta-llama/Llama-2-70b-hf"


@pytest.fixture(scope="module")
def export() -> Export:
    return to_vidur.write(samples.source())


def read(export: Export, path: str) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO({file.path: file.content for file in export.files}[path]))


def compute(export: Export, model: str, parallel: int) -> pd.DataFrame:
    """_load_compute_df."""
    df, sizes = read(export, f"{model}/mlp.csv").drop_duplicates(), MODELS[model]
    for column in COLUMNS:
        df = df[df[column] == getattr(sizes, column)]
    return df[df["num_tensor_parallel_workers"] == parallel]


def attention(export: Export, model: str, parallel: int) -> pd.DataFrame:
    """_load_attention_df with the derived features."""
    df, sizes = read(export, f"{model}/attention.csv").drop_duplicates(), MODELS[model]
    df = df[
        (df["n_embd"] == sizes.n_embd)
        & (df["n_q_head"] == sizes.n_head)
        & (df["n_kv_head"] == sizes.n_kv_head)
        & (df["block_size"] == 16)
        & (df["num_tensor_parallel_workers"] == parallel)
    ].copy()
    df["num_tokens"] = df[["prefill_chunk_size", "batch_size"]].max(axis=1)
    df["is_decode"] = df["prefill_chunk_size"] == 0
    return df


def time_ms(df: pd.DataFrame, name: str, **at: int) -> float:
    for column, value in at.items():
        df = df[df[column] == value]
    (found,) = df[f"time_stats.{name}.median"].unique()
    return float(found)


@each("parallel", [1, 2, 4, 8])
@each("model", MODELS)
def test_every_model_has_all_that_its_predictor_trains_on(export: Export, model: str, parallel: int) -> None:
    df = compute(export, model, parallel)
    assert df["num_tokens"].is_unique
    assert (df["num_tokens"].min(), df["num_tokens"].max()) == (1, 4096)
    for name in MLP:
        assert (df[f"time_stats.{name}.median"] > 0).all()
    rows = attention(export, model, parallel)
    decode, prefill = rows[rows["is_decode"]], rows[~rows["is_decode"]]
    assert (decode["time_stats.attn_decode.median"] > 0).all()
    assert (prefill["time_stats.attn_prefill.median"] > 0).all()
    assert (rows["time_stats.attn_kv_cache_save.median"] > 0).all()
    assert decode["time_stats.attn_prefill.median"].isna().all()
    assert (prefill["is_prefill"] & ~prefill["is_decode"]).all()


@each("parallel", [1, 8])
@each("t", [1, 64, 4096])
def test_linear_layers_take_as_long_as_ours(export: Export, t: int, parallel: int) -> None:
    df = compute(export, SEVENTY, parallel)
    h, qkv, heads, wide = 8192, (64 + 16) * 128 // parallel, 8192 // parallel, 28672 // parallel
    for name, n, k in (
        ("attn_pre_proj", qkv, h),
        ("attn_post_proj", h, heads),
        ("mlp_up_proj", 2 * wide, h),
        ("mlp_down_proj", h, wide),
    ):
        expected = samples.seconds(samples.peaks(), 2.0 * t * n * k, 2.0 * (t * k + k * n + t * n))
        assert time_ms(df, name, num_tokens=t) == pytest.approx(expected * 1e3, rel=1e-9)
    for name, elements in (
        ("input_layernorm", 2 * h),
        ("add", 3 * h),
        ("mlp_act", 3 * wide),
        ("attn_rope", 2 * (64 + 8) * 128 // parallel),
    ):
        expected = samples.seconds(samples.peaks(), 0, 2.0 * t * elements)
        assert time_ms(df, name, num_tokens=t) == pytest.approx(expected * 1e3, rel=1e-9)


def test_attention_takes_as_long_as_ours(export: Export) -> None:
    df = attention(export, SEVENTY, 4)
    heads, kv_heads, d = 16, 2, 128
    cached, chunk = 1024, 512
    pairs = chunk * cached + chunk * (chunk + 1) / 2
    bytes_ = 4.0 * d * (chunk * heads + (cached + chunk) * kv_heads)
    expected = samples.seconds(samples.peaks(), 4.0 * heads * d * pairs, bytes_)
    found = time_ms(df, "attn_prefill", batch_size=1, kv_cache_size=cached, prefill_chunk_size=chunk)
    assert found == pytest.approx(expected * 1e3, rel=1e-9)
    batch = 32
    bytes_ = 4.0 * d * batch * (heads + (cached + 1) * kv_heads)
    expected = samples.seconds(samples.peaks(), 4.0 * batch * heads * d * (cached + 1), bytes_)
    found = time_ms(df, "attn_decode", batch_size=batch, kv_cache_size=cached, prefill_chunk_size=0)
    assert found == pytest.approx(expected * 1e3, rel=1e-9)
    expected = samples.seconds(samples.peaks(), 0, 2 * 2.0 * 2 * batch * kv_heads * d)
    assert time_ms(df, "attn_kv_cache_save", batch_size=batch, kv_cache_size=cached) == pytest.approx(expected * 1e3)


def test_a_price_has_no_spread_and_the_columns_are_vidurs(export: Export) -> None:
    df = read(export, "meta-llama/Llama-2-7b-hf/mlp.csv")
    for name in ("emb", *MLP):
        assert (df[f"time_stats.{name}.std"] == 0).all()
        for stat in ("min", "max", "mean"):
            assert (df[f"time_stats.{name}.{stat}"] == df[f"time_stats.{name}.median"]).all()
    assert list(df.columns[-8:]) == [*COLUMNS, "num_tokens", "num_tensor_parallel_workers"]
