"""Passes replayed from a CUDA graph, on a GPU on paper: what is timed is the replay, and told of the operations."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from paper_gpu import PaperGpu
from tiny import tiny

from profiler.attribution.operations import passes
from profiler.attribution.replayed import GraphMismatch
from profiler.attribution.timeline import DeviceEvent, Launch, Timeline
from profiler.models.build import build, build_meta
from profiler.models.inputs import prepare
from profiler.models.trace import trace
from profiler.passes import eager as replayed
from profiler.passes.eager import ReplayRunner
from profiler.passes.measure import rounds
from profiler.record.run import InvalidMeasurement
from profiler.timing.clocks import NotCapturable
from roofline.graph.op import OpGraph
from roofline.workload import Workload

DECODE = Workload(batch=1, query_tokens=1, context_tokens=12, dtype="float32")
Change = Callable[[list[DeviceEvent]], list[DeviceEvent]]


class PaperReplay(ReplayRunner):
    """Replays on paper: the kernels of a plain pass, in a row, behind one launch."""

    def __init__(self, plain: PaperGpu, change: Change = lambda events: events) -> None:
        super().__init__(plain)
        self.change = change

    def synchronize(self) -> None:
        pass

    def session(self, count: int, *, modules: bool = False) -> tuple[Timeline, list[float]]:
        timeline, walls = self.plain.session(count)
        launches, device = [], []
        for i, window in enumerate(passes(timeline.host)):
            inside = [e for e in timeline.device if window.start_s <= e.start_s <= window.end_s]
            launches.append(Launch("cudaGraphLaunch", window.start_s, window.start_s, window.tid, i + 1, "graph"))
            at_s = window.start_s
            for event in self.change(inside):
                device.append(replace(event, start_s=at_s, end_s=at_s + 1e-8, correlation=i + 1, external_id=None))
                at_s += 1e-8
        host = tuple(passes(timeline.host))
        return Timeline(host, tuple(launches), tuple(device)), walls


class Graph:
    """Counts its replays, and does what was captured."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call, self.replays = call, 0
        call()

    def replay(self) -> None:
        self.replays += 1
        self.call()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    made: list[Graph] = []

    def capture(call: Callable[[], object], repeats: int, device: torch.device, instead: str) -> Graph:
        made.append(Graph(call))
        return made[-1]

    monkeypatch.setattr(replayed, "capture", capture)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return made


def paper(change: Change = lambda events: events) -> tuple[PaperReplay, OpGraph]:
    config = tiny("llama")
    meta = build_meta(config, "float32")
    graph = trace(meta, prepare(meta, DECODE), DECODE, name="llama", target="cuda", options={})
    plain = PaperGpu(build(config, "cpu", "float32"), prepare(meta, DECODE, device="cpu"))
    return PaperReplay(plain, change), graph


def test_a_replayed_pass_has_times_of_all_its_operations(graphs: list[Graph]) -> None:
    runner, graph = paper()
    times = rounds(runner, graph, budget_s=0.01)
    assert [one.op for one in times.ops] == list(range(len(graph.ops))) and times.kernels == ()
    assert all(one.kernels for one in times.ops) and all(s > 0 for one in times.ops for s in one.device_s)
    assert times.closure.kernels == times.closure.launches > 0 and times.closure.attributed == 1
    kernels = sum(len(one.kernels) for one in times.ops)
    assert math.fsum(one.device_s[0] for one in times.ops) == pytest.approx(1e-8 * kernels)
    assert len(graphs) == 1, "one capture for all passes"
    assert graphs[0].replays >= len(times.wall_s), "what is timed is the replay"


def test_a_graph_of_other_kernels_is_refused(graphs: list[Graph]) -> None:
    runner, graph = paper(lambda events: events[:-1])
    with pytest.raises(GraphMismatch, match="it lacks"):
        rounds(runner, graph, budget_s=0.01)


def test_a_graph_that_changes_later_is_refused(graphs: list[Graph]) -> None:
    calls = []

    def change(events: list[DeviceEvent]) -> list[DeviceEvent]:
        calls.append(0)
        return events if len(calls) < 4 else [*events, events[0]]

    runner, graph = paper(change)
    with pytest.raises(GraphMismatch, match="which the plain pass did not"):
        rounds(runner, graph, budget_s=0.01)


def test_logits_of_a_replay_that_are_not_finite_are_refused(graphs: list[Graph]) -> None:
    runner, graph = paper()
    plain = runner.plain.forward
    state = {"passes": 0}

    def forward(**kwargs: object) -> object:
        state["passes"] += 1
        out = plain(**kwargs)
        if state["passes"] > 2:  # the plain pass and the capture are well
            out.logits[:] = float("nan")
        return out

    runner.plain.forward = forward
    with pytest.raises(InvalidMeasurement, match="not finite"):
        rounds(runner, graph, budget_s=0.01)


def test_a_model_that_no_graph_can_hold_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(*_: object, **__: object) -> Graph:
        raise NotCapturable("not captured in a CUDA graph (RuntimeError: synchronised)")

    monkeypatch.setattr(replayed, "capture", capture)
    runner, graph = paper()
    with pytest.raises(NotCapturable, match="not captured"):
        rounds(runner, graph, budget_s=0.01)


def test_nothing_is_replayed_before_it_was_captured_and_checked() -> None:
    runner, _ = paper()
    with pytest.raises(InvalidMeasurement, match="nothing was captured"):
        runner.once()
    with pytest.raises(InvalidMeasurement, match="check it first"):
        runner.profiled(1)
