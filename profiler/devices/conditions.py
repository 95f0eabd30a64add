"""The conditions that spoil a measurement: one table of them, and the rules over a measurement's windows.

`doctor` makes a `Finding` of each condition that holds on the machine at rest (`findings`), a measurement a `Label` of
each that held while its samples were taken, with its share of the time. Both take severities and thresholds from here:

- "note": worth knowing when figures are compared; nothing needs to be done,
- "warns": figures are usable, with more noise or a lower peak than the device can give,
- "invalidates": what is measured is not this device's speed; `doctor` exits with 4.

Example: ``worst(device_labels(windows, before, after))`` is "invalidates" where a result must not be used
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

from profiler.devices.watch import GpuReading
from profiler.record.measurement import Label, Severity, Window
from roofline.record import Record
from roofline.units import percent, whole_percent

ORDER: tuple[Severity, ...] = ("invalidates", "warns", "note")

OTHERS_WARN, OTHERS_INVALIDATE = 0.05, 0.5
"""Cores' worth of foreign CPU time ÷ cores. A parallel operation waits for its slowest thread, so that one part in 20
taken from one core already shows in a 5 % closure; at one half the scheduler's share is what is measured."""
STEAL_WARN, STEAL_INVALIDATE = 0.01, 0.10
"""Fraction of all cores' time: 1 % is the size of a regression that is looked for, 10 % twice the closure's
tolerance."""
SLOWED_SHARE = 0.05
"""Share of the time. A slowdown in less of it moves neither a median nor, at half the clock, a sum by more than the 5 %
that a closure allows."""
CLOCK_MOVED = 0.02
"""(Highest − lowest) ÷ highest. A matmul's time follows the clock, and the sampler stops at an interval this wide."""
TICK_S = 0.02
"""A core's busy time is counted in ticks of 10 ms, of which one at each end of a measurement can be another's."""
LEAST_S = 1e-9
"""A window's weight where its clock did not move."""


class Condition(NamedTuple):
    """One thing that spoils a measurement."""

    severity: Severity
    why: str
    """The reason why the condition matters, in one line."""
    mend: str
    """The remedy, in one line; words in braces are filled in."""


WAITS = "an operation waits for its slowest thread, so that time taken from one core is lost on all of them"
SLOWER = "the same kernels take longer than on a device that is not held back"
HEAT = "check the cooling, and let the device cool down"
UNSEEN = "a disturbance that is not seen cannot be told from the device's own speed"
COMPARE = "compare only with runs that have it so"

