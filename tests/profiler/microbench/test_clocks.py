"""The comparison of clocks: on a CPU there is one, and says so; the cases are those of the kernels' own families."""

import pytest
import torch
from pretended import pretend_accelerator

from profiler.microbench import host_cost as module
from profiler.microbench.bench import Bench
from profiler.microbench.host_cost import clocks
from profiler.timing.clocks import HostClock


def test_a_cpu_has_one_clock() -> None:
    (one,) = clocks(Bench(torch.device("cpu")))
    assert one.status == "failed" and "one clock" in (one.reason or "")


def test_every_kernel_by_every_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    class Spans(HostClock):
        name = "spans"

        def __init__(self, device: torch.device) -> None:
            pass

    class Replay(Spans):
        name = "replay"

    monkeypatch.setattr(module, "KernelClock", Spans)
    monkeypatch.setattr(module, "GraphClock", Replay)
    monkeypatch.setattr(module, "TRIADS", (1 << 12, 1 << 14))
    monkeypatch.setattr(module, "SQUARES", (32,))
    pretend_accelerator(monkeypatch)
    found = list(clocks(Bench(torch.device("cpu"), budget_s=0.02)))
    assert len({one.key for one in found}) == len(found) == 3 * 3
    assert {one.clock for one in found} == {"pretended events", "spans", "replay"}
    assert all(one.has_value and one.unit == "s" for one in found)
