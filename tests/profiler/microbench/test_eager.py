"""The eager model of a calibration, on the real CPU: narrow, so that it takes no time."""

import pytest
import torch

from profiler.microbench import eager
from profiler.microbench.eager import measure_eager
from profiler.microbench.probe_table import eager_rows, probe_kernels

CACHE = 64 * 64 * 4 * 16.0
"""Of which a sixteenth is a weight of 64 × 64."""


@pytest.fixture(scope="module")
def measured() -> eager.Eager:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eager, "SESSIONS", 1)
        patch.setattr(eager, "PASSES", 2)
        return measure_eager(torch.device("cpu"), "float32", CACHE)


def test_passes_are_a_decode_and_prefills_and_the_gap_is_between_their_gaps(measured: eager.Eager) -> None:
    tokens = [graph.workload.query_tokens for graph, _ in measured.passes]
    assert tokens == [1, *eager.PROMPTS]
    assert all(len(graph.ops) == len(times) and min(times) >= 0 for graph, times in measured.passes)
    gap = measured.gap
    assert gap.low is not None and gap.high is not None and gap.low <= gap.value <= gap.high
    assert "width 64" in gap.source


def test_streaming_operations_are_rows_and_alike_ones_one(measured: eager.Eager) -> None:
    rows = eager_rows(measured, CACHE)
    assert {row["kind"] for row in rows} >= {"aten::mul", "aten::add", "aten::silu", "aten::mean", "aten::cat"}
    assert not [row for row in rows if row["kind"] in ("matmul", "matvec", "decode_attention")]
    assert len(rows) < sum(len(graph.ops) for graph, _ in measured.passes) / 3
    table, failed = probe_kernels([], torch.device("cpu"), CACHE, limit_bytes=1.0, eager=[measured], versions={})
    assert (len(table), failed) == (len(rows), [])
