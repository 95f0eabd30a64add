"""Probes on the real CPU: what is traced is what runs, and each kernel's rows say what it was."""

import pytest
import torch
from watches import Plays

from profiler.kernels.family import ALIGNED, STREAMING, Arena, Storage, family_of
from profiler.kernels.measure import (
    MOST_SETS,
    PASSES,
    Kernel,
    Probe,
    ProbedKernels,
    checked_kernels,
    kernel_of,
    operand_bytes,
    traced,
)
from profiler.kernels.table import probe_kernels
from profiler.models.trace import NoInputs, trace
from profiler.timing.turns import Watched
from roofline.laws.kinds import KernelShape

CPU = torch.device("cpu")
ATTENTION = "aten::scaled_dot_product_attention"
CACHE = 1 << 15
"""So small that sets of operands do not stay in it."""
PRODUCT = KernelShape("matmul", "float32", "aten::mm", {"m": 8, "n": 32, "k": 16})
SINGLE = KernelShape("matvec", "float32", "aten::addmm", {"m": 1, "n": 32, "k": 16})
HEADS = {"batch": 2, "heads": 4, "kv_heads": 2, "head_dim": 8}
PREFILL = KernelShape("prefill_attention", "float32", ATTENTION, {**HEADS, "query": 6, "kv": 6})
DECODE = KernelShape("decode_attention", "float32", ATTENTION, {**HEADS, "query": 1, "kv": 6})
STREAM = KernelShape("aten::silu", "float32", "aten::silu", {"rows": 4, "width": 64})


def made(shape: KernelShape, rotated_bytes: int = 0) -> Kernel:
    return kernel_of(shape, Arena(CPU, torch.float32), rotated_bytes)


def first_set(kernel: Kernel) -> list[torch.Tensor]:
    return [tensor for part in kernel._sets()[0] for tensor in part]


def rows_of(*shapes: KernelShape) -> tuple[list[dict[str, object]], dict[str, str]]:
    probed = probe_kernels(
        shapes, CPU, CACHE, limit_bytes=1 << 24, versions={"torch": torch.__version__}, watch=Plays()
    )
    assert probed.table is not None
    return probed.table.table.to_pylist(), probed.failed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_operator_is_traced_under_its_name_and_has_finite_results(dtype: str) -> None:
    arena = Arena(CPU, getattr(torch, dtype), Storage(1 << 16, getattr(torch, dtype)))
    for op in STREAMING:
        kernels, failed = checked_kernels([KernelShape(op, dtype, op, {"rows": 4, "width": 64})], CPU, 1, arena)
        assert failed == [], op
        graph = traced(Probe(kernels, 1, CPU), dtype, "cpu")
        assert [each.name for each in graph.ops if each.path] == [op], op


def test_every_family_says_how_large_its_operands_are_and_knows_a_wrong_result() -> None:
    batch = KernelShape("batched_matmul", "float32", "aten::bmm", {"batch": 4, "m": 8, "n": 16, "k": 8})
    experts = KernelShape("grouped_matmul", "float32", "aten::_grouped_mm", {"batch": 3, "m": 2, "n": 32, "k": 32})
    table = KernelShape("aten::embedding", "float32", "aten::embedding", {"rows": 8, "width": 64})
    for shape in (PRODUCT, PREFILL, DECODE, batch, experts, STREAM, table):
        kernel, family = made(shape), family_of(shape.op)
        result, _ = kernel.first()
        kernel.check(result)
        assert result.numel() == family.result(shape.dims), shape.op
        operands = sum(tensor.numel() for tensor in first_set(kernel) if tensor.is_floating_point())
        assert operands / 1.1 <= family.operands(shape.dims) <= 2 * operands, shape.op
        if family.reference is not None:
            with pytest.raises(ArithmeticError, match="is off by"):
                kernel.check(result + 0.1)
        with pytest.raises(ArithmeticError, match="is not finite"):
            kernel.check(result * float("nan"))


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
    monkeypatch.setattr("profiler.kernels.measure.LONGEST_CALL_S", 1e-12)
    kernels, failed = checked_kernels([PRODUCT], CPU, 1, Arena(CPU, torch.float32))
    assert kernels == [] and "a call takes" in failed[0][1]