CONDITIONS: Mapping[str, Condition] = {
    # The host
    "other work": Condition("warns", WAITS, "stop it, or measure when it is done"),
    "steal": Condition("warns", WAITS, "use a machine with dedicated cores, or measure at another time"),
    "load": Condition("note", "other work may go on while you measure", "wait until it falls if the work is not yours"),
    "threads > cores": Condition("invalidates", "threads take turns on a core and wait for each other",
                                 "set OMP_NUM_THREADS={cores}"),
    "threads > physical": Condition("warns", "two SMT siblings share the arithmetic units of one core",
                                    "set OMP_NUM_THREADS={cores}"),
    "threads < cores": Condition("note", "the other cores do nothing, so that peaks are lower than they could be",
                                 "set OMP_NUM_THREADS={cores} to use them all"),
    "affinity": Condition("note", "peaks and bandwidths are those of a part of the machine",
                          "compare only with runs on as many; taskset or the container's cpuset widens it"),
    "cpu quota": Condition("warns", "threads are stopped in the middle of a pass once the quota is used up",
                           "raise the quota, or set OMP_NUM_THREADS={cores} and pin as many cores"),
    "governor": Condition("warns", "the clock rises and falls with the load, and times with it",
                          "cpupower frequency-set -g performance"),
    "boost": Condition("note", "a boosted clock depends on heat and on how many cores work; without it peaks are lower",
                       COMPARE + "; cpufreq/boost or intel_pstate/no_turbo in sysfs sets it"),
    "virtual": Condition("note", "cores, caches and clocks are what the hypervisor says, and neighbours share them",
                         "read its figures with care, and compare only with machines of the same type"),
    "numa": Condition("warns", "memory on another node is slower, and each start may place it differently",
                      "pin threads and memory to one node: numactl --cpunodebind=0 --membind=0"),
    "numa, accelerator": Condition("note", "transfers and launches are slower from a node far from the device",
                                   "pin to its node (nvidia-smi topo -m): numactl --cpunodebind=N --membind=N"),
    "huge pages": Condition("note", "large tensors lie on small pages, which costs bandwidth", COMPARE + "; {how}"),
    "memory limit": Condition("note", "a process beyond the limit is killed", "choose models that fit, or raise it"),
    "swapped": Condition("warns", "what is swapped out is read from disk when it is used",
                         "free memory and start again"),
    "swapping": Condition("warns", "memory is short: an access may wait for the disk", "free memory, or swapoff -a"),
    "host unread": Condition("note", UNSEEN, "run on Linux with /proc and /sys visible for all checks"),
    # An NVIDIA GPU; why its driver holds the clock down is in `REASONS`
    "foreign, idle": Condition("warns", "they hold memory and may begin to work at any time",
                               "stop them: nvidia-smi lists them"),
    "foreign, busy": Condition("invalidates", "their kernels take turns with those that are measured",
                               "stop them: nvidia-smi lists them"),
    "mig": Condition("warns", "this is a slice of the device, and the datasheet is the whole one's",
                     "measure a whole GPU"),
    "memory in use": Condition("warns", "models that would fit may not, and its owner may still work",
                               "free it: a process that ended badly may hold it (nvidia-smi, fuser -v /dev/nvidia*)"),
    "prohibited": Condition("invalidates", "no process may use CUDA on this GPU", "nvidia-smi -c DEFAULT"),
    "exclusive": Condition("note", "two processes cannot use the GPU at once",
                           "nvidia-smi -c DEFAULT where both sides of a comparison run at once"),
    "ecc off": Condition("note", "without error correction memory is somewhat faster and larger",
                         "compare only with runs without it; nvidia-smi -e 1 turns it on after a reset"),
    "memory errors": Condition("invalidates", "results may be wrong, and the device is failing",
                               "reset or replace the GPU"),
    "remapped": Condition("note", "spare rows stand for rows that failed, and more may follow",
                          "compare its memory with that of its sisters: campaign fleet"),
    "clock": Condition("note", "times follow the clock, which is free to move",
                       "to compare runs closely, hold it: nvidia-smi -lgc MHZ"),
    "persistence": Condition("note", "the first call waits until the driver has loaded", "nvidia-smi -pm 1"),
    "hot": Condition("warns", "under load it will soon slow down for heat", HEAT),
    "power limit": Condition("warns", "under load the clock falls lower than at the default limit",
                             "nvidia-smi -pl {watts:.0f}"),
    "gpu unread": Condition("note", UNSEEN, "nothing, if the GPU or the container forbids it"),
    "nvml": Condition("warns", "clocks, power, heat and other processes are not seen while one measures",
                      "install the driver's NVML library"),
    "driver lost": Condition("warns", UNSEEN, "restart the driver and measure again"),
    "unseen": Condition("warns", UNSEEN, "allow this user to read the driver's figures"),
    # Settings and software
    "disk": Condition("warns", "a run takes megabytes and a campaign hundreds: results may be lost",
                      "free some space, or choose another folder with --results"),
    "versions": Condition("warns", "results with other versions have not been checked",
                          "python -m pip install '{requirement}'"),
    "not installed": Condition("note", "the versions of what it needs are not checked",
                               "python -m pip install -c constraints.txt -e ."),
    "mkl threads": Condition("warns", "matrix products run on another number of cores than everything else",
                             "unset it, and set OMP_NUM_THREADS alone"),
}  # fmt: skip


