"""The CUDA path from a session to a cell's samples: on a GPU on paper, and on the recorded timeline."""

from dataclasses import replace
from pathlib import Path

import pytest
from paper_gpu import PaperGpu, launch, with_host_events
from tiny import tiny

from profiler.attribution.operations import PASS, SequenceMismatch, executed, only_ran, passes
from profiler.attribution.timeline import BrokenEvent, HostEvent, Timeline, read_timeline
from profiler.models.build import build, build_meta
from profiler.models.inputs import prepare
from profiler.models.trace import trace
from profiler.passes.measure import ROUNDS, rounds
from profiler.passes.samples import Sample, collect, sample
from profiler.record.run import InvalidMeasurement
from roofline.workload import Workload

RECORDED = Path(__file__).parents[2] / "data" / "timelines" / "llama_decode_cuda.json"
PREFILL = Workload(batch=2, query_tokens=12, context_tokens=0, dtype="float32")
DECODE = Workload(batch=1, query_tokens=1, context_tokens=12, dtype="float32")
KNOWN = "aten::cat"
"""An operator of the traced graph."""


def paper(name: str = "llama", workload: Workload = DECODE, change=lambda timeline, k: timeline):  # type: ignore[no-untyped-def]
    meta = build_meta(tiny(name), "float32")
    graph = trace(meta, prepare(meta, workload), workload, name=name, target="cuda", options={})
    model = build(tiny(name), "cpu", "float32")
    return PaperGpu(model, prepare(meta, workload, device="cpu"), change), graph


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba"])
@pytest.mark.parametrize("workload", [PREFILL, DECODE], ids=["prefill", "decode"])
def test_a_cell_on_cuda_closes(name: str, workload: Workload) -> None:
    gpu, graph = paper(name, workload)
    times = rounds(gpu, graph, budget_s=0.01)
    count = len(times.wall_s)
    assert count >= ROUNDS[0]
    assert count == len(times.profiled_wall_s) == len(times.tail_gap_s) == count
    assert [op.op for op in times.ops] == list(range(len(graph.ops)))
    assert all(op.kernels and min(op.device_s) > 0 and min(op.gap_s) >= 0 for op in times.ops)
    closure = times.closure
    assert closure.attributed == 1 and times.unattributed == ()
    assert closure.kernels == closure.launches > 0 and closure.memory_operations > 0
    assert closure.spans_plus_gaps == pytest.approx(1, abs=0.05)  # a tiny pass is not much longer than its range
    products = [op.kernels for op, traced in zip(times.ops, graph.ops, strict=True) if traced.name == "aten::mm"]
    assert set(products) == {("Memset (Device)", "product")} or not products


def test_what_only_the_profiler_sees_is_no_operation() -> None:
    # An empty cache is made by `torch.tensor([], device=…)`, whose copy no dispatch mode sees and which copies nothing;
    # a mask's constant by `torch.tensor(0.0, device=…)`, which copies from the host.
    def change(timeline: Timeline, k: int) -> Timeline:
        timeline, added = with_host_events(timeline, KNOWN, KNOWN)
        for event in added[1::2]:
            timeline = launch(timeline, event, "Memcpy HtoD (Pageable -> Device)")
        return timeline

    gpu, graph = paper(change=change)
    times = rounds(gpu, graph, budget_s=0.01)
    reason = f"launched by {KNOWN}, which is no traced operation"
    assert times.unattributed == (f"Memcpy HtoD (Pageable -> Device) ({reason})",)
    assert 0.9 < times.closure.attributed < 1 and all(s > 0 for s in times.unattributed_s)
    assert all(op.kernels for op in times.ops)


