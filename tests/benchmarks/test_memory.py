"""Memory of a pass, predicted from a trace on `meta`, beside what torch allocates in the real one on the CPU.

Prints figures and judges nothing. Run: ``python -m pytest -s tests/benchmarks/test_memory.py``
"""

import pytest
from memory_oracle import FAMILIES, allocated, predicted

from roofline.graph.memory import footprint
from roofline.workload import Workload

SHAPES = ((4, 64, 0), (4, 1, 128), (4, 32, 64), (1, 256, 0), (2, 200, 40), (16, 1, 500))
"""Batch, query and context tokens."""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_peak_against_allocations(name: str, attn: str, dtype: str) -> None:
    if name == "mamba":
        if attn == "eager":
            pytest.skip("it has no attention to choose")
        attn = "default"
    for batch, query, context in SHAPES:
        if name == "gpt2" and query + context > 256:  # its table of positions
            continue
        workload = Workload(batch=batch, query_tokens=query, context_tokens=context, dtype=dtype)
        memory = footprint(predicted(name, workload, attn, "dynamic"))
        real = allocated(name, workload, attn, "dynamic")
        beside_weights = memory.peak - memory.weights
        print(
            f"\n{name:12} {attn:7} {workload.key:28} weights {memory.weights / 1e6:7.2f} MB, cache "
            f"{memory.kv_cache / 1e6:6.2f}, peak beside weights {beside_weights / 1e6:7.2f} predicted, "
            f"{real.peak_bytes / 1e6:7.2f} allocated: {beside_weights / real.peak_bytes:.4f}",
            end="",
        )
