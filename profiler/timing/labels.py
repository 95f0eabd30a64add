"""What the conditions of a measurement mean for its result: pure rules over its windows and the readings around it.

A power cap is how a GPU works at its limit, so it is a label and takes nothing away. Heat, a power brake, foreign work
and memory errors make a time another device's; they invalidate where they held for more than can be neglected.
Thresholds and reasons are those of `profiler.findings`, which looks at the machine at rest.

Example: ``worst(labels(windows, before, after))`` is "invalidates" where the result must not be used
"""

import statistics
from collections.abc import Callable, Iterable, Sequence

from profiler.findings.gpu import POWER_CAP, REASONS
from profiler.findings.host import OTHERS_INVALIDATE, OTHERS_WARN, STEAL_INVALIDATE, STEAL_WARN
from profiler.nvml import GpuReading
from profiler.record.measurement import Label, Severity, Window

SLOWED_SHARE = 0.05
"""Of the time. A slowdown in less of it moves neither a median nor, at half the clock, a sum by more than the 5 % that
a closure allows."""
CLOCK_MOVED = 0.02
"""(Highest − lowest) ÷ highest. A matmul's time follows the clock, and the sampler stops at an interval this wide."""
TICK_S = 0.02
"""A core's busy time is counted in ticks of 10 ms, of which one at each end of a measurement can be another's."""
LEAST_S = 1e-9
"""A window's weight where its clock did not move."""

ORDER: tuple[Severity, ...] = ("invalidates", "warns", "note")


def labels(
    windows: Sequence[Window],
    before: GpuReading | None,
    after: GpuReading | None,
    *,
    chip_clock_hz: float | None = None,
) -> tuple[Label, ...]:
    """Labels of a measurement, the worst first.

    `before` and `after` are readings of the GPU around it, None on a CPU or without NVML; `chip_clock_hz` is the SM
    clock for which the datasheet's peaks are quoted.
    """
    found = [*device_labels(windows, before, after, chip_clock_hz=chip_clock_hz), *host_labels(windows)]
    return tuple(sorted(found, key=lambda label: ORDER.index(label.severity)))


def device_labels(
    windows: Sequence[Window],
    before: GpuReading | None = None,
    after: GpuReading | None = None,
    *,
    chip_clock_hz: float | None = None,
) -> list[Label]:
    """Labels of the device alone; arguments as of `labels`."""
    reasons = _reasons(windows, chip_clock_hz)
    return [
        *reasons,
        *_foreign(windows, mig=before is not None and bool(before.mig)),
        *_device(before, after),
        *_unknown(windows, before),
        *([] if reasons else _sm_clock_moved(windows, chip_clock_hz)),  # a reason has the range with it
        *_other_clocks(windows),
    ]


def worst(found: Iterable[Label]) -> Severity | None:
    """The severity of the whole; None without labels."""
    return min((label.severity for label in found), key=ORDER.index, default=None)


def _reasons(windows: Sequence[Window], chip_clock_hz: float | None) -> list[Label]:
    """Why the driver or the hardware held the clock down; shares are of the time in which that is known."""
    known = [window for window in windows if window.event_reasons is not None]
    found = []
    for bit, meaning, severity, _ in REASONS:
        share = _share(known, _reason_is(bit))
        if share == 0:
            continue
        what = "power cap" if bit == POWER_CAP else meaning
        neglected = severity == "invalidates" and share <= SLOWED_SHARE
        found.append(
            Label(
                severity="warns" if neglected else severity,
                what=f"{what} in {_percent(share)} of the time{_sm_clock(windows, chip_clock_hz)}",
                share=share,
            )
        )
    return found


def _reason_is(bit: int) -> Callable[[Window], bool]:
    return lambda window: bool((window.event_reasons or 0) & bit)


def _sm_clock(windows: Sequence[Window], chip_clock_hz: float | None) -> str:
    """ ", SM clock 1,410–1,980 MHz, median 1,605", or nothing where it is not known."""
    clocks = [window.sm_clock_hz for window in windows if window.sm_clock_hz is not None]
    if not clocks:
        return ""
    median = statistics.median(clocks)
    text = f", SM clock {_megahertz(clocks)}" + (f", median {median / 1e6:,.0f}" if len(set(clocks)) > 1 else "")
    if chip_clock_hz is not None:
        text += f", {_percent(median / chip_clock_hz)} of the {chip_clock_hz / 1e6:,.0f} MHz of the datasheet's peaks"
    return text


def _foreign(windows: Sequence[Window], mig: bool) -> list[Label]:
    """Other processes; on a slice the driver may list those of other slices."""
    if mig or not (share := _share(windows, lambda window: bool(window.foreign))):
        return []
    names = ", ".join(dict.fromkeys(name for window in windows for name in window.foreign or ()))
    present = [window for window in windows if window.foreign]
    known = [window.foreign_utilization for window in present if window.foreign_utilization is not None]
    what = f"other processes on the GPU ({names}) in {_percent(share)} of the time"
    if known and max(known) > 0:
        return [Label(severity="invalidates", what=f"{what}, which used up to {_percent(max(known))}", share=share)]
    idle = len(known) == len(present)
    return [
        Label(severity="warns", what=what + (", idle" if idle else "; whether they worked is not known"), share=share)
    ]


def _device(before: GpuReading | None, after: GpuReading | None) -> list[Label]:
    found = []

    def add(severity: Severity, what: str) -> None:
        found.append(Label(severity=severity, what=what, share=1.0))

    if before is None:
        return []
    if before.mig:
        add("warns", "MIG: a slice of the device, while clocks and power are the whole one's")
    if before.ecc is False:
        add("note", "ECC is off")
    if after is None:
        add("warns", "the driver no longer answered after the measurement")
    elif before.ecc_uncorrected is not None and (after.ecc_uncorrected or 0) > before.ecc_uncorrected:
        grown = (after.ecc_uncorrected or 0) - before.ecc_uncorrected
        add("invalidates", f"{grown} uncorrected memory errors during the measurement")
    return found


