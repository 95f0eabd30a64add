"""Reference probes on the real CPU, timed by a clock that the test moves."""

from collections.abc import Callable

import pytest
import torch

from profiler.devices.backend import PerDevice
from profiler.timing import turns as reference
from profiler.timing.turns import CONTENDED_S, STRETCH_S, ReferenceProbes

CPU = torch.device("cpu")
DTYPES = ("float32", "bfloat16")
NAMES = ("memory.float32", "product.float32", "memory.bfloat16", "product.bfloat16", "host")


class Steady:
    """A call takes `call_s`; counts how many calls each sample has."""

    name, replays = "steady", False

    def __init__(self, call_s: float) -> None:
        self.call_s, self.repeats = call_s, []  # type: ignore[var-annotated]

    def now(self) -> float:
        return 0.0

    def time(self, call: Callable[[], object], repeats: int) -> float:
        call()
        self.repeats.append(repeats)
        return self.call_s * repeats


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "STREAM_BYTES", PerDevice(3 * 4 * 16 * 16, 3 * 4 * 16 * 16))
    monkeypatch.setattr(reference, "DEPTH", 16)


def test_each_probe_is_the_mean_of_a_stretch_that_is_as_long_the_next_time() -> None:
    clock = Steady(STRETCH_S / 4)
    probes = ReferenceProbes(CPU, clock, DTYPES, waited=lambda: 0.0)
    assert probes.time() == pytest.approx(dict.fromkeys(NAMES, STRETCH_S / 4))
    assert clock.repeats == [1, 1, 4] * len(NAMES)  # a first call, what one takes, the stretch
    clock.call_s *= 10  # the machine is slower now: the same work, ten times as long
    assert probes.time() == pytest.approx(dict.fromkeys(NAMES, 10 * STRETCH_S / 4))
    assert clock.repeats[-len(NAMES) :] == [4] * len(NAMES)


def test_a_call_that_is_longer_than_a_stretch_is_timed_once() -> None:
    clock = Steady(10 * STRETCH_S)
    ReferenceProbes(CPU, clock, waited=lambda: 0.0).time()
    assert set(clock.repeats) == {1}


def test_a_stretch_in_which_threads_wait_for_a_core_is_repeated_for_longer() -> None:
    clock, waited = Steady(STRETCH_S / 4), iter(range(1000))
    contended = ReferenceProbes(CPU, clock, ("float32",), waited=lambda: float(next(waited)))
    assert contended.time() == pytest.approx(
        dict.fromkeys(("memory.float32", "product.float32", "host"), STRETCH_S / 4)
    )
    assert clock.repeats == [1, 1, 4, round(CONTENDED_S / (STRETCH_S / 4))] * 3
    quiet = Steady(STRETCH_S / 4)
    ReferenceProbes(CPU, quiet, ("float32",), waited=lambda: 1.0).time()
    assert quiet.repeats == [1, 1, 4] * 3


@pytest.mark.parametrize("free", [0, 1 << 10, 1 << 40])
def test_the_stream_takes_a_share_of_what_is_free(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "free_bytes", lambda device: free)
    found = ReferenceProbes(CPU, dtypes=DTYPES).time()
    assert found.keys() == set(NAMES)
    assert min(found.values()) > 0
