"""Energy from windows: simulated counters with known answers, and every case on a CPU that has one on paper."""

import pytest
from pretended import Quiet, quiet_bench

from profiler.microbench import energy as module
from profiler.microbench.energy import STILL, energy, in_joules, no_energy, parts
from profiler.record.measurement import Measurement, Window

POWER_W = 300.0


def window(duration_s: float, samples: int, power_w: float | None = POWER_W) -> Window:
    energy_j = None if power_w is None else power_w * duration_s
    return Window(start_s=0, duration_s=duration_s, samples=samples, energy_j=energy_j)


def load(windows: list[Window], *, repeats: int = 5, busy: float = 0.9) -> Measurement:
    """A load of 2 TFLOP a call whose calls fill `busy` of each window."""
    samples = [busy * w.duration_s / w.samples / repeats for w in windows for _ in range(w.samples)]
    return Measurement(
        benchmark="energy", case="matmul", unit="J/FLOP", work=2e12, status="done", samples=tuple(samples),
        repeats=repeats, quantile=0.5, windows=tuple(windows), clock="CUDA events", floor_s=1e-6,
    )  # fmt: skip


def test_the_energy_of_a_call_is_that_of_its_part_over_its_calls() -> None:
    timed = load([window(0.25, 5) for _ in range(12)])
    found = in_joules(timed)
    calls_per_s = 5 * timed.repeats / 0.25
    assert found.samples == pytest.approx([POWER_W / calls_per_s] * 2), "three parts of a second, the first left out"
    assert found.value() == pytest.approx(POWER_W / calls_per_s / 2e12)
    assert found.parameters["busy"] == pytest.approx(0.9) and found.parameters["part_s"] == pytest.approx(1.0)
    assert found.windows == timed.windows and found.clock == "energy counter" and found.floor_s is None
    assert Measurement.model_validate(found.model_dump()) == found


def test_the_first_part_counts_where_it_is_the_only_one() -> None:
    found = in_joules(load([window(0.25, 5), window(0.25, 5)]))
    assert found.samples == pytest.approx([POWER_W * 0.5 / (10 * 5)])


def test_what_is_left_at_the_end_joins_the_last_part() -> None:
    found = parts([window(0.4, 2) for _ in range(7)], 1.0)
    assert [part.samples for part in found] == [6, 8]
    assert [part.energy_j for part in found] == pytest.approx([360.0, 480.0])


def test_parts_without_energy_or_samples_are_left_out() -> None:
    unknown = [window(1.0, 4, None), window(1.0, 4), window(1.0, 0), window(1.0, 4)]
    assert [part.samples for part in parts(unknown, 1.0)] == [4, 4]
    assert parts([], 1.0) == []


@pytest.mark.parametrize("power_w", [0.0, None])
def test_a_counter_that_stands_still_is_no_energy(power_w: float | None) -> None:
    found = in_joules(load([window(1.0, 4, power_w) for _ in range(3)]))
    assert (found.status, found.reason, found.samples) == ("failed", STILL, ())
    assert Measurement.model_validate(found.model_dump()) == found


def test_without_a_reading_the_watch_says_why() -> None:
    bench = quiet_bench()
    (only,) = energy(bench, {"float32": (64, 64, 64)})
    assert only.status == "failed" and only.reason == "no energy reading: only NVIDIA's driver counts it, through NVML"
    unread = ("energy: Not Supported", "fan: Not Supported")
    assert no_energy(Quiet(None, unread)) == "no energy reading: energy: Not Supported"
    assert no_energy(Quiet(None, ("NVML cannot be used: Driver Not Loaded",))) == (
        "no energy reading: NVML cannot be used: Driver Not Loaded"
    )
    assert no_energy(Quiet(0.0)) is None


def test_every_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUICK_LOAD_S", 0.3)
    monkeypatch.setattr(module, "SAMPLE_S", 1e-3)
    bench = quiet_bench(quick=True, limit_bytes=1 << 30)
    bench.watch = Quiet(POWER_W)
    slept: list[float] = []
    found = list(energy(bench, {"float32": (64, 64, 64), "int3": (64, 64, 64)}, slept.append))
    assert [(one.case, one.dtype, one.unit, one.status) for one in found] == [
        ("idle", None, "W", "done"),
        ("matmul", "float32", "J/FLOP", "done"),
        ("matmul", "int3", "J/FLOP", "failed"),
        ("copy", "float32", "J/B", "done"),
    ]
    idle, matmul, lacking, copy = found
    assert idle.value() == pytest.approx(POWER_W) and len(idle.windows) == 1
    assert Measurement.model_validate(idle.model_dump()) == idle
    assert slept == [module.REST_S, module.PART_S]
    assert (
        matmul.work == 2 * 64**3
        and matmul.stop_reason == "time limit"
        and "no product of 'int3'" in str(lacking.reason)
    )
    assert copy.work == 2 * copy.parameters["operand_bytes"] and copy.parameters["busy"] > 0
