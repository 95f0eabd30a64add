"""Predictions for the tests of their reports: any graph priced by the roofline, a sweep, and a small block by hand.

Example: ``prediction(passes=(priced_pass(graph, PEAKS),))``
"""

import math
from collections.abc import Sequence
from typing import Any

from graphs import GraphBuilder

from roofline.graph.memory import Footprint, footprint
from roofline.graph.op import OpGraph, Traffic
from roofline.hardware.spec import Figure, Level, Link, Peaks
from roofline.predict.passes import OpPrediction, PassPrediction, Prediction, RequestPrediction
from roofline.price import missing_peaks, price
from roofline.workload import Workload

_SOURCE = "by hand"
PEAKS = Peaks(
    matrix={
        "bfloat16": Figure(value=989e12, source=_SOURCE),
        "float8_e4m3fn": Figure(value=1979e12, source=_SOURCE),
    },
    vector={"float32": Figure(value=67e12, source=_SOURCE)},
    levels=(
        Level(name="L2", capacity_bytes=50e6, bandwidth=Figure(value=12e12, source=_SOURCE)),
        Level(name="HBM", capacity_bytes=141e9, bandwidth=Figure(value=4.8e12, source=_SOURCE)),
    ),
    links={"nvlink": Link(bandwidth=Figure(value=450e9, source=_SOURCE))},
)
CAPACITY = 141e9
DECODE = Workload(batch=4, query_tokens=1, context_tokens=512, dtype="bfloat16")


def priced_pass(graph: OpGraph, peaks: Peaks = PEAKS, capacity: float = CAPACITY, **fields: Any) -> PassPrediction:
    """Every operation of `graph` at `peaks`, in its order."""
    found = price(graph, peaks)
    ops = tuple(
        OpPrediction(
            path=op.path,
            name=op.name,
            kind=op.kind,
            count=op.count,
            dtype=op.dtype,
            matrix_flops=op.matrix_flops * op.count,
            vector_flops=op.vector_flops * op.count,
            bytes=_times(traffic, op.count),
            link_bytes=op.link_bytes * op.count,
            time_s=None if math.isnan(time_s) else time_s * op.count,
            bound=bound,
            dims=op.dims,
            also=op.also,
            reads=tuple(access.tensor for access in op.reads),
            writes=tuple(access.tensor for access in op.writes),
        )
        for op, traffic, time_s, bound in zip(graph.ops, graph.traffic, found.time_s.tolist(), found.bound, strict=True)
    )
    memory = footprint(graph)
    whole: dict[str, Any] = {
        "workloads": (graph.workload,),
        "tensor_roles": tuple(tensor.role for tensor in graph.tensors),
        "missing": missing_peaks(graph.ops, peaks),
        "memory": memory,
        "fits": memory.peak <= capacity,
    }
    return summed(ops, **(whole | fields))


def summed(ops: Sequence[OpPrediction], **fields: Any) -> PassPrediction:
    """A pass whose totals are the sums of its operations."""
    times = [op.time_s for op in ops]
    totals = {
        "count": sum(op.count for op in ops),
        "matrix_flops": sum(op.matrix_flops for op in ops),
        "vector_flops": sum(op.vector_flops for op in ops),
        "bytes": Traffic(**{name: sum(getattr(op.bytes, name) for op in ops) for name in Traffic.model_fields}),
        "link_bytes": sum(op.link_bytes for op in ops),
        "time_s": None if None in times else sum(time for time in times if time is not None),
    }
    return PassPrediction(**({"ops": tuple(ops)} | totals | fields))


def prediction(passes: Sequence[PassPrediction], **fields: Any) -> Prediction:
    """On a device like an H200."""
    asked: dict[str, Any] = {
        "model": "llama-like",
        "hardware": "nvidia-h200-sxm",
        "peaks": "datasheet",
        "form": "fused",
        "parameters": 8_030_000_000,
        "options": {"attention": "sdpa", "cache": "dynamic"},
        "capacity_bytes": CAPACITY,
        "largest_batch": 512,
        "largest_context": 900_000,
    }
    return Prediction(**(asked | fields), passes=tuple(passes))


