"""The eager models of a calibration, on the real CPU: narrow, so that they take no time."""

import math
from types import SimpleNamespace

import pytest
import torch

from profiler.microbench import eager
from profiler.microbench.eager import Eager, measure_eager, steps_of
from profiler.microbench.probe_table import eager_rows, probe_kernels
from roofline.law_inputs import gap_dims

CPU = torch.device("cpu")
CACHE = 64 * 64 * 4 * 16.0
"""Of which a sixteenth is a weight of 64 × 64."""


@pytest.fixture(scope="module")
def measured() -> tuple[Eager, ...]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eager, "PASSES", 2)
        return measure_eager(CPU, "float32", steps_of(CPU, "float32", CACHE), 1e12)


def test_passes_are_a_decode_and_prefills_of_both_sizes(measured: tuple[Eager, ...]) -> None:
    tokens = [one.graph.workload.query_tokens for one in measured]
    assert tokens == [1, *eager.PROMPTS] * 2
    narrow, wide = (sum(op.matrix_flops for op in measured[i].graph.ops if op.kind == "matmul") for i in (0, 3))
    assert wide == pytest.approx(4 * 3 / 8 * narrow, rel=0.1)  # twice as wide, three layers of eight
    for one in measured:
        assert len(one.graph.ops) == len(one.time_s) == len(one.gap_s)
        assert min(one.time_s) >= 0 and math.fsum(one.gap_s) > 0


def test_operations_and_gaps_are_rows_and_alike_ones_one(measured: tuple[Eager, ...]) -> None:
    rows = [row for one in measured for row in eager_rows(one, CACHE)]
    kinds = {row["kind"] for row in rows}
    assert kinds >= {"aten::mul", "aten::mean", "aten::cat", "matmul", "matvec", "decode_attention", "host_gap"}
    assert len(rows) < sum(len(one.graph.ops) for one in measured) / 2
    gaps = [row for row in eager_rows(measured[0], CACHE) if row["kind"] == "host_gap"]
    ops = measured[0].graph.ops
    modules = gap_dims(ops)["modules"]
    assert {row["modules"] for row in gaps} == set(modules[1:].tolist()) and len(gaps) == len(set(modules[1:].tolist()))
    none = [
        gap_s for gap_s, entered in zip(measured[0].gap_s[1:], modules[1:], strict=True) if entered == 0 and gap_s > 0
    ]
    assert next(row["time_s"] for row in gaps if row["modules"] == 0) == pytest.approx(sum(none) / len(none))


def test_prefills_that_a_slow_dtype_would_take_long_for_are_left_out() -> None:
    (narrow, _) = steps_of(CPU, "float32", CACHE)
    work = 2 * sum(one.numel() for one in narrow.model.parameters())
    assert eager.prompts_of(narrow, 1e12) == (1, *eager.PROMPTS)
    assert eager.prompts_of(narrow, work * 16 / eager.LONGEST_S) == (1, 16)
    assert eager.prompts_of(narrow, 1.0) == (1,)


def test_a_table_of_visits_has_the_rows_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "PASSES", 2)
    monkeypatch.setattr(eager, "PROMPTS", ())
    steps = steps_of(CPU, "float32", CACHE)
    again = measure_eager(CPU, "float32", steps, 1e12, measure_eager(CPU, "float32", steps, 1e12))
    assert [len(one.taken) for one in again] == [2, 2]
    readings = iter(range(1, 99))
    level = SimpleNamespace(time=lambda: {"memory": float(next(readings))})
    probed = probe_kernels([], CPU, CACHE, limit_bytes=1.0, eager={"float32": 1e12}, versions={}, reference=level)
    assert probed.failed == {}
    assert probed.reference == {"memory": [1.0, 2.0]}  # one for each visit
    assert probed.table is not None
    assert len(probed.table) == len([row for one in again for row in eager_rows(one, CACHE)])
