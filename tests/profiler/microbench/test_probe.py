"""Probes on the real CPU: what is traced is what runs, and each kernel's rows say what it was."""

import pytest
import torch

from profiler.microbench.arena import Arena
from profiler.microbench.probe import PASSES, Probe, measure_probe, traced
from profiler.microbench.probe_kernels import ATTENTION, MOST_SETS, STREAMING, Kernel, kernel_of
from profiler.microbench.probe_table import operand_bytes, probe_kernels
from roofline.laws.kinds import KernelShape

CPU = torch.device("cpu")
CACHE = 1 << 15
"""So small that sets of operands do not stay in it."""
PRODUCT = KernelShape("matmul", "float32", "aten::mm", {"m": 8, "n": 32, "k": 16})
SINGLE = KernelShape("matvec", "float32", "aten::addmm", {"m": 1, "n": 32, "k": 16})
HEADS = {"batch": 2, "heads": 4, "kv_heads": 2, "head_dim": 8}
PREFILL = KernelShape("prefill_attention", "float32", ATTENTION, {**HEADS, "query": 6, "kv": 6})
DECODE = KernelShape("decode_attention", "float32", ATTENTION, {**HEADS, "query": 1, "kv": 6})
STREAM = KernelShape("aten::silu", "float32", "aten::silu", {"rows": 4, "width": 64})


def rows_of(*shapes: KernelShape) -> tuple[list[dict[str, object]], dict[str, str]]:
    probed = probe_kernels(shapes, CPU, CACHE, limit_bytes=1 << 24, versions={"torch": torch.__version__})
    assert probed.table is not None
    return probed.table.table.to_pylist(), probed.failed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", STREAMING)
def test_every_operator_is_traced_under_its_name(op: str, dtype: str) -> None:
    probe = Probe([KernelShape(op, dtype, op, {"rows": 4, "width": 64})], CPU, 1)
    assert [one.name for one in traced(probe, "cpu").ops if one.path] == [op]
    probe.results = []
    probe()
    assert len(probe.results) == 1
    assert torch.isfinite(probe.results[0].float()).all()


def test_a_table_has_each_kernel_cold_and_warm_with_its_sizes() -> None:
    rows, failed = rows_of(PRODUCT, SINGLE, STREAM, PREFILL, DECODE)
    assert failed == {}
    by_kind: dict[object, list[dict[str, object]]] = {}
    for row in rows:
        by_kind.setdefault(row["kind"], []).append(row)
        assert isinstance(row["time_s"], float)
        assert row["time_s"] > 0
    assert {kind: len(found) for kind, found in by_kind.items()} == {
        "matmul": 2, "matvec": 2, "aten::silu": 1, "prefill_attention": 2, "decode_attention": 2,
    }  # fmt: skip
    cold, warm = by_kind["matmul"]
    assert cold["cold"] > 0.5 > warm["cold"] == 0  # type: ignore[operator]
    assert (cold["m"], cold["n"], cold["k"], cold["group"]) == (8, 32, 16, "n32 k16")
    assert by_kind["matvec"][0]["bytes_read"] == 4 * (32 * 16 + 16 + 32)
    assert by_kind["aten::silu"][0]["bytes_written"] == 4 * 4 * 64
    assert by_kind["prefill_attention"][0]["context"] == 0
    assert by_kind["decode_attention"][0]["kv"] == 6


def test_a_kernel_that_cannot_be_had_costs_no_other() -> None:
    unknown = KernelShape("aten::nothing", "float32", "aten::nothing", {"rows": 1, "width": 1})
    odd = KernelShape("grouped_matmul", "float32", "aten::_grouped_mm", {"batch": 2, "m": 3, "n": 5, "k": 7})
    rows, failed = rows_of(unknown, odd, PRODUCT)
    assert [row["kind"] for row in rows] == ["matmul"] * 2
    assert "no kernel for aten::nothing" in failed["kernel.aten::nothing.float32"]
    assert "kernel.aten::_grouped_mm.float32" in failed  # strides that are no multiple of 16 bytes


def test_a_call_that_takes_too_long_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiler.microbench.probe.LONGEST_CALL_S", 1e-12)
    probe = Probe([PRODUCT], CPU, 1)
    assert probe.shapes == ()
    assert "a call takes" in probe.failed[0][1]


def test_kernels_that_take_long_have_fewer_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    many = Probe([PRODUCT], CPU, 1 << 16)
    monkeypatch.setattr("profiler.microbench.probe.LONGEST_S", 1e-12)
    (few,) = Probe([PRODUCT], CPU, 1 << 16).kernels
    assert few.turns == 1 < many.kernels[0].turns  # type: ignore[operator, union-attr]


def test_batches_and_experts_are_rows_of_their_own_laws() -> None:
    batch = KernelShape("batched_matmul", "float32", "aten::bmm", {"batch": 4, "m": 8, "n": 16, "k": 8})
    experts = KernelShape("grouped_matmul", "float32", "aten::_grouped_mm", {"batch": 3, "m": 2, "n": 32, "k": 32})
    rows, failed = rows_of(batch, experts)
    assert failed == {}
    found = {str(row["kind"]): row for row in rows}
    for shape in (batch, experts):
        assert {name: found[shape.kind][name] for name in shape.dims} == shape.dims


def test_passes_of_later_visits_are_added() -> None:
    first = measure_probe(Probe([PRODUCT], CPU, 1), CPU)
    second = measure_probe(Probe([PRODUCT], CPU, 1), CPU, first)
    assert second.graph is first.graph
    assert second.passes[: len(first.passes)] == first.passes
    assert len(second.passes) == 2 * len(first.passes) == 2 * PASSES


def test_operands_are_as_large_as_they_are_said_to_be() -> None:
    kernel = kernel_of(PRODUCT, Arena(CPU, torch.float32))
    assert operand_bytes(PRODUCT) == sum(one.nbytes for operands in next(kernel._sets()) for one in operands)
    assert kernel.sets == 1


def test_small_streams_take_turns_after_a_sweep_and_others_run_by_themselves() -> None:
    small = [KernelShape(op, "float32", op, {"rows": 1, "width": 8}) for op in ("aten::neg", "aten::exp")]
    probe = Probe([PRODUCT, *small], CPU, 1 << 20)
    paths = [op.path for op in traced(probe, "cpu").ops]
    turns = probe._groups[0][0].turns
    assert paths[: 3 * turns] == ["", "kernels.1", "kernels.2"] * turns
    assert set(paths[3 * turns :]) == {"kernels.0"}


def test_sets_of_operands_fill_the_bytes_that_are_asked_for_within_reason() -> None:
    each = operand_bytes(PRODUCT) + 4 * 8 * 32

    def kernel(rotated: int) -> Kernel:
        return kernel_of(PRODUCT, Arena(CPU, torch.float32), rotated)

    assert kernel(10 * each).sets == 10
    assert kernel(1 << 40).sets == MOST_SETS
    weights = {id(one) for _, own in kernel(3 * each)._sets() for one in own}
    assert len(weights) == 3


def test_weights_that_take_turns_are_cold_and_activations_are_not() -> None:
    rows, _ = rows_of(PRODUCT)
    cold = max(row["cold"] for row in rows)  # type: ignore[type-var]
    assert cold == pytest.approx(32 * 16 / (32 * 16 + 8 * 16), abs=0.05)