def block_graph(layers: int = 32, workload: Workload = DECODE) -> OpGraph:
    """A decoder's pass as fused and folded: embedding, `layers` times one block, final norm and head."""
    b = GraphBuilder(workload)
    hidden, wide, vocabulary, kv = 8192 * workload.batch, 28672 * workload.batch, 256_512, 1 << 21
    for name, size in {"table": 1 << 30, "qkv": 50 << 20, "o": 33 << 20, "up": 235 << 20, "down": 117 << 20}.items():
        b.weight(f"{name}.weight", size)
    b.weight("head.weight", 1 << 30)
    b.kv("cache", kv)
    work = {"dtype": "bfloat16"}
    b.op("embedding", reads={"ids": 8, "table.weight": hidden}, writes={"h": hidden},
         path="model.embed_tokens", **work)  # fmt: skip
    b.op("pointwise", reads={"positions": 8}, writes={"angles": 512}, path="model.rotary_emb", vector=256, **work)
    each: dict[str, Any] = {**work, "count": layers}
    at = "model.layers.0"
    b.op("matmul", reads=["h", "qkv.weight"], writes={"q": hidden, "k": 2048}, path=f"{at}.self_attn.qkv_proj",
         matrix=2e8 * workload.batch, vector=2e5, **each)  # fmt: skip
    b.op("copy", reads={"k": 2048}, writes={"cache": 4096}, path=f"{at}.self_attn", **each)
    b.op("attention", reads=["q", "cache", "angles"], writes={"a": hidden}, path=f"{at}.self_attn", matrix=8e6,
         vector=1e5, **each)  # fmt: skip
    b.op("matmul", reads=["a", "o.weight", "h"], writes={"r": hidden}, path=f"{at}.self_attn.o_proj",
         matrix=1.3e8 * workload.batch, **each)  # fmt: skip
    b.op("matmul", reads=["r", "up.weight"], writes={"u": wide}, path=f"{at}.mlp.up_proj",
         matrix=9.4e8 * workload.batch, **each)  # fmt: skip
    b.op("matmul", reads=["u", "down.weight", "r"], writes={"out": hidden}, path=f"{at}.mlp.down_proj",
         matrix=4.7e8 * workload.batch, **each)  # fmt: skip
    b.op("norm", reads=["out"], writes={"n": hidden}, path="model.norm", vector=4e4, **work)
    b.op("matmul", reads=["n", "head.weight"], writes={"logits": vocabulary}, path="lm_head",
         matrix=1e9 * workload.batch, **work)  # fmt: skip
    return b.graph()


def swept(batch: int, prompt: int, query: int = 1, capacity: float = CAPACITY) -> PassPrediction:
    """A pass of a sweep, without its operations; weights of 16 GB and a cache of 131 kB a token."""
    memory = 16e9 + 131e3 * batch * (prompt + query)
    tokens = batch * query
    time_s = max(2 * 8e9 * tokens / 989e12, memory / 4.8e12)
    return PassPrediction(
        workloads=(Workload(batch=batch, query_tokens=query, context_tokens=prompt, dtype="bfloat16"),),
        count=300,
        matrix_flops=2 * 8e9 * tokens,
        vector_flops=1e6 * tokens,
        bytes=Traffic(weight_read=16e9, kv_read=memory - 16e9),
        time_s=time_s,
        memory=Footprint(weights=16e9, kv_cache=memory - 16e9, activations=1e6 * tokens, peak=memory + 1e6 * tokens),
        fits=memory + 1e6 * tokens <= capacity,
    )


def sweep(capacity: float = CAPACITY) -> Prediction:
    """Decoding at nine batches and three contexts, and prompts of three lengths."""
    steps = [swept(batch, context, capacity=capacity) for context in (512, 4096, 32768) for batch in _powers(9)]
    prompts = [swept(1, 0, query, capacity) for query in (128, 1024, 8192)]
    return prediction((*steps, *prompts), capacity_bytes=capacity)


def request(**fields: Any) -> RequestPrediction:
    asked: dict[str, Any] = {
        "batch": 4,
        "prompt_tokens": 512,
        "output_tokens": 128,
        "ttft_s": 0.021,
        "tpot_s": 0.0042,
        "end_to_end_s": 0.554,
        "tokens_per_s": 924.0,
        "peak_bytes": 17e9,
        "fits": True,
    }
    return RequestPrediction(**(asked | fields))


def _powers(most: int) -> list[int]:
    return [2**i for i in range(most)]


def _times(traffic: Traffic, count: float) -> Traffic:
    return Traffic(**{name: getattr(traffic, name) * count for name in Traffic.model_fields})
