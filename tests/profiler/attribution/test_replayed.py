"""Replays of a CUDA graph against the recorded decode step: what agrees is given to operations, the rest is refused."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from timelines import executed, recorded

from profiler.attribution.kernels import DeviceJoin, check, join
from profiler.attribution.replayed import GraphMismatch, Reference, check_same, join_replay, reference
from profiler.attribution.timeline import DeviceEvent, HostEvent, Launch, Timeline, read_timeline
from profiler.record.run import InvalidMeasurement

Change = Callable[[list[DeviceEvent]], list[DeviceEvent]]
CORRELATION = 77


def plain() -> tuple[DeviceJoin, Reference]:
    timeline = read_timeline(recorded())
    window, _, spans = executed(timeline)
    joined = join(timeline, window, spans)
    return joined, reference(joined)


def replayed(change: Change = lambda events: events, launches: int = 1) -> tuple[Timeline, tuple[float, float]]:
    """A replay of the recorded pass: its kernels one after another, 1 µs apart, behind one launch of a graph."""
    joined, _ = plain()
    at_s, events = 1e-4, []
    for event in change(list(joined.events)):
        length_s = event.end_s - event.start_s
        events.append(replace(event, start_s=at_s, end_s=at_s + length_s, correlation=CORRELATION, external_id=None))
        at_s += length_s + 1e-6
    calls = [
        Launch("cudaGraphLaunch", 5e-5 + i * 1e-6, 6e-5 + i * 1e-6, 1, CORRELATION + i, "graph")
        for i in range(launches)
    ]
    host = HostEvent("roofcal-pass", 0.0, at_s + 1e-4, 1, None)
    return Timeline((host,), tuple(calls), tuple(events)), (host.start_s, host.end_s)


def test_a_replay_has_the_operations_of_the_plain_pass() -> None:
    eager, expected = plain()
    done = join_replay(*replayed(), expected)
    assert [op.kernels for op in done.ops] == [op.kernels for op in eager.ops]
    assert [op.index for op in done.ops] == [op.index for op in eager.ops]
    assert {(e.name, e.reason) for e in done.unattributed} == {(e.name, e.reason) for e in eager.unattributed}
    assert (done.kernels, done.launches, done.memory_operations) == (34, 34, 2)
    assert check(done) == []


def test_a_replay_closes_and_has_its_own_times() -> None:
    _, expected = plain()
    timeline, window = replayed()
    done = join_replay(timeline, window, expected)
    assert done.device_s + done.gap_s + done.tail_gap_s == pytest.approx(done.wall_s, rel=1e-9)
    assert done.device_s == pytest.approx(sum(e.end_s - e.start_s for e in timeline.device))  # none overlaps here
    assert done.gap_s == pytest.approx(1e-4 + 1e-6 * (len(timeline.device) - 1), rel=1e-6)


def kernel_at(events: list[DeviceEvent], name: str) -> int:
    return next(i for i, event in enumerate(events) if name in event.name)


def without(name: str) -> Change:
    return lambda events: [e for i, e in enumerate(events) if i != kernel_at(events, name)]


def twice(name: str) -> Change:
    return lambda events: [
        *events[: kernel_at(events, name)],
        *events[kernel_at(events, name) :][:1],
        *events[kernel_at(events, name) :],
    ]


def swapped(name: str) -> Change:
    def change(events: list[DeviceEvent]) -> list[DeviceEvent]:
        i = kernel_at(events, name)
        events[i], events[i + 1] = events[i + 1], events[i]
        return events

    return change


def altered(which: str, **fields: object) -> Change:
    def change(events: list[DeviceEvent]) -> list[DeviceEvent]:
        i = kernel_at(events, which)
        events[i] = replace(events[i], **fields)  # type: ignore[arg-type]
        return events

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("splitKreduce"), "it lacks void cublasLt::splitKreduce"),
        (without("Memset"), "it lacks Memset"),
        (without("Memcpy"), "it lacks Memcpy"),
        (twice("flash_fwd_splitkv_combine"), "it ran void pytorch_flash::flash_fwd_splitkv_combine"),
        (swapped("flash_fwd_splitkv_kernel"), "plain 36"),
        (altered("flash_fwd_splitkv_kernel", grid=(3, 1, 1)), "in another grid"),
        (altered("flash_fwd_splitkv_kernel", block=(32, 1, 1)), "in another grid"),
        (altered("flash_fwd_splitkv_kernel", name="flash_fwd_kernel"), "it ran flash_fwd_kernel"),
        (altered("Memcpy", name="Memcpy HtoD (Pinned -> Device)"), "it ran Memcpy HtoD"),
        (altered("Memset", kind="kernel"), "it ran Memset"),
        (lambda events: [], "(0 kernels and copies, plain 36)"),
    ],
)
def test_another_sequence_is_refused_in_one_line(change: Change, says: str) -> None:
    _, expected = plain()
    with pytest.raises(GraphMismatch) as raised:
        join_replay(*replayed(change), expected)
    text = str(raised.value)
    assert says in text and "\n" not in text and "--cuda-graph" in text


def test_differences_are_counted() -> None:
    joined, _ = plain()
    changed = without("splitKreduce")(without("Memset")(list(joined.events)))
    with pytest.raises(GraphMismatch, match="the first of 2 differences"):
        check_same(joined.events, changed)


def test_what_a_memset_s_memory_is_called_does_not_matter() -> None:
    _, expected = plain()
    join_replay(*replayed(altered("Memset", name="Memset (Unknown)")), expected)


def test_a_grid_that_only_one_side_knows_is_a_difference() -> None:
    joined, _ = plain()
    assert all(event.grid and event.block for event in joined.events if event.kind == "kernel")
    with pytest.raises(GraphMismatch):
        check_same(joined.events, altered("flash_fwd_splitkv_kernel", grid=None)(list(joined.events)))


def test_nodes_whose_correlation_is_not_the_launch_s_are_taken_by_their_time() -> None:
    _, expected = plain()
    timeline, window = replayed()
    nodes = tuple(replace(event, correlation=1000 + i) for i, event in enumerate(timeline.device))
    before = replace(nodes[0], start_s=-1e-3, end_s=-9e-4, name="of another pass")
    done = join_replay(replace(timeline, device=(before, *nodes)), window, expected)
    assert done.kernels == 34


@pytest.mark.parametrize("launches", [0, 2])
def test_a_window_is_one_replay(launches: int) -> None:
    _, expected = plain()
    with pytest.raises(InvalidMeasurement, match=f"saw {launches}"):
        join_replay(*replayed(launches=launches), expected)


def test_what_is_launched_beside_the_graph_belongs_to_no_operation() -> None:
    eager, expected = plain()
    timeline, window = replayed()
    fill = Launch("cudaLaunchKernel", 1e-5, 2e-5, 1, 5, "kernel")
    seed = replace(timeline.device[0], name="fill", start_s=3e-5, end_s=4e-5, correlation=5)
    both = replace(timeline, launches=(fill, *timeline.launches), device=(seed, *timeline.device))
    done = join_replay(both, window, expected)
    assert [op.kernels for op in done.ops] == [op.kernels for op in eager.ops]
    assert (done.unattributed[0].name, done.unattributed[0].reason) == ("fill", "launched beside the graph")
    assert done.device_s + done.gap_s + done.tail_gap_s == pytest.approx(done.wall_s, rel=1e-9)


def test_late_and_skewed_replays_are_noticed() -> None:
    _, expected = plain()
    timeline, window = replayed()
    assert any("worked on" in problem for problem in check(join_replay(timeline, (window[0], 1.1e-4), expected)))
    late = replace(timeline, launches=(replace(timeline.launches[0], start_s=window[1], end_s=window[1]),))
    assert any("begin before their launch" in problem for problem in check(join_replay(late, window, expected)))


def test_a_pass_without_kernels_has_nothing_to_replay() -> None:
    with pytest.raises(InvalidMeasurement, match="ran no kernel"):
        reference(join(Timeline((), (), ()), (0.0, 1.0), []))