class Reason(NamedTuple):
    """A reason why an NVIDIA driver or GPU holds the clock down, with its bit of nvmlClocksEventReason* (nvml.h)."""

    bit: int
    what: str
    severity: Severity
    mend: str


POWER_CAP, APPLICATION_CLOCKS = 0x04, 0x02
REASONS: tuple[Reason, ...] = (
    Reason(POWER_CAP, "the power cap holds the clock down", "warns", "raise it: nvidia-smi -pl WATTS"),
    Reason(0x08, "hardware slowdown (heat, power brake or supply)", "invalidates", "check cooling and power supply"),
    Reason(0x20, "the driver slows the clock for heat", "invalidates", HEAT),
    Reason(0x40, "hardware thermal slowdown", "invalidates", HEAT),
    Reason(0x80, "the power brake is asserted", "invalidates", "check the power supply"),
    Reason(APPLICATION_CLOCKS, "an application clock is set", "note", "reset it: nvidia-smi -rac"),
    Reason(0x10, "sync boost ties the clock to other GPUs", "warns", "take this GPU out of its sync boost group"),
)
"""A power cap is how a GPU works at its limit, so it takes nothing away. Heat and a power brake make a time another
device's; they invalidate where they held for more than `SLOWED_SHARE`."""


class Finding(Record):
    """A condition that `doctor` found."""

    severity: Severity
    what: str
    """The condition that was found, with its figure, in one line."""
    why: str
    """The reason why the condition matters, in one line."""
    mend: str
    """The remedy, in one line."""
    passing: bool = False
    """Whether it may end by itself, so that waiting helps."""


PASSING = frozenset({"other work", "steal", "swapping", "foreign, busy", "hot"})
"""Conditions that may end by themselves."""


def finding(name: str, what: str, severity: Severity | None = None, **words: object) -> Finding:
    """The finding of a row of `CONDITIONS`, of its own severity where none is given; `words` fill in its texts."""
    row = CONDITIONS[name]
    why, mend = row.why.format(**words), row.mend.format(**words)
    return Finding(severity=severity or row.severity, what=what, why=why, mend=mend, passing=name in PASSING)


def _label(name: str, what: str, share: float, severity: Severity | None = None) -> Label:
    return Label(severity=severity or CONDITIONS[name].severity, what=what, share=share)


def graded(value: float, warns: float, invalidates: float) -> Severity | None:
    """The severity of a figure: above the first threshold it warns, from the second one on it invalidates."""
    return "invalidates" if value >= invalidates else "warns" if value > warns else None


def device_labels(
    windows: Sequence[Window],
    before: GpuReading | None = None,
    after: GpuReading | None = None,
    *,
    chip_clock_hz: float | None = None,
) -> list[Label]:
    """Labels of the device.

    `before` and `after` are readings of the GPU around the measurement, None on a CPU or without NVML; `chip_clock_hz`
    is the SM clock for which the datasheet's peaks are quoted.
    """
    reasons = list(_reasons(windows, chip_clock_hz))
    return [
        *reasons,
        *_foreign(windows, mig=before is not None and bool(before.mig)),
        *_device(before, after),
        *_unknown(windows, before),
        *(() if reasons else _sm_clock_moved(windows, chip_clock_hz)),  # a reason has the range with it
        *_other_clocks(windows),
    ]


