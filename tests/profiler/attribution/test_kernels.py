"""Kernels to operations, on the recorded decode step and on what goes wrong with such recordings."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from intervals import union_s
from timelines import CUDA, executed, recorded

from profiler.attribution.kernels import DeviceJoin, OpSpan, check, join
from profiler.attribution.shares import EDGE_S, idle, shares
from profiler.attribution.timeline import Timeline, read_timeline
from scripts.trace_closure import operators


def joined(
    change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = lambda events: events,
) -> tuple[list[str], DeviceJoin]:
    trace = recorded()
    trace["traceEvents"] = change(copy.deepcopy(trace["traceEvents"]))
    timeline = read_timeline(trace)
    window, names, spans = executed(timeline)
    return names, join(timeline, window, spans)


def closes(done: DeviceJoin) -> None:
    assert done.device_s + done.gap_s + done.tail_gap_s == pytest.approx(done.wall_s, rel=1e-9)


def test_every_kernel_has_its_operation_or_its_reason() -> None:
    names, done = joined()
    by_name: dict[str, list[tuple[str, ...]]] = {}
    for name, op in zip(names, done.ops, strict=True):
        by_name.setdefault(name, []).append(op.kernels)
    memset, gemm, reduce = by_name["aten::addmm"][0]
    assert memset == "Memset (Device)" and "splitK" in gemm and "splitKreduce" in reduce
    flash, combine = by_name["aten::scaled_dot_product_attention"][0]
    assert "flash_fwd_splitkv_kernel" in flash and "combine" in combine
    assert by_name["aten::copy_"] == [("Memcpy DtoD (Device -> Device)",)]
    assert all(len(kernels) == 1 for kernels in by_name["aten::mm"])
    assert {(e.name.split("<")[0], e.reason) for e in done.unattributed} == {
        ("_rotate_cache_kernel", "launched by no operation"),
        ("void at::native::vectorized_elementwise_kernel", "launched by another thread (41388)"),
    }
    assert (done.kernels, done.launches, done.memory_operations, done.memory_launches) == (34, 34, 2, 2)
    assert check(done) == [] and done.late_s == 0


def test_the_pass_closes_and_overlap_is_shared() -> None:
    _, done = joined()
    closes(done)
    timeline = read_timeline(CUDA)
    starts, ends = (np.array([getattr(e, end) for e in timeline.device]) for end in ("start_s", "end_s"))
    assert done.device_s == pytest.approx(union_s(starts, ends), rel=1e-9)
    assert done.device_s < (ends - starts).sum() - 1e-6, "the recording must hold kernels that overlap"


def test_gaps_belong_to_the_operation_that_ended_them() -> None:
    names, done = joined()
    timeline = read_timeline(CUDA)
    first = timeline.device[0]
    assert done.ops[0].gap_s == pytest.approx(first.start_s - executed(timeline)[0][0])
    # The product after silu was launched while the device still worked on it.
    assert done.ops[names.index("aten::silu")].gap_s == 0


def test_dropped_kernels_are_noticed() -> None:
    def drop(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        victim = next(e for e in events if "splitKreduce" in e["name"])
        return [e for e in events if e is not victim]

    _, done = joined(drop)
    assert (done.kernels, done.launches) == (33, 34)
    assert [launch.name for launch in done.missing] == ["cudaLaunchKernel"]
    (problem,) = check(done)
    assert problem.startswith("1 of 34 kernel launches have no event on the device")
    closes(done)


def test_a_dropped_copy_is_noticed() -> None:
    _, done = joined(lambda events: [e for e in events if e.get("cat") != "gpu_memcpy"])
    assert check(done)[0].startswith("1 of 2 memcpy or memset launches have no event")


def without_launches(name: str, external_ids: bool) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Drop the records of an API call; without external ids, drop what is known of its callers too."""

    def change(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        lost = {e["args"]["correlation"] for e in events if e["name"] == name}
        for e in events:
            if not external_ids and e.get("args", {}).get("correlation") in lost:
                e["args"].pop("External id", None)
        return [e for e in events if e["name"] != name]

    return change


def test_a_kernel_without_a_launch_is_kept() -> None:
    _, done = joined(without_launches("cuLaunchKernelEx", external_ids=False))
    assert "splitK" in done.orphans[0].name
    assert [e.reason for e in done.unattributed if "splitK" in e.name] == ["no launch record"]
    assert "1 device events have no launch record" in check(done)[0]
    closes(done)


@pytest.mark.parametrize("name", ["cuLaunchKernelEx", "cudaMemsetAsync"])
def test_a_launch_that_kineto_does_not_record_is_known_by_its_host_event(name: str) -> None:
    _, whole = joined()
    _, done = joined(without_launches(name, external_ids=True))
    assert [op.kernels for op in done.ops] == [op.kernels for op in whole.ops]
    assert len(done.unrecorded) == 1 and done.orphans == () and check(done) == []
    assert (done.kernels, done.launches, done.memory_operations, done.memory_launches) == (34, 34, 2, 2)
    closes(done)


def test_launches_under_an_unknown_thread_number_are_known_by_their_host_events() -> None:
    def renumber(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for e in events:
            if e.get("cat") in ("cuda_runtime", "cuda_driver"):
                e["tid"] = -1_204_558_016  # as CUPTI numbers a thread that kineto was not told of
        return events

    _, whole = joined()
    _, done = joined(renumber)
    assert [op.kernels for op in done.ops] == [op.kernels for op in whole.ops]
    assert {e.reason for e in done.unattributed} == {e.reason for e in whole.unattributed}


def test_a_kernel_of_an_operator_that_was_not_traced_tells_its_name() -> None:
    timeline = read_timeline(CUDA)
    window, names, spans = executed(timeline)
    kept = [span for name, span in zip(names, spans, strict=True) if name != "aten::silu"]
    done = join(timeline, window, kept)
    assert "launched by aten::silu, which is no traced operation" in {e.reason for e in done.unattributed}
    closes(done)


def test_corrupted_time_stamps_are_noticed() -> None:
    def corrupt(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        next(e for e in events if e.get("cat") == "kernel")["ts"] -= 1e8  # 100 s
        return events

    _, done = joined(corrupt)
    assert any("begin before their launch" in problem for problem in check(done))
    closes(done)


def test_work_from_before_the_pass_and_after_it() -> None:
    timeline = read_timeline(CUDA)
    (start, end), _, spans = executed(timeline)
    middle = (start + end) / 2
    done = join(timeline, (middle, end), [s for s in spans if s.start_s >= middle])
    closes(done)
    busy = max(timeline.device, key=lambda e: e.end_s - e.start_s)
    cut = busy.end_s - 2 * EDGE_S
    done = join(timeline, (cut, end), [s for s in spans if s.start_s >= cut])
    assert busy in done.outsiders and any("launched outside the pass" in p for p in check(done))
    closes(done)
    cut = busy.end_s - EDGE_S / 2  # no more than the clocks' disagreement
    done = join(timeline, (cut, end), [s for s in spans if s.start_s >= cut])
    assert busy not in done.outsiders and busy.name not in {e.name for e in done.unattributed}
    closes(done)
    early = spans[-1].end_s - 1e-6
    done = join(timeline, (start, early), spans)
    assert done.wall_s > early - start
    closes(done)


def test_an_unsynchronised_pass_is_noticed() -> None:
    def stretch(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        max((e for e in events if e.get("cat") == "kernel"), key=lambda e: e["ts"])["dur"] = 5000.0
        return events

    _, done = joined(stretch)
    assert done.late_s > 4e-3 and "synchronise before it ends" in check(done)[0]
    closes(done)


def test_graphs_devices_and_overlapping_spans_are_refused() -> None:
    def graph(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        next(e for e in events if e["name"] == "cudaLaunchKernel")["name"] = "cudaGraphLaunch"
        return events

    def second_device(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        next(e for e in events if e.get("cat") == "kernel")["args"]["device"] = 1
        return events

    with pytest.raises(ValueError, match="without CUDA graphs"):
        joined(graph)
    with pytest.raises(ValueError, match="one device at a time"):
        joined(second_device)
    timeline = read_timeline(CUDA)
    window, _, spans = executed(timeline)
    with pytest.raises(ValueError, match="only outermost"):
        join(timeline, window, [*spans, OpSpan(99, spans[0].start_s, spans[0].end_s, spans[0].tid)])


def test_a_window_without_device_work_is_idle() -> None:
    done = join(Timeline((), (), ()), (1.0, 3.0), [OpSpan(0, 1.0, 2.0, 1)])
    assert (done.wall_s, done.tail_gap_s, done.device_s) == (2.0, 2.0, 0) and done.ops[0].kernels == ()
    assert check(done) == []


intervals = st.lists(
    st.tuples(st.integers(0, 10_000), st.integers(0, 3_000)).map(lambda p: (p[0] * 1e-6, (p[0] + p[1]) * 1e-6)),
    max_size=40,
)


def arrays(pairs: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])


def covered(pairs: list[tuple[float, float]]) -> float:
    """Union by merging, one interval after another."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(pairs):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


@given(intervals)
def test_shares_add_up_to_the_union(pairs: list[tuple[float, float]]) -> None:
    starts, ends = arrays(pairs)
    assert shares(starts, ends).sum() == pytest.approx(covered(pairs), abs=1e-12)
    assert union_s(starts, ends) == pytest.approx(covered(pairs), abs=1e-12)


@given(intervals)
def test_a_share_is_at_most_the_interval_and_at_least_its_part(pairs: list[tuple[float, float]]) -> None:
    starts, ends = arrays(pairs)
    got = shares(starts, ends)
    assert np.all(got <= ends - starts + 1e-12)
    assert np.all(got >= (ends - starts) / max(1, len(pairs)) - 1e-12)


@given(intervals)
def test_shares_and_idle_fill_the_window(pairs: list[tuple[float, float]]) -> None:
    starts, ends = arrays(pairs)
    window = (-1e-3, 20e-3)
    gaps = idle(starts, ends, window)
    assert shares(starts, ends).sum() + gaps.before_s.sum() + gaps.tail_s == pytest.approx(21e-3, abs=1e-12)
    assert np.all(gaps.before_s >= 0) and gaps.tail_s >= 0


def test_by_hand() -> None:
    # [0, 4] alone for 1, with one other for 1, with two for 1, with one for 1: 1 + 1/2 + 1/3 + 1/2
    starts, ends = np.array([0.0, 1.0, 2.0, 6.0]), np.array([4.0, 3.0, 5.0, 7.0])
    assert shares(starts, ends) == pytest.approx([1 + 1 / 2 + 1 / 3 + 1 / 2, 1 / 2 + 1 / 3, 1 / 3 + 1 / 2 + 1, 1])
    gaps = idle(starts, ends, (-1.0, 9.0))
    assert gaps.before_s == pytest.approx([1, 0, 0, 1])
    assert gaps.tail_s == pytest.approx(2)


def test_refuses_what_is_no_interval() -> None:
    with pytest.raises(ValueError, match="ends before it starts"):
        shares(np.array([1.0]), np.array([0.5]))
    with pytest.raises(ValueError, match="one shape"):
        shares(np.array([1.0]), np.array([1.5, 2.0]))
    with pytest.raises(ValueError, match="within the window"):
        idle(np.array([1.0]), np.array([2.0]), (1.5, 3.0))


def test_times_that_cannot_be_true_are_named_and_out_of_the_sum() -> None:
    _, whole = joined()
    kernels = [i for i, e in enumerate(recorded()["traceEvents"]) if e.get("cat") == "kernel"]
    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        "too long": lambda e: e.update(dur=e["dur"] + 60),
        "no duration": lambda e: e.update(dur=0),
        "negative": lambda e: e.update(dur=-e["dur"]),
        "NaN": lambda e: e.update(dur=float("nan")),
        "infinite": lambda e: e.update(dur=float("inf")),
        "text": lambda e: e.update(dur="60"),
        "true": lambda e: e.update(dur=True),
        "nothing": lambda e: e.update(dur=None),
        "start of text": lambda e: e.update(ts="now"),
        "endless": lambda e: e.update(ts=10**400),
        "name": lambda e: e.update(name="k\udcff"),
        "stream": lambda e: e["args"].update(stream="seven"),
        "correlation": lambda e: e["args"].update(correlation=[1]),
        "no arguments": lambda e: e.update(args=3),
    }
    for what, change in changes.items():
        for at in kernels:

            def spoil(events: list[dict[str, Any]], at: int = at, change: Any = change) -> list[dict[str, Any]]:
                change(events[at])
                return events

            name = str(recorded()["traceEvents"][at]["name"])
            _, done = joined(spoil)
            problems = check(done)
            assert any(name[:40] in p or "k\\udcff" in p for p in problems), (what, at, problems)
            assert done.device_s < whole.device_s + 1e-12, (what, at)
            assert done.device_s > whole.device_s - 30e-6, (what, at, "only the event's own time is lost")
            assert done.wall_s == pytest.approx(whole.wall_s), (what, at)
            closes(done)


def test_a_programmatic_launch_may_begin_but_not_end_before_the_kernel_ahead_of_it() -> None:
    def events(name: str, first_dur: float) -> dict[str, Any]:
        common = {"ph": "X", "pid": 1, "tid": 1}
        spans = [("kernel", "a", 10.0, first_dur, 1), ("kernel", "b", 20.0, 10.0, 2)]
        calls = [("cuda_runtime", "cudaLaunchKernel", 1.0, 1.0, 1), ("cuda_runtime", name, 3.0, 1.0, 2)]
        return {
            "traceEvents": [
                {**common, "cat": cat, "name": n, "ts": ts, "dur": dur,
                 "args": {"correlation": c, "stream": 7, "device": 0}}
                for cat, n, ts, dur, c in (*calls, *spans)
            ]
        }  # fmt: skip

    cases = {
        ("cudaLaunchKernel", 10.5): (0, 20e-6),  # within the step of the GPU's timer
        ("cudaLaunchKernel", 15.0): (1, 10e-6),
        ("cudaLaunchKernelExC_v11060", 15.0): (0, 20e-6),
        ("cudaLaunchKernelExC_v11060", 25.0): (1, 10e-6),
    }
    for (name, duration), (count, busy_s) in cases.items():
        done = join(read_timeline(events(name, duration)), (0.0, 100e-6), [])
        assert len(done.impossible) == count and len(check(done)) == count, (name, duration)
        assert done.device_s == pytest.approx(busy_s), (name, duration)


def of_real(name: str) -> tuple[Timeline, DeviceJoin]:
    timeline = read_timeline(CUDA.with_name(name))
    return timeline, join(timeline, *operators(timeline))


def test_a_real_eager_pass_joins_whole_without_the_kernels_of_the_step_before() -> None:
    timeline, done = of_real("h100_eager_qwen.json.gz")
    launched = {launch.correlation for launch in timeline.launches}
    lost = [event for event in timeline.device if event.correlation not in launched]
    assert len(lost) == 40, "whose launches lie before the recording"
    assert done.kernels + done.memory_operations == len(timeline.device) - len(lost)
    assert done.unattributed == () and check(done) == []
    assert sum(op.device_s for op in done.ops) == pytest.approx(done.device_s, rel=1e-9)
    inside = [event for event in timeline.device if event.correlation in launched]
    starts, ends = (np.array([getattr(event, end) for event in inside]) for end in ("start_s", "end_s"))
    assert done.device_s == pytest.approx(union_s(starts, ends), rel=1e-9)
    closes(done)


def test_kernels_of_an_engine_s_own_operators_are_left_and_said() -> None:
    timeline, done = of_real("sglang_prefill.json.gz")
    names = {event.name for event in timeline.host}
    told = {event.reason for event in done.unattributed} - {"launched by no operation"}
    assert told and all(reason.endswith("which is no traced operation") for reason in told)
    assert {reason.removeprefix("launched by ").partition(",")[0] for reason in told} <= names
    assert 0.85 < sum(op.device_s for op in done.ops) / done.device_s < 0.9
    closes(done)


def test_a_real_graph_launch_is_refused() -> None:
    with pytest.raises(ValueError, match="1 CUDA graph launches in the pass: one launch stands for many kernels"):
        of_real("vllm_decode_graph.json.gz")
