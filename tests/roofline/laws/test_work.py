"""Work of kernels: by hand, by counting, and as the tracer counts it in real modules."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from law_checks import FACTS
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from profiler.models.trace import trace
from roofline.graph.op import attention_pairs
from roofline.laws.kinds import KINDS, work_of
from roofline.laws.law import Floats
from roofline.laws.work import Work, causal_pairs, datasheet_s
from roofline.price import Prepared
from roofline.price_by_law import law_inputs
from roofline.workload import Workload


def sizes(**named: float) -> dict[str, Floats]:
    return {name: np.array([float(size)]) for name, size in named.items()}


HEADS = {"batch": 2, "heads": 8, "kv_heads": 2, "head_dim": 64}


class Given:
    """Tensors as the inputs of one call."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def call(self, model: nn.Module) -> Tensor:
        return model(*self.tensors)

    def restore(self) -> None:
        """A pass leaves its inputs as they are."""

    def cache_tensors(self) -> Iterator[tuple[int, str, Tensor]]:
        return iter(())


class Attention(nn.Module):
    """One call of attention, as a model's module makes it."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        causal = query.shape[-2] > 1
        return scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=True)


class Product(nn.Module):
    """Products of activations with each other."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.bmm(a, b)


class Scaled(nn.Module):
    """A product in 8 bits, with an output in 16."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        one = torch.ones((), device=a.device)
        return torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16)


def attended(query: int, kv: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    def made(heads: int, tokens: int) -> Tensor:
        return torch.empty(HEADS["batch"], heads, tokens, HEADS["head_dim"], dtype=dtype, device="meta")

    return made(HEADS["heads"], query), made(HEADS["kv_heads"], kv), made(HEADS["kv_heads"], kv)


def linear(rows: int, columns: int, depth: int, dtype: torch.dtype) -> tuple[nn.Module, tuple[Tensor, ...]]:
    made = nn.Linear(depth, columns, bias=False, dtype=dtype, device="meta")
    return made, (torch.empty(rows, depth, dtype=dtype, device="meta"),)


def eight_bits() -> tuple[nn.Module, tuple[Tensor, ...]]:
    a, b = (torch.empty(rows, 256, dtype=torch.float8_e4m3fn, device="meta") for rows in (48, 64))
    return Scaled(), (a, b)


def test_flops_and_bytes_are_those_of_the_tracer() -> None:
    """The same arithmetic, and each distinct element read or written once at its own width."""
    cases = {
        "product": linear(24, 96, 64, torch.bfloat16),
        "product in 32 bits": linear(24, 96, 64, torch.float32),
        "product with one row": linear(1, 96, 64, torch.float32),
        "many products": (Product(), tuple(torch.empty(3, 16, 16, device="meta") for _ in range(2))),
        "product in 8 bits": eight_bits(),
        "prefill": (Attention(), attended(40, 40, torch.bfloat16)),
        "prefill in 32 bits": (Attention(), attended(40, 40, torch.float32)),
        "decode": (Attention(), attended(1, 33, torch.bfloat16)),
        "decode in 32 bits": (Attention(), attended(1, 33, torch.float32)),
        "pointwise": (nn.SiLU(), (torch.empty(5, 7, device="meta"),)),
        "norm": (nn.LayerNorm(64, device="meta"), (torch.empty(5, 64, device="meta"),)),
    }
    for name, (module, tensors) in cases.items():
        workload = Workload(batch=1, query_tokens=1, context_tokens=0, dtype="float32")
        graph = trace(module, Given(*tensors), workload, name=name, target="cuda", options={})
        op, asked = next(
            (op, asked)
            for op, asked in zip(graph.ops, law_inputs(Prepared(graph), 1e9), strict=True)
            if asked is not None and sum(access.bytes for access in op.reads) > 4
        )
        scale = 4 if name == "product in 8 bits" else 0  # bytes, of both inputs
        moved = sum(access.bytes for access in (*op.reads, *op.writes)) - scale
        for kind in (kind for kind in asked.kinds if kind in KINDS):
            work = work_of(kind, {key: np.array([size]) for key, size in asked.dims.items()}, asked.dtype)
            assert work.bytes == pytest.approx(moved), (name, kind)
            if op.matrix_flops:
                assert work.flops == pytest.approx(op.matrix_flops), (name, kind)


def test_causal_pairs_by_counting() -> None:
    for query, context, window in ((7, 0, 0), (7, 0, 3), (7, 5, 3), (7, 5, 9), (1, 20, 8), (1, 20, 0), (4, 2, 100)):
        first = [max(context + i + 1 - (window or 10**9), 0) for i in range(query)]
        seen = [context + i + 1 - start for i, start in enumerate(first)]
        pairs, keys = causal_pairs(*(np.array([float(size)]) for size in (query, context, window)))
        assert (pairs.tolist(), keys.tolist()) == ([sum(seen)], [context + query - first[0]]), (query, context, window)
        assert pairs[0] == attention_pairs(query, context, True, window or None)


def test_work_of_a_product_and_its_datasheet_time() -> None:
    dims = sizes(m=4, n=8, k=16)
    work = work_of("matmul", dims, "bfloat16")
    assert work_of("matmul_row_major", dims, "bfloat16").flops == work.flops
    assert (work.flops[0], work.bytes[0]) == (1024, 2 * (64 + 128) + 2 * 32)
    assert work_of("matmul", dims, "float8_e4m3fn").bytes[0] == 64 + 128 + 2 * 32
    assert work_of("matmul", dims, "int4_wo").bytes[0] == 2 * 64 + 128 / 2 + 2 * 32  # weights alone are in 4 bits
    assert datasheet_s(work, FACTS, "bfloat16")[0] == pytest.approx(448 / 3e12)


def test_the_datasheet_alone_is_the_longest_of_three() -> None:
    """With 900 TFLOP/s (FP8: twice as many), 3 TB/s and links of 450 GB/s each of these works takes one second."""
    sides = Work(flops=np.array([900e12, 1, 1]), bytes=np.array([1, 3e12, 1]), link_bytes=np.array([1, 1, 450e9]))
    assert datasheet_s(sides, FACTS, "bfloat16") == pytest.approx([1, 1, 1])
    assert datasheet_s(sides, FACTS, "float8_e4m3fn") == pytest.approx([0.5, 1, 1])


def test_work_of_attention_counts_unmasked_pairs() -> None:
    dims = sizes(batch=1, heads=4, kv_heads=2, query=3, context=2, head_dim=8, window=3, kv_bytes=2)
    work = work_of("prefill_attention", dims, "bfloat16")
    assert work.flops[0] == 4 * 4 * 8 * (3 + 3 + 3)
    assert work.bytes[0] == 8 * (2 * 2 * 2 * 5 + 2 * 2 * 4 * 3)
    work = work_of("decode_attention", sizes(batch=2, heads=4, kv_heads=2, kv=10, head_dim=8, window=4, kv_bytes=1),
                   "bfloat16")  # fmt: skip
    assert work.flops[0] == 4 * 2 * 4 * 8 * 4
    assert work.bytes[0] == 2 * 8 * (2 * 1 * 2 * 4 + 2 * 2 * 4)


def test_a_kind_whose_work_is_not_known_is_refused() -> None:
    for kind in ("scan", "host_gap"):
        with pytest.raises(ValueError, match=f"'{kind}'"):
            work_of(kind, {}, "bfloat16")
