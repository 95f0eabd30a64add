from collections.abc import Sequence
from pathlib import Path

import pytest
from nvml_sequences import NAMES, play, sequence

from profiler.devices.conditions import (
    ORDER,
    POWER_CAP,
    REASONS,
    SLOWED_SHARE,
    device_labels,
    host_labels,
    other_share,
    worst,
)
from profiler.devices.watch import GpuReading
from profiler.record.measurement import Label, Window

EXPECTED: dict[str, list[tuple[str, str]]] = {
    "clean_h200": [],
    "power_capped_gemm": [("warns", "power cap in 83 % of the time, SM clock 1,410–1,980 MHz, median 1,605")],
    "thermal_slowdown": [
        ("invalidates", "hardware slowdown (heat, power brake or supply) in 25 % of the time, SM clock 990–1,980 MHz"),
        ("invalidates", "the driver slows the clock for heat in 25 % of the time"),
        ("invalidates", "hardware thermal slowdown in 25 % of the time"),
    ],
    "foreign_process": [
        ("invalidates", "other processes on the GPU (pid 4242) in 67 % of the time, which used up to 38 %")
    ],
    "driver_lost": [
        ("warns", "the driver no longer answered"),
        ("warns", "whether the clock was throttled is not known in 33 % of the time"),
        ("warns", "whether other processes used the GPU is not known in 33 % of the time"),
    ],
    "mig_slice": [("warns", "MIG"), ("warns", "whether other processes used the GPU is not known in 100 %")],
    "permission_refused": [
        ("warns", "whether the clock was throttled is not known in 100 %"),
        ("warns", "whether other processes used the GPU is not known in 100 %"),
    ],
}


def labels(
    taken: Sequence[Window], before: GpuReading | None, after: GpuReading | None, **options: float
) -> tuple[Label, ...]:
    both = [*device_labels(taken, before, after, **options), *host_labels(taken)]
    return tuple(sorted(both, key=lambda label: ORDER.index(label.severity)))


def test_every_sequence_is_judged() -> None:
    assert set(NAMES) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_a_sequence_means(name: str, tmp_path: Path) -> None:
    played = sequence(name)
    found = labels(play(played, tmp_path)[0], played.before, played.after)
    assert [label.severity for label in found] == [severity for severity, _ in EXPECTED[name]]
    for label, (_, what) in zip(found, EXPECTED[name], strict=True):
        assert label.what.startswith(what)


def whole() -> GpuReading:
    return sequence("clean_h200").before


def windows(count: int = 20, **changed: object) -> list[Window]:
    """Equal windows of a GPU on which nothing happens; the first one is changed."""
    plain = Window(
        start_s=0,
        duration_s=0.25,
        samples=5,
        sm_clock_hz=1980e6,
        memory_clock_hz=3201e6,
        event_reasons=0,
        foreign=(),
        cores=4,
        steal_fraction=0.0,
        other_cores=0.0,
        cpu_clock_hz=3e9,
    )
    return [plain.model_copy(update=changed), *[plain] * (count - 1)]


def judged(taken: list[Window], before: GpuReading | None = None, **options: float) -> list[tuple[str, str, float]]:
    before = before or whole()
    return [(label.severity, label.what, label.share) for label in labels(taken, before, before, **options)]


def test_a_power_cap_is_a_label_however_long_it_holds() -> None:
    found = judged([window.model_copy(update={"event_reasons": POWER_CAP}) for window in windows()])
    assert found == [("warns", "power cap in 100 % of the time, SM clock 1,980 MHz", 1.0)]


@pytest.mark.parametrize("bit", [bit for bit, _, severity, _ in REASONS if severity == "invalidates"])
def test_a_slowdown_invalidates_unless_it_is_too_short_to_matter(bit: int) -> None:
    assert 1 / 20 <= SLOWED_SHARE < 1 / 19
    assert [(severity, share) for severity, _, share in judged(windows(20, event_reasons=bit))] == [("warns", 1 / 20)]
    assert [severity for severity, _, _ in judged(windows(19, event_reasons=bit))] == ["invalidates"]


def test_shares_are_of_time_not_of_windows() -> None:
    (found,) = judged(windows(4, event_reasons=POWER_CAP, duration_s=2.25))
    assert found[2] == pytest.approx(0.75)


