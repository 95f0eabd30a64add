"""Vidur: mlp.csv and attention.csv of the models that it knows, from predicted times of kernels, in milliseconds.

Its predictor (execution_time_predictor/sklearn_execution_time_predictor.py) keeps the rows of a model's sizes and its
tensor-parallel degree, and fits the medians to num_tokens, or to kv_cache_size and prefill_chunk_size. A prediction has
no spread: min, max, mean and median are the same, and std is 0. The reshapes of attention are views, and left out.
"""

from dataclasses import asdict, dataclass

import numpy as np

from calibrate.exchange import op_tables
from calibrate.exchange.figures import Export, File, Ledger, Source, csv_text, sidecar
from roofline.laws.law import Floats

TO_MS = 1e3
ELEMENT = 2
"""Vidur profiles 16-bit models."""
TOKENS = (*range(1, 8), *range(8, 128, 8), *range(128, 1024, 64), *range(1024, 4097, 256))
CACHED = (0, *range(64, 512, 64), *range(512, 4096, 256), 4096, 6144, 8192, 12288, 16384)
CHUNKS = (1, 16, 32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
DECODE_BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
PARALLEL = (1, 2, 4, 8)
BLOCK = 16
LONGEST = 16384
BACKEND = "AttentionBackend.FLASHINFER"


@dataclass(frozen=True, slots=True)
class Model:
    """Sizes of a model as Vidur's config/model_config.py has them, by which it finds its rows; its columns."""

    n_head: int
    n_kv_head: int
    n_embd: int
    n_expanded_embd: int
    vocab_size: int
    use_gated_mlp: bool = True
    """True for all of these models: `mlp_up_proj` computes the gate in the same product."""

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head


MODELS = {
    "meta-llama/Llama-2-7b-hf": Model(32, 32, 4096, 11008, 32768),
    "meta-llama/Llama-2-70b-hf": Model(64, 8, 8192, 28672, 32768),
    "codellama/CodeLlama-34b-Instruct-hf": Model(64, 8, 8192, 22016, 32768),
    "internlm/internlm2-20b": Model(48, 8, 6144, 16384, 92544),
    "Qwen/Qwen-72B": Model(64, 64, 8192, 24576, 152064),
}
"""Maps a model's folder to its sizes."""


def write(source: Source) -> Export:
    """Make <model>/mlp.csv and <model>/attention.csv, each with its provenance."""
    ledger = Ledger(source, "Vidur")
    ledger.sixteen_bit()
    ledger.bandwidth()
    ledger.leave_out("time_stats.attn_input_reshape, attn_output_reshape", "views; Vidur does not read them")
    ledger.leave_out("all_reduce.csv, send_recv.csv", "not exported; tensor parallelism needs them measured")
    provenance = ledger.provenance(
        folded="nothing: times in ms",
        valid=f"{TOKENS[0]} to {TOKENS[-1]} tokens; KV caches of 0 to {CACHED[-1]}, chunks to {CHUNKS[-1]}, "
        f"batches to {DECODE_BATCHES[-1]}, tensor parallel {', '.join(map(str, PARALLEL))}",
        priced=True,
    )
    files: list[File] = []
    for name, model in MODELS.items():
        for kind, table in (("mlp", _mlp), ("attention", _attention)):
            parts = [table(source, ledger.sixteen, model, parallel) for parallel in PARALLEL]
            whole = {column: np.concatenate([part[column] for part in parts]) for column in parts[0]}
            path = f"{name}/{kind}.csv"
            files += [File.text(path, csv_text(whole)), sidecar(path, provenance)]
    return Export(tuple(files), ledger.left_out)


Rows = dict[str, np.ndarray]


def _mlp(source: Source, dtype: str, model: Model, parallel: int) -> Rows:
    t = np.array(TOKENS, dtype=float)
    hidden, wide = model.n_embd, model.n_expanded_embd // parallel
    heads, kv = model.n_head * model.head_dim // parallel, model.n_kv_head * model.head_dim // parallel
    norm = _moved(t * hidden, t * hidden)
    kernels: dict[str, tuple[str, op_tables.Sizes]] = {
        "emb": ("pointwise", _moved(t * hidden / parallel, t * hidden)),
        "input_layernorm": ("pointwise", norm),
        "attn_pre_proj": ("matmul", {"m": t, "n": heads + 2 * kv, "k": hidden}),
        "attn_rope": ("pointwise", _moved(t * (heads + kv), t * (heads + kv))),
        "attn_post_proj": ("matmul", {"m": t, "n": hidden, "k": heads}),
        "post_attention_layernorm": ("pointwise", norm),
        "mlp_up_proj": ("matmul", {"m": t, "n": 2 * wide, "k": hidden}),
        "mlp_act": ("pointwise", _moved(2 * t * wide, t * wide)),
        "mlp_down_proj": ("matmul", {"m": t, "n": hidden, "k": wide}),
        "add": ("pointwise", _moved(2 * t * hidden, t * hidden)),
    }
    rows: Rows = {}
    for name, (kind, dims) in kernels.items():
        rows |= _stats(name, source.price(kind, dims, dtype))
    rows |= {name: np.full(t.shape, value) for name, value in asdict(model).items()}
    return {**rows, "num_tokens": t.astype(int), "num_tensor_parallel_workers": np.full(t.shape, parallel)}


def _attention(source: Source, dtype: str, model: Model, parallel: int) -> Rows:
    """Prefill rows: one sequence, a chunk after what is cached. Decode rows: chunk 0, the new token after the cache."""
    prefill = op_tables.columns(batch=(1,), cached=CACHED, chunk=CHUNKS)
    prefill = op_tables.kept(prefill, prefill["cached"] + prefill["chunk"] <= LONGEST)
    decode = op_tables.columns(batch=DECODE_BATCHES, cached=tuple(c for c in CACHED if c), chunk=(0,))
    decode = op_tables.kept(decode, decode["cached"] < LONGEST)
    layout = {
        "heads": model.n_head // parallel,
        "kv_heads": model.n_kv_head // parallel,
        "head_dim": model.head_dim,
        "window": 0,
        "kv_bytes": ELEMENT,
    }
    chunks: op_tables.Sizes = {
        **layout,
        "batch": prefill["batch"],
        "query": prefill["chunk"],
        "context": prefill["cached"],
    }
    steps: op_tables.Sizes = {**layout, "batch": decode["batch"], "kv": decode["cached"] + 1}
    nowhere_p, nowhere_d = (np.full(part["batch"].shape, np.nan) for part in (prefill, decode))
    shapes = {name: np.concatenate([prefill[name], decode[name]]) for name in prefill}
    saved = 2.0 * np.maximum(shapes["chunk"], shapes["batch"]) * (model.n_kv_head * model.head_dim // parallel)
    prefill_s = source.price("prefill_attention", chunks, dtype)
    decode_s = source.price("decode_attention", steps, dtype)
    rows = _stats("attn_kv_cache_save", source.price("pointwise", _moved(saved, saved), dtype))
    rows |= _stats("attn_prefill", np.concatenate([prefill_s, nowhere_d]))
    rows |= _stats("attn_decode", np.concatenate([nowhere_p, decode_s]))
    about = {
        "n_embd": model.n_embd,
        "n_q_head": model.n_head,
        "n_kv_head": model.n_kv_head,
        "block_size": BLOCK,
        "num_tensor_parallel_workers": parallel,
        "max_model_len": LONGEST,
        "attention_backend": BACKEND,
    }
    rows |= {name: np.full(saved.shape, value) for name, value in about.items()}
    return {
        **rows,
        "batch_size": shapes["batch"],
        "prefill_chunk_size": shapes["chunk"],
        "kv_cache_size": shapes["cached"],
        "is_prefill": shapes["chunk"] > 0,
    }


def _moved(read: Floats, written: Floats) -> op_tables.Sizes:
    """Bytes of a streaming kernel that reads and writes so many elements."""
    return {"bytes_read": ELEMENT * read, "bytes_written": ELEMENT * written}


def _stats(name: str, seconds: Floats) -> Rows:
    ms = seconds * TO_MS
    flat = dict.fromkeys(("min", "max", "mean", "median"), ms)
    return {f"time_stats.{name}.{stat}": column for stat, column in {**flat, "std": 0 * ms}.items()}