def test_a_call_that_was_interrupted_once_is_not_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A neighbour has the cores for half a second during the first call."""
    ticks = iter([0.0, 0.5, 0.5, 0.501])
    monkeypatch.setattr("profiler.kernels.measure.time.perf_counter", lambda: next(ticks))
    kernels, failed = checked_kernels([PRODUCT], CPU, 1, Arena(CPU, torch.float32))
    assert len(kernels) == 1 and failed == []


def test_kernels_that_take_long_have_fewer_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(CPU, torch.float32)
    ((many,), _) = checked_kernels([PRODUCT], CPU, 1 << 16, arena)
    monkeypatch.setattr("profiler.kernels.measure.LONGEST_S", 1e-12)
    ((few,), _) = checked_kernels([PRODUCT], CPU, 1 << 16, arena)
    assert few.turns == 1 < many.turns


def test_batches_and_experts_are_rows_of_their_own_laws() -> None:
    batch = KernelShape("batched_matmul", "float32", "aten::bmm", {"batch": 4, "m": 8, "n": 16, "k": 8})
    experts = KernelShape("grouped_matmul", "float32", "aten::_grouped_mm", {"batch": 3, "m": 2, "n": 32, "k": 32})
    rows, failed = rows_of(batch, experts)
    assert failed == {}
    found = {str(row["kind"]): row for row in rows}
    for shape in (batch, experts):
        assert {name: found[shape.kind][name] for name in shape.dims} == shape.dims


def test_a_visit_has_each_operation_s_seconds_and_only_the_first_one_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, watch = ProbedKernels([PRODUCT], CPU, 1), Plays()
    first = kernels.visit(Watched(watch))
    graph = kernels.graph
    assert graph is not None and [len(times_s) for times_s in first] == [len(graph.ops)] * PASSES
    monkeypatch.setattr("profiler.kernels.measure.traced", None)
    second = kernels.visit(Watched(watch))
    assert kernels.graph is graph and len(second) == PASSES and watch.begun == 2  # a window for each session


def test_operands_are_as_large_as_they_are_said_to_be() -> None:
    kernel = made(PRODUCT)
    assert operand_bytes(PRODUCT) == sum(tensor.nbytes for tensor in first_set(kernel))
    assert kernel.sets == 1


def test_small_streams_take_turns_after_a_sweep_and_others_run_by_themselves() -> None:
    small = [KernelShape(op, "float32", op, {"rows": 1, "width": 8}) for op in ("aten::neg", "aten::exp")]
    probe = Probe([made(shape, 1 << 20) for shape in (PRODUCT, *small)], 1 << 20, CPU)
    paths = [op.path for op in traced(probe, "float32", "cpu").ops]
    turns = probe._groups[0][0].turns
    assert paths[: 3 * turns] == ["", "kernels.1", "kernels.2"] * turns
    assert set(paths[3 * turns :]) == {"kernels.0"}


def test_sets_of_operands_fill_the_bytes_that_are_asked_for_within_reason() -> None:
    each = operand_bytes(PRODUCT) + 4 * 8 * 32

    assert made(PRODUCT, 10 * each).sets == 10
    assert made(PRODUCT, 1 << 40).sets == MOST_SETS
    three = made(PRODUCT, 3 * each)
    assert len({id(weight) for place in range(three.sets) for weight in three.weights[place].parameters()}) == 3


def test_weights_that_take_turns_are_cold_and_activations_are_not() -> None:
    rows, _ = rows_of(PRODUCT)
    cold = max(row["cold"] for row in rows)  # type: ignore[type-var]
    assert cold == pytest.approx(32 * 16 / (32 * 16 + 8 * 16), abs=0.05)


def test_a_probe_is_traced_without_being_run_as_it_is_when_it_runs() -> None:
    batch = KernelShape("batched_matmul", "float32", "aten::bmm", {"batch": 4, "m": 8, "n": 16, "k": 8})
    experts = KernelShape("grouped_matmul", "float32", "aten::_grouped_mm", {"batch": 3, "m": 2, "n": 32, "k": 32})
    streams = [KernelShape(op, "float32", op, {"rows": 8, "width": 32}) for op in STREAMING]
    shapes = (PRODUCT, SINGLE, PREFILL, DECODE, batch, experts, *streams)
    probe = Probe([made(shape, 1 << 12) for shape in shapes], 1 << 12, CPU)
    graph = traced(probe, "float32", "cpu")
    run = trace(probe, NoInputs(), graph.workload, name="probe", target="cpu", options={})
    assert graph.model_copy(update={"traced_on": "cpu"}) == run


def test_operands_are_tensors_of_their_own_with_random_values_that_dtypes_share() -> None:
    storage = Storage(1 << 16, torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        arena = Arena(CPU, dtype, storage)
        first, second = arena.take((8, 16)), arena.take((16, 8))
        assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()
        assert first.untyped_storage().nbytes() == first.nbytes == dtype.itemsize * 8 * 16
        assert (
            first.float().std() > 0.1 and first.float().abs().max() <= 0.504
        )  # a bfloat16 of 0.5 and the bits below it
        assert not torch.equal(first, second.view(8, 16))
    own = Arena(CPU, torch.float16, Storage(1 << 12, torch.float16)).take((8, 16))
    assert own.float().std() > 0.1 and own.abs().max() <= 0.5


def test_the_storage_is_used_up_before_any_of_it_is_used_again() -> None:
    arena = Arena(CPU, torch.bfloat16, Storage(1 << 12, torch.bfloat16))
    places = [arena.take((ALIGNED,)).data_ptr() for _ in range(64)]
    turn = (1 << 12) // (2 * ALIGNED)
    assert len(set(places[:turn])) == turn
    assert places[turn : 2 * turn] == places[:turn]


def test_what_the_storage_cannot_hold_is_allocated() -> None:
    for storage in (None, Storage(1 << 8, torch.float32)):
        arena = Arena(CPU, torch.float32, storage)
        large = arena.take((64, 64))
        assert large.shape == (64, 64) and torch.isfinite(large).all()
        assert arena.take((0, 4)).numel() == 0
