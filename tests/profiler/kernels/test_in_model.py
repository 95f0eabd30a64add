"""The eager models of a calibration, on the real CPU: narrow, so that they take no time."""

import math
from types import SimpleNamespace

import pytest
import torch
from watches import BUSY, Plays

from profiler.kernels import in_model
from profiler.kernels.in_model import InModel, InModelKernels, prompts_of, widths
from profiler.kernels.table import in_model_rows, probe_kernels
from profiler.microbench.host_cost import Step
from profiler.timing.turns import Watched
from roofline.host import gap_dims

CPU = torch.device("cpu")
CACHE = 64 * 64 * 4 * 16.0
"""Of which a sixteenth is a weight of 64 × 64."""


@pytest.fixture(scope="module")
def measured() -> list[InModel]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_model, "PASSES", 2)
        kernels = InModelKernels(CPU, "float32", CACHE, 1e12)
        return kernels.passes([kernels.visit(Watched(Plays()))])


def test_passes_are_a_decode_and_prefills_of_both_sizes(measured: list[InModel]) -> None:
    tokens = [one.graph.workload.query_tokens for one in measured]
    assert tokens == [1, *in_model.PROMPTS] * 2
    narrow, wide = (sum(op.matrix_flops for op in measured[i].graph.ops if op.kind == "matmul") for i in (0, 3))
    assert wide == pytest.approx(4 * 3 / 8 * narrow, rel=0.1)  # twice as wide, three layers of eight
    for one in measured:
        assert len(one.graph.ops) == len(one.time_s) == len(one.gap_s)
        assert min(one.time_s) >= 0 and math.fsum(one.gap_s) > 0


def test_operations_and_gaps_are_rows_and_alike_ones_one(measured: list[InModel]) -> None:
    rows = [row for one in measured for row in in_model_rows(one, CACHE)]
    kinds = {row["kind"] for row in rows}
    assert kinds >= {"aten::mul", "aten::mean", "aten::cat", "matmul", "matvec", "decode_attention", "host_gap"}
    assert len(rows) < sum(len(one.graph.ops) for one in measured) / 2
    gaps = [row for row in in_model_rows(measured[0], CACHE) if row["kind"] == "host_gap"]
    ops = measured[0].graph.ops
    modules = gap_dims(ops)["modules"]
    assert {row["modules"] for row in gaps} == set(modules[1:].tolist()) and len(gaps) == len(set(modules[1:].tolist()))
    none = [
        gap_s for gap_s, entered in zip(measured[0].gap_s[1:], modules[1:], strict=True) if entered == 0 and gap_s > 0
    ]
    assert next(row["time_s"] for row in gaps if row["modules"] == 0) == pytest.approx(sum(none) / len(none))


def test_prefills_that_a_slow_dtype_would_take_long_for_are_left_out() -> None:
    narrow = Step(CPU, "float32", *widths("float32", CACHE)[0])
    work = 2 * sum(parameter.numel() for parameter in narrow.model.parameters())
    assert prompts_of(narrow, 1e12) == (1, *in_model.PROMPTS)
    assert prompts_of(narrow, work * 16 / in_model.LONGEST_S) == (1, 16)
    assert prompts_of(narrow, 1.0) == (1,)


def test_a_table_of_visits_has_the_rows_of_one_and_a_disturbed_one_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_model, "PASSES", 2)
    monkeypatch.setattr(in_model, "PROMPTS", ())
    kernels = InModelKernels(CPU, "float32", CACHE, 1e12)
    watch = Plays()
    visits = [kernels.visit(Watched(watch)) for _ in range(2)]
    assert watch.ended == 2 * len(in_model.SIZES)  # one for each session
    both = kernels.passes(visits)
    assert [len(each.taken) for each in both] == [2, 2]
    readings = iter(range(1, 99))
    level = SimpleNamespace(time=lambda: {"memory": float(next(readings))})
    probed = probe_kernels(
        [],
        CPU,
        CACHE,
        limit_bytes=1.0,
        eager={"float32": 1e12},
        versions={},
        reference=level,
        watch=Plays([BUSY, BUSY]),
    )
    assert probed.failed == {}
    assert probed.reference == {"memory": [1.5, 3.5, 5.5]}  # the mean of two for each visit
    assert probed.centre_s == {}  # without peaks nothing is known of what an operation waits for
    assert probed.table is not None
    assert len(probed.table) == len([row for each in both for row in in_model_rows(each, CACHE)])
    assert [label.what for label in probed.table.sources[0].labels] == [
        "1 of 3 visits do not count: other work took 1.10 of 2 cores"
    ]
    assert probed.warning == (
        "1 of 3 visits to the calibration's kernels were disturbed, all left out: other work took 1.10 of 2 cores; "
        "for a better calibration stop other work on this machine and run again"
    )