def test_host_work_is_left_out_where_a_constant_belongs_to_the_trace() -> None:
    # The graph has one copy from the host of its own; another one, and work on host tensors, lie beside it.
    def change(timeline: Timeline, k: int) -> Timeline:
        timeline, added = with_host_events(timeline, "aten::_to_copy", KNOWN, KNOWN)
        for i, event in enumerate(added):
            if i % 3 != 2:
                timeline = launch(timeline, event, "Memcpy HtoD (Pageable -> Device)")
        return timeline

    gpu, graph = paper(change=change)
    first = graph.ops[0].model_copy(update={"name": "aten::_to_copy", "path": ""})
    times = rounds(gpu, graph.model_copy(update={"ops": (first, *graph.ops)}), budget_s=0.01)
    assert times.ops[0].kernels == ("Memcpy HtoD (Pageable -> Device)",) and min(times.unattributed_s) > 0


def stray(name: str):  # type: ignore[no-untyped-def]
    def change(timeline: Timeline, k: int) -> Timeline:
        timeline, added = with_host_events(timeline, name)
        for event in added:
            timeline = launch(timeline, event, "kernel")
        return timeline

    return change


def test_a_kernel_of_an_untraced_operator_refuses_a_meta_trace_and_is_told_otherwise() -> None:
    gpu, graph = paper(change=stray("aten::cumsum"))
    with pytest.raises(SequenceMismatch, match="device only: kernel, launched by aten::cumsum"):
        rounds(gpu, graph, budget_s=0.01)
    times = rounds(gpu, graph.model_copy(update={"traced_on": "cuda"}), budget_s=0.01)
    assert times.unattributed == ("kernel (launched by aten::cumsum, which is no traced operation)",)
    assert times.closure.attributed < 1 and times.closure.kernels == times.closure.launches


def test_another_sequence_is_refused() -> None:
    gpu, graph = paper(change=stray(KNOWN))
    with pytest.raises(SequenceMismatch, match=rf"device only: {KNOWN} in the model \(1 differences\)"):
        rounds(gpu, graph.model_copy(update={"traced_on": "cuda"}), budget_s=0.01)

    def later(timeline: Timeline, k: int) -> Timeline:
        return stray(KNOWN)(timeline, k) if k == 3 else timeline

    gpu, graph = paper(change=later)
    with pytest.raises(SequenceMismatch, match=f"device only: {KNOWN}"):
        rounds(gpu, graph, budget_s=0.01)


def drop(timeline: Timeline) -> Timeline:
    victim = timeline.device[-1]
    return replace(timeline, device=tuple(e for e in timeline.device if e is not victim))


@pytest.mark.parametrize("session", [1, 2, 4])
def test_dropped_events_are_measured_once_more(session: int) -> None:
    gpu, graph = paper(change=lambda timeline, k: drop(timeline) if k == session else timeline)
    times = rounds(gpu, graph, budget_s=0.01)
    assert gpu.sessions == 1 + ROUNDS[0] + 1
    assert len(times.wall_s) == len(times.profiled_wall_s) >= ROUNDS[0]


def test_events_that_are_dropped_again_make_no_times() -> None:
    gpu, graph = paper(change=lambda timeline, k: drop(timeline) if k > 1 else timeline)
    with pytest.raises(InvalidMeasurement, match="the profiler dropped events"):
        rounds(gpu, graph, budget_s=0.01)
    gpu, graph = paper(change=lambda timeline, k: replace(timeline, launches=(), device=()))
    with pytest.raises(InvalidMeasurement, match="saw no kernel"):
        rounds(gpu, graph, budget_s=0.01)


def test_kernels_of_another_thread_are_told() -> None:
    def change(timeline: Timeline, k: int) -> Timeline:
        for window in passes(timeline.host):
            timeline = launch(timeline, window, "kernel", at=0.5, tid=99)
        return timeline

    gpu, graph = paper(change=change)
    graph = graph.model_copy(update={"traced_on": "cuda"})
    assert rounds(gpu, graph, budget_s=0.01).unattributed == ("kernel (launched by another thread (99))",)


def test_cuda_graphs_make_no_times() -> None:
    def change(timeline: Timeline, k: int) -> Timeline:
        captured = replace(timeline.launches[-1], name="cudaGraphLaunch", kind="graph")
        return replace(timeline, launches=(*timeline.launches[:-1], captured))

    gpu, graph = paper(change=change)
    with pytest.raises(InvalidMeasurement, match="without CUDA graphs"):
        rounds(gpu, graph, budget_s=0.01)


