"""Costs of starting work: on this CPU for real, and every case through a pretended device."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from pretended import Graph, pretend_accelerator, quiet_bench

from profiler.microbench import host_cost as module
from profiler.microbench.host_cost import NODES, IssueClock, addition, launch, replay
from profiler.timing import clocks

CPU = torch.device("cpu")


def test_a_cpu_has_calls_and_says_why_there_is_no_graph() -> None:
    call, graph = launch(quiet_bench())
    assert (call.case, call.status, call.unit, call.work, call.clock) == ("call", "done", "s", 1, "monotonic clock")
    assert 0 < min(call.samples) <= call.value() <= max(call.samples), "seconds of one addition"
    assert (graph.case, graph.status, graph.reason) == ("graph", "failed", "CUDA graphs need a GPU")


def test_every_case_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_accelerator(monkeypatch)
    captured: list[int] = []

    def capture(call: Callable[[], object], repeats: int, device: torch.device) -> Graph:
        captured.append(repeats)
        return Graph(call, repeats)

    monkeypatch.setattr(module, "capture", capture)
    found = {one.case: one for one in launch(quiet_bench())}
    assert [one.reason for one in found.values() if one.status != "done"] == []
    assert list(found) == ["call", "back to back", *(f"graph {nodes}" for nodes in NODES), "synchronize"]
    assert [found[f"graph {nodes}"].parameters for nodes in NODES] == [{"nodes": nodes} for nodes in NODES]
    assert captured == [1] * len(NODES), "a graph is captured once, not for each sample"
    assert found["call"].clock == IssueClock.name


def test_a_graph_that_runs_too_few_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_accelerator(monkeypatch)
    monkeypatch.setattr(module, "capture", lambda call, repeats, device: Graph(lambda: None, 1))
    found = [one for one in launch(quiet_bench()) if one.case.startswith("graph")]
    assert [one.status for one in found] == ["failed"] * len(NODES)
    assert all(
        one.reason == "ArithmeticError: the kernels gave nan, not " + str(one.reason).split("not ")[1] for one in found
    )


def test_outputs_hold_nothing_before_the_call() -> None:
    case = addition(CPU)
    operands = case.make()
    with pytest.raises(ArithmeticError, match="nan"):
        case.check(operands, None)
    case.check(operands, case.run(operands))


def test_every_node_of_a_replay_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "capture", lambda call, repeats, device: Graph(call, repeats))
    case = replay(16, CPU)
    chain = case.make()
    with pytest.raises(ArithmeticError, match="nan"):
        case.check(chain, None)
    case.run(chain)
    case.check(chain, None)
    assert float(chain.values[-1] - chain.values[0]) == pytest.approx(16, rel=1e-5)


def test_the_issue_clock_waits_before_and_not_after(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: steps.append("idle"))
    clock = IssueClock(torch.device("cuda"))
    times = iter([1.0, 1.5])

    def now() -> float:
        steps.append("now")
        return next(times)

    monkeypatch.setattr(clocks, "time", SimpleNamespace(perf_counter=now))
    assert clock.time(lambda: steps.append("call"), 2) == 0.5
    assert steps == ["idle", "now", "call", "call", "now"]