def _unknown(windows: Sequence[Window], before: GpuReading | None) -> list[Label]:
    """On a GPU, time in which a throttled clock or a foreign process would not have been seen."""
    if before is None and all(window.event_reasons is None for window in windows):
        return []
    found = []
    for what, is_unknown in (
        ("whether the clock was throttled", lambda window: window.event_reasons is None),
        ("whether other processes used the GPU", lambda window: window.foreign is None),
    ):
        if share := _share(windows, is_unknown):
            text = f"{what} is not known in {_percent(share)} of the time"
            found.append(Label(severity="warns", what=text, share=share))
    return found


def _sm_clock_moved(windows: Sequence[Window], chip_clock_hz: float | None) -> list[Label]:
    """An SM clock that moved, or that was held elsewhere than where the datasheet's peaks are quoted."""
    clocks = [window.sm_clock_hz for window in windows if window.sm_clock_hz is not None]
    if clocks and _moved(clocks):
        what = f"the SM clock was not held{_sm_clock(windows, chip_clock_hz)}"
        return [Label(severity="note", what=what, share=_off_median(windows, lambda window: window.sm_clock_hz))]
    if clocks and chip_clock_hz is not None and _moved([statistics.median(clocks), chip_clock_hz]):
        what = f"the peaks are quoted at another clock{_sm_clock(windows, chip_clock_hz)}"
        return [Label(severity="note", what=what, share=1.0)]
    return []


def _other_clocks(windows: Sequence[Window]) -> list[Label]:
    """Of the GPU's memory and of the CPU."""
    figures: dict[str, Callable[[Window], float | None]] = {
        "memory": lambda window: window.memory_clock_hz,
        "CPU": lambda window: window.cpu_clock_hz,
    }
    found = []
    for name, figure in figures.items():
        values = [value for window in windows if (value := figure(window)) is not None]
        if values and _moved(values):
            what = f"the {name} clock moved, {_megahertz(values)}, median {statistics.median(values) / 1e6:,.0f}"
            found.append(Label(severity="note", what=what, share=_off_median(windows, figure)))
    return found


def host_labels(windows: Sequence[Window]) -> list[Label]:
    """What others took of the host's processors: means over the measurement, less what its counters cannot tell."""
    found = []
    duration_s = sum(window.duration_s for window in windows)
    unsure = TICK_S / duration_s if duration_s else 1.0  # of each core's time
    steal = _mean(windows, lambda window: window.steal_fraction)
    if steal is not None and steal - unsure > STEAL_WARN:
        found.append(
            Label(
                severity="invalidates" if steal - unsure >= STEAL_INVALIDATE else "warns",
                what=f"the hypervisor took {100 * steal:.1f} % of the cores' time (steal)",
                share=_share(windows, lambda window: (window.steal_fraction or 0) > STEAL_WARN),
            )
        )
    others = _mean(windows, _others)
    if others is not None and others - unsure > OTHERS_WARN:
        cores = next(window.cores for window in windows if window.cores)
        found.append(
            Label(
                severity="invalidates" if others - unsure >= OTHERS_INVALIDATE else "warns",
                what=f"other work took {others * cores:.2f} of {cores} cores",
                share=_share(windows, lambda window: (_others(window) or 0) > OTHERS_WARN),
            )
        )
    return found


def other_share(windows: Sequence[Window]) -> float | None:
    """Of the time of the cores that this process may use, what others and a hypervisor took; None where unknown."""
    found = _mean(
        windows,
        lambda window: None if (others := _others(window)) is None else others + (window.steal_fraction or 0.0),
    )
    return None if found is None else max(0.0, found)


def _others(window: Window) -> float | None:
    """Fraction of the cores that others took."""
    return None if window.other_cores is None or window.cores is None else window.other_cores / window.cores


def _weight(window: Window) -> float:
    return window.duration_s or LEAST_S


def _share(windows: Sequence[Window], holds: Callable[[Window], bool]) -> float:
    """Of the windows' time, that in which it holds; 0 without windows."""
    total = sum(map(_weight, windows))
    return min(1.0, sum(_weight(window) for window in windows if holds(window)) / total) if windows else 0.0


def _mean(windows: Sequence[Window], figure: Callable[[Window], float | None]) -> float | None:
    """Weighted by time, over the windows in which it is known."""
    known = [(value, _weight(window)) for window in windows if (value := figure(window)) is not None]
    return sum(v * w for v, w in known) / sum(w for _, w in known) if known else None


def _off_median(windows: Sequence[Window], figure: Callable[[Window], float | None]) -> float:
    """Of the time in which it is known, that in which a clock was further from its median than may be neglected."""
    known = [window for window in windows if figure(window) is not None]
    median = statistics.median(figure(window) or 0.0 for window in known)
    return _share(known, lambda window: abs((figure(window) or 0.0) - median) > CLOCK_MOVED * median)


def _moved(values: Sequence[float]) -> bool:
    return max(values) - min(values) > CLOCK_MOVED * max(values)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %" if fraction >= 0.01 else "less than 1 %"


def _megahertz(values: Sequence[float]) -> str:
    low, high = f"{min(values) / 1e6:,.0f}", f"{max(values) / 1e6:,.0f}"
    return f"{low} MHz" if low == high else f"{low}–{high} MHz"