def test_the_recorded_pass_closes() -> None:
    timeline = read_timeline(RECORDED)
    (window,) = passes(timeline.host)
    traced = ["_to_copy", "pow", "mean", "add", "rsqrt", "mul", "addmm", "mm", "cat", "copy_", "silu"]
    names = frozenset(f"aten::{name}" for name in (*traced, "scaled_dot_product_attention"))
    found = executed(timeline.host, names=names, window=(window.start_s, window.end_s), tid=window.tid).ops
    ran = [op.name for op in found]
    one = sample(timeline, window, ran, by_kernels=True)
    wall_s = window.end_s - window.start_s
    times = collect([one], [wall_s], [wall_s], [1.0], ())
    assert times.closure.spans_plus_gaps == pytest.approx(1, rel=1e-9)
    assert (times.closure.kernels, times.closure.launches, times.closure.memory_operations) == (34, 34, 2)
    assert {name.split(" (launched")[1] for name in times.unattributed} == {
        " by no operation)", " by another thread (41388))",
    }  # fmt: skip
    assert 0.5 < times.closure.attributed < 1


def test_only_ran() -> None:
    a, b, c = ("", "a"), ("", "b"), ("", "c")
    assert only_ran([a, b], [a, c, b, c]) == {1, 3}
    assert only_ran([a, b], [a, b]) == set()
    assert only_ran([a, b], [a, c]) is None and only_ran([a, b], [a]) is None


def test_what_recording_events_took_is_taken_off_operations_and_gaps_and_never_more_than_they_took() -> None:
    """Two operations: one with two events inside, one with none; gaps of 3 and 1 events, the operations' own ones."""
    one = Sample(
        device_s=[10e-6, 1e-6], gap_s=[8e-6, 0.5e-6], tail_s=2e-6, unattributed_s=0.0, unattributed=(),
        kernels=((), ()), idle_s=10.5e-6, nested=(2, 0), between=(3, 1),
    )  # fmt: skip
    less = one.without(1e-6)
    assert one.events == 6
    assert less.device_s == pytest.approx([8e-6, 1e-6])
    assert less.gap_s == pytest.approx([5e-6, 0.0])
    assert less.idle_s == pytest.approx(10.5e-6 - 3.5e-6)
    assert one.without(0.0) is one


def test_events_within_operations_and_between_them_are_counted() -> None:
    def event(name: str, start: float, end: float) -> HostEvent:
        return HostEvent(name, start, end, 1, None)

    window = event(PASS, 0.0, 10.0)
    host = (
        event("aten::empty", -1.0, -0.5), window, event("aten::view", 0.5, 0.6), event("aten::linear", 1.0, 4.0),
        event("aten::t", 1.1, 1.2), event("aten::mm", 1.5, 3.9), event("aten::add", 5.0, 6.0),
    )  # fmt: skip
    found = sample(Timeline(host, (), ()), window, ["aten::linear", "aten::add"], by_kernels=False)
    assert found.nested == (2, 0)  # t and mm
    assert found.between == (2, 1)  # view and linear itself; add itself


def test_a_host_event_that_cannot_be_true_makes_no_times() -> None:
    window = HostEvent(PASS, 0.0, 9.0, 1, None)
    whole = Timeline((window, HostEvent("aten::linear", 1.0, 2.0, 1, None)), (), ())
    broken = BrokenEvent("aten::add", "its duration is -1.0 µs", on_device=False, start_s=3.0)
    for at, is_refused in ((3.0, True), (None, True), (12.0, False)):
        timeline = replace(whole, broken=(replace(broken, start_s=at),))
        if is_refused:
            with pytest.raises(InvalidMeasurement, match="aten::add, its duration is -1"):
                sample(timeline, window, ["aten::linear"], by_kernels=False)
        else:
            assert sample(timeline, window, ["aten::linear"], by_kernels=False).device_s == [1.0]