def test_shares_are_of_the_time_in_which_the_reasons_are_known() -> None:
    lost = windows()[0].model_copy(update={"event_reasons": None})
    found = judged([*windows(2, event_reasons=POWER_CAP), lost, lost])
    assert [(what.partition(" in ")[0], share) for _, what, share in found] == [
        ("power cap", 0.5), ("whether the clock was throttled is not known", 0.5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("use", "severity", "what"),
    [
        (0.01, "invalidates", "which used up to 1 %"),
        (0.0, "warns", ", idle"),
        (None, "warns", "whether they worked is not known"),
    ],
)
def test_a_foreign_process_invalidates_if_it_worked(use: float | None, severity: str, what: str) -> None:
    ((found, text, share),) = judged(windows(foreign=("pid 9",), foreign_utilization=use))
    assert (found, share) == (severity, pytest.approx(0.05))
    assert "(pid 9)" in text and text.endswith(what)


def test_processes_of_other_slices_are_not_on_ours() -> None:
    sliced = whole().model_copy(update={"mig": True})
    assert [what[:3] for _, what, _ in judged(windows(foreign=("pid 9",), foreign_utilization=0.5), sliced)] == ["MIG"]


def test_memory_errors_invalidate_if_they_came_meanwhile() -> None:
    old = whole().model_copy(update={"ecc_uncorrected": 2})
    assert labels(windows(), old, old) == ()
    (found,) = labels(windows(), old, old.model_copy(update={"ecc_uncorrected": 3}))
    assert (found.severity, found.what) == ("invalidates", "1 uncorrected memory errors during the measurement")
    assert judged(windows(), whole().model_copy(update={"ecc": None})) == []
    assert judged(windows(), whole().model_copy(update={"ecc": False})) == [("note", "ECC is off", 1.0)]


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"sm_clock_hz": 1890e6}, "the SM clock was not held, SM clock 1,890–1,980 MHz, median 1,980"),
        ({"memory_clock_hz": 2619e6}, "the memory clock moved, 2,619–3,201 MHz, median 3,201"),
        ({"cpu_clock_hz": 2.4e9}, "the CPU clock moved, 2,400–3,000 MHz, median 3,000"),
    ],
)
def test_a_clock_that_moved_is_a_note_with_its_range(changed: dict[str, object], what: str) -> None:
    assert judged(windows(20, **changed)) == [("note", what, pytest.approx(0.05))]


def test_a_clock_that_hardly_moved_is_none() -> None:
    assert judged(windows(sm_clock_hz=1950e6, cpu_clock_hz=2.95e9)) == []


def test_a_clock_held_below_that_of_the_peaks_is_said() -> None:
    (found,) = judged(windows(), chip_clock_hz=1830e6)
    assert found[:2] == (
        "note",
        "the peaks are quoted at another clock, SM clock 1,980 MHz, 108 % of the 1,830 MHz of the datasheet's peaks",
    )
    assert judged(windows(), chip_clock_hz=1980e6) == []


@pytest.mark.parametrize(
    ("figure", "value", "severity", "what"),
    [
        ("steal_fraction", 0.005, None, ""),
        ("steal_fraction", 0.02, "warns", "the hypervisor took 2.00 % of the cores' time (steal)"),
        ("steal_fraction", 0.101, "invalidates", "the hypervisor took 10.1 %"),
        ("other_cores", 0.1, None, ""),
        ("other_cores", 0.4, "warns", "other work took 0.40 of 4 cores"),
        ("other_cores", 2.01, "invalidates", "other work took 2.01 of 4 cores"),
    ],
)
def test_a_disturbed_host_on_a_cpu(figure: str, value: float, severity: str | None, what: str) -> None:
    cpu = Window(start_s=0, duration_s=50, samples=3, cores=4, steal_fraction=0.0, other_cores=0.0)
    found = labels([cpu.model_copy(update={figure: value})] * 2, None, None)
    assert worst(found) == severity
    assert len(found) == (severity is not None) and all(label.what.startswith(what) for label in found)


def test_the_counters_ticks_are_nobody_s_work() -> None:
    short = Window(start_s=0, duration_s=0.04, samples=3, cores=4, steal_fraction=0.0, other_cores=1.9)
    assert host_labels([short]) == []  # 0.04 s are 4 ticks a core, of which two can be ours
    assert worst(host_labels([short] * 10)) == "warns"


def test_the_host_is_judged_by_its_mean_since_a_tick_is_coarse() -> None:
    cpu = Window(start_s=0, duration_s=0.5, samples=3, cores=1, other_cores=0.0)
    ticks = [cpu.model_copy(update={"other_cores": cores}) for cores in (0.2, -0.2)]
    assert labels(ticks, None, None) == ()
    (found,) = labels([cpu, cpu.model_copy(update={"other_cores": 0.6})], None, None)
    assert (found.severity, found.what, found.share) == ("warns", "other work took 0.30 of 1 cores", 0.5)


def test_what_is_not_known_on_a_cpu_is_not_missed() -> None:
    assert labels([Window(start_s=0, duration_s=1, samples=1)], None, None) == ()
    assert labels([], None, None) == ()


def test_the_worst_comes_first_and_is_the_severity_of_the_whole() -> None:
    taken = windows(event_reasons=POWER_CAP, steal_fraction=1.0, other_cores=79.0, cpu_clock_hz=2e9)
    severities = [severity for severity, _, _ in judged(taken)]
    assert severities == ["invalidates", "warns", "warns", "note"]
    assert worst(labels(taken, whole(), whole())) == "invalidates"
    assert worst([Label(severity="note", what="n", share=1), Label(severity="warns", what="w", share=1)]) == "warns"
    assert worst([]) is None


def test_the_share_of_others_is_of_the_cores_that_we_may_use() -> None:
    cpu = Window(start_s=0, duration_s=1, samples=3, cores=4, other_cores=1.0, steal_fraction=0.1)
    assert other_share([cpu]) == pytest.approx(0.25 + 0.1)
    assert other_share([cpu.model_copy(update={"other_cores": -0.9})]) == 0  # a tick that was not ours
    assert other_share([cpu.model_copy(update={"other_cores": None})]) is None and other_share([]) is None