def host_labels(windows: Sequence[Window]) -> list[Label]:
    """Return labels of processor time that others took: means over the measurement, less what counters cannot tell."""
    duration_s = sum(window.duration_s for window in windows)
    unsure = TICK_S / duration_s if duration_s else 1.0  # of each core's time
    steal, others = _mean(windows, lambda window: window.steal_fraction), _mean(windows, _others)
    host = []
    if steal is not None and (severity := graded(steal - unsure, STEAL_WARN, STEAL_INVALIDATE)):
        share = _share(windows, lambda window: (window.steal_fraction or 0) > STEAL_WARN)
        what = f"the hypervisor took {percent(steal)} of the cores' time (steal)"
        host.append(_label("steal", what, share, severity))
    if others is not None and (severity := graded(others - unsure, OTHERS_WARN, OTHERS_INVALIDATE)):
        cores = next(window.cores for window in windows if window.cores)
        share = _share(windows, lambda window: (_others(window) or 0) > OTHERS_WARN)
        host.append(_label("other work", f"other work took {others * cores:.2f} of {cores} cores", share, severity))
    return host


def worst(judged: Iterable[Label | Finding]) -> Severity | None:
    """The severity of the whole; None where nothing was found."""
    return min((label.severity for label in judged), key=ORDER.index, default=None)


def other_share(windows: Sequence[Window]) -> float | None:
    """Fraction of the usable cores' time that others and a hypervisor took; None where unknown."""
    taken = _mean(
        windows,
        lambda window: None if (others := _others(window)) is None else others + (window.steal_fraction or 0.0),
    )
    return None if taken is None else max(0.0, taken)


def _reasons(windows: Sequence[Window], chip_clock_hz: float | None) -> Iterable[Label]:
    """Yield why the driver or hardware held the clock down; shares are of the time in which the reasons are known."""
    known = [window for window in windows if window.event_reasons is not None]
    for bit, meaning, severity, _ in REASONS:
        share = _share(known, lambda window, bit=bit: bool((window.event_reasons or 0) & bit))  # type: ignore[misc]
        if share:
            what = "power cap" if bit == POWER_CAP else meaning
            what += f" in {whole_percent(share)} of the time{_sm_clock(windows, chip_clock_hz)}"
            neglected = severity == "invalidates" and share <= SLOWED_SHARE
            yield Label(severity="warns" if neglected else severity, what=what, share=share)


def _sm_clock(windows: Sequence[Window], chip_clock_hz: float | None) -> str:
    """ ", SM clock 1,410–1,980 MHz, median 1,605", or nothing where it is not known."""
    clocks = [window.sm_clock_hz for window in windows if window.sm_clock_hz is not None]
    if not clocks:
        return ""
    median = statistics.median(clocks)
    text = f", SM clock {_megahertz(clocks)}" + (f", median {median / 1e6:,.0f}" if len(set(clocks)) > 1 else "")
    if chip_clock_hz is not None:
        share = whole_percent(median / chip_clock_hz)
        text += f", {share} of the {chip_clock_hz / 1e6:,.0f} MHz of the datasheet's peaks"
    return text


def _foreign(windows: Sequence[Window], mig: bool) -> Iterable[Label]:
    """Other processes; on a slice the driver may list those of other slices."""
    if mig or not (share := _share(windows, lambda window: bool(window.foreign))):
        return
    names = ", ".join(dict.fromkeys(name for window in windows for name in window.foreign or ()))
    present = [window for window in windows if window.foreign]
    known = [window.foreign_utilization for window in present if window.foreign_utilization is not None]
    what = f"other processes on the GPU ({names}) in {whole_percent(share)} of the time"
    if known and max(known) > 0:
        yield _label("foreign, busy", f"{what}, which used up to {whole_percent(max(known))}", share)
    else:
        idle = ", idle" if len(known) == len(present) else "; whether they worked is not known"
        yield _label("foreign, idle", what + idle, share)


def _device(before: GpuReading | None, after: GpuReading | None) -> Iterable[Label]:
    """Yield the labels of a whole measurement that follow from the readings before and after it."""
    if before is None:
        return
    if before.mig:
        yield _label("mig", "MIG: a slice of the device, while clocks and power are the whole one's", 1.0)
    if before.ecc is False:
        yield _label("ecc off", "ECC is off", 1.0)
    if after is None:
        yield _label("driver lost", "the driver no longer answered after the measurement", 1.0)
    elif before.ecc_uncorrected is not None and (after.ecc_uncorrected or 0) > before.ecc_uncorrected:
        errors = (after.ecc_uncorrected or 0) - before.ecc_uncorrected
        yield _label("memory errors", f"{errors} uncorrected memory errors during the measurement", 1.0)


def _unknown(windows: Sequence[Window], before: GpuReading | None) -> Iterable[Label]:
    """Yield labels of time in which a throttled clock or a foreign process on a GPU would not have been seen."""
    if before is None and all(window.event_reasons is None for window in windows):
        return
    for what, is_unknown in (
        ("whether the clock was throttled", lambda window: window.event_reasons is None),
        ("whether other processes used the GPU", lambda window: window.foreign is None),
    ):
        if share := _share(windows, is_unknown):
            yield _label("unseen", f"{what} is not known in {whole_percent(share)} of the time", share)


def _sm_clock_moved(windows: Sequence[Window], chip_clock_hz: float | None) -> Iterable[Label]:
    """An SM clock that moved, or that was held elsewhere than where the datasheet's peaks are quoted."""
    clocks = [window.sm_clock_hz for window in windows if window.sm_clock_hz is not None]
    text = _sm_clock(windows, chip_clock_hz)
    if clocks and _moved(clocks):
        share = _off_median(windows, attrgetter("sm_clock_hz"))
        yield _label("clock", f"the SM clock was not held{text}", share)
    elif clocks and chip_clock_hz is not None and _moved([statistics.median(clocks), chip_clock_hz]):
        yield _label("clock", f"the peaks are quoted at another clock{text}", 1.0)


def _other_clocks(windows: Sequence[Window]) -> Iterable[Label]:
    """Clocks of the GPU's memory and of the CPU that moved."""
    for name, figure in (("memory", attrgetter("memory_clock_hz")), ("CPU", attrgetter("cpu_clock_hz"))):
        values = [value for value in map(figure, windows) if value is not None]
        if values and _moved(values):
            what = f"the {name} clock moved, {_megahertz(values)}, median {statistics.median(values) / 1e6:,.0f}"
            yield _label("clock", what, _off_median(windows, figure))


def _others(window: Window) -> float | None:
    """Fraction of the cores that others took."""
    return None if window.other_cores is None or window.cores is None else window.other_cores / window.cores


def _weight(window: Window) -> float:
    return window.duration_s or LEAST_S


def _share(windows: Sequence[Window], holds: Callable[[Window], bool]) -> float:
    """Fraction of the windows' time in which it holds; 0 without windows."""
    total = sum(map(_weight, windows))
    return min(1.0, sum(_weight(window) for window in windows if holds(window)) / total) if windows else 0.0


def _mean(windows: Sequence[Window], figure: Callable[[Window], float | None]) -> float | None:
    """Mean weighted by time, over the windows in which it is known."""
    known = [(value, _weight(window)) for window in windows if (value := figure(window)) is not None]
    return sum(v * w for v, w in known) / sum(w for _, w in known) if known else None


def _off_median(windows: Sequence[Window], figure: Callable[[Window], float | None]) -> float:
    """Fraction of the known time in which a clock was further from its median than may be neglected."""
    known = [window for window in windows if figure(window) is not None]
    median = statistics.median(figure(window) or 0.0 for window in known)
    return _share(known, lambda window: abs((figure(window) or 0.0) - median) > CLOCK_MOVED * median)


def _moved(values: Sequence[float]) -> bool:
    return max(values) - min(values) > CLOCK_MOVED * max(values)


def _megahertz(values: Sequence[float]) -> str:
    low, high = f"{min(values) / 1e6:,.0f}", f"{max(values) / 1e6:,.0f}"
    return f"{low} MHz" if low == high else f"{low}–{high} MHz"
