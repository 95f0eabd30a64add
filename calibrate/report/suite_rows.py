"""The rows of a suite of serving kernels: times with intervals, shares of the device's roofline, predicted times.

The unit of an interval is a fresh process. A share is the roofline's time ÷ the measured time, by the peaks that the
device reaches where they were measured, else by its datasheet. A cold row that beats its roofline is marked.

Example: ``suite_rows(read_suite_results(folder.path), folder.read_spec())``
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from calibrate.device.figures import FEWEST, center, coefficient_of_variation, interval
from profiler.record.suite_table import WRONG, KernelId, KernelResult
from roofline.hardware.spec import HardwareSpec, Peaks, facts_of
from roofline.laws.work import arithmetic
from roofline.units import percent

COLD_ABOVE = 1.0
"""Share of the roofline that a cold kernel cannot exceed."""


@dataclass(frozen=True, slots=True)
class SuiteRow:
    """One kernel, over all processes that it ran in."""

    kernel: KernelId
    status: str
    reason: str | None
    command: str
    """The command that repeats this row."""
    time_s: float | None = None
    """Geometric mean over processes of the median of each one's samples."""
    low_s: float | None = None
    high_s: float | None = None
    """90 % interval over processes; None with fewer than three of them."""
    replicates: tuple[float, ...] = ()
    """Seconds of each process, in the order they ran."""
    flops: float | None = None
    bytes: float | None = None
    roofline_s: float | None = None
    bound: str | None = None
    """The limit of the roofline: "compute" or "memory"."""
    predicted_s: float | None = None
    """By the calibrated law of its kind."""
    predicted: tuple[float, float] | None = None
    """90 % interval of that."""
    cache: str | None = None
    best: str = ""
    """"best" for the fastest provider of a kernel, "tied" where its interval holds the fastest's time."""
    labels: tuple[str, ...] = ()
    """Remarks on its conditions, marks first."""
    worst: float | None = None
    """Largest error ÷ tolerance."""
    tolerance: str | None = None
    models: tuple[str, ...] = ()
    versions: Mapping[str, str] | None = None

    @property
    def is_wrong(self) -> bool:
        """Whether the kernel must not be used."""
        return self.status in WRONG

    @property
    def flops_per_s(self) -> float | None:
        return self.flops / self.time_s if self.time_s and self.flops else None

    @property
    def bytes_per_s(self) -> float | None:
        return self.bytes / self.time_s if self.time_s and self.bytes else None

    @property
    def share(self) -> float | None:
        """Roofline ÷ measured time."""
        return self.roofline_s / self.time_s if self.time_s and self.roofline_s else None

    @property
    def ratio(self) -> float | None:
        """Predicted ÷ measured time."""
        return self.predicted_s / self.time_s if self.time_s and self.predicted_s else None

    @property
    def variation(self) -> float | None:
        """Standard deviation over processes ÷ mean."""
        return coefficient_of_variation(self.replicates) if len(self.replicates) > 1 else None


def suite_rows(results: Iterable[KernelResult], spec: HardwareSpec | None, device: str | None = None) -> list[SuiteRow]:
    """A row for each kernel, in the order of family, dtype and shape. `device`: of the command that repeats a row."""
    kernels: dict[str, list[KernelResult]] = {}
    for result in results:
        kernels.setdefault(result.kernel.key, []).append(result)
    rows = [_row(sorted(alike, key=lambda r: r.process), spec, device) for alike in kernels.values()]
    rows.sort(key=lambda row: (row.kernel.family, row.kernel.dtype, _sizes(row.kernel), row.kernel.provider))
    return _with_best(rows)


def _sizes(kernel: KernelId) -> tuple[int, ...]:
    return tuple(kernel.dims.values())


def _row(alike: Sequence[KernelResult], spec: HardwareSpec | None, device: str | None) -> SuiteRow:
    first = alike[0]
    bad = next((result for result in alike if result.check.status != "passed"), None)
    check = (bad or first).check
    row = SuiteRow(
        kernel=first.kernel,
        status=check.status,
        reason=check.reason,
        command=command(first, device),
        flops=first.flops,
        bytes=first.bytes,
        worst=max((r.check.worst for r in alike if r.check.worst is not None), default=None),
        tolerance=first.tolerance,
        models=first.models,
        versions=first.versions,
        labels=tuple(dict.fromkeys(note for result in alike for note in result.check.notes)),
    )
    times = tuple(result.time_s for result in alike if result.time_s is not None)
    if bad is not None or not times:
        return row
    ends = interval(times) if len(times) >= FEWEST else None
    timed = [result.measurement for result in alike if result.measurement is not None]
    caches = [measurement.cache for measurement in timed if measurement.cache is not None]
    labels = [label.what for measurement in timed for label in measurement.labels if label.severity != "note"]
    doubts = [f"{m.status}: {m.reason}" for m in timed if m.status != "done"][:1]
    row = replace(
        row,
        time_s=center(times),
        low_s=ends[0] if ends else None,
        high_s=ends[1] if ends else None,
        replicates=times,
        cache=caches[0].declared if caches else None,
        labels=tuple(dict.fromkeys([*doubts, *labels, *row.labels])),
    )
    if spec is None:
        return row
    row = _with_roofline(row, spec)
    row = _with_prediction(row, first, spec)
    if row.cache == "cold" and row.share is not None and row.share > COLD_ABOVE:
        mark = f"faster than its roofline ({percent(row.share)}): its operands were not cold, or the peaks are too low"
        row = replace(row, labels=(mark, *row.labels))
    return row


def peaks_of(spec: HardwareSpec) -> Peaks | None:
    """The peaks that shares are of: measured ones first."""
    return spec.measured or spec.datasheet


def _with_roofline(row: SuiteRow, spec: HardwareSpec) -> SuiteRow:
    peaks = peaks_of(spec)
    if peaks is None or row.flops is None or row.bytes is None:
        return row
    name = arithmetic(row.kernel.dtype, peaks.matrix)
    memory_s = row.bytes / peaks.levels[-1].bandwidth.value
    if row.flops and name not in peaks.matrix:
        return replace(
            row,
            roofline_s=memory_s,
            bound="memory",
            labels=(*row.labels, f"no peak of {name} is known: its roofline is memory alone"),
        )
    compute_s = row.flops / peaks.matrix[name].value if row.flops else 0.0
    return replace(row, roofline_s=max(compute_s, memory_s), bound="compute" if compute_s > memory_s else "memory")


def _with_prediction(row: SuiteRow, result: KernelResult, spec: HardwareSpec) -> SuiteRow:
    if result.law is None or not spec.calibrated:
        return row
    kind, sizes = result.law
    law = next((law for law in spec.calibrated if (law.kind, law.dtype) == (kind, row.kernel.dtype)), None)
    if law is None or not law.is_usable:
        return row
    dims = {**{name: np.array([size]) for name, size in sizes.items()}, **states(row.cache)}
    try:
        facts = facts_of(spec)
        low, high = (float(end[0]) for end in law.interval(dims, facts))
        return replace(row, predicted_s=float(law.time_s(dims, facts)[0]), predicted=(low, high))
    except (ValueError, KeyError):
        return row


def states(cache: str | None) -> dict[str, Any]:
    """The sizes of a law that say when a kernel ran: nothing else has touched the caches since its code ran."""
    return {"cold": np.array([1.0 if cache == "cold" else 0.0]), "reach": np.array([0.0])}


def _with_best(rows: Sequence[SuiteRow]) -> list[SuiteRow]:
    """Mark the fastest provider of each kernel that has several, and those that are as fast."""
    groups: dict[tuple[object, ...], list[SuiteRow]] = {}
    for row in rows:
        if row.time_s is not None:
            groups.setdefault((row.kernel.family, row.kernel.dtype, row.kernel.shape), []).append(row)
    marks: dict[str, str] = {}
    for alike in groups.values():
        if len(alike) > 1:
            fastest = min(alike, key=lambda row: row.time_s or 0.0)
            for row in alike:
                if row is fastest:
                    marks[row.kernel.key] = "best"
                elif row.low_s is not None and row.low_s <= (fastest.high_s or fastest.time_s or 0.0):
                    marks[row.kernel.key] = "tied"
    return [replace(row, best=marks.get(row.kernel.key, "")) for row in rows]


def command(result: KernelResult, device: str | None = None) -> str:
    """The command that repeats one row."""
    kernel = result.kernel
    words = ["--family", kernel.family, "--provider", kernel.provider, "--dtype", kernel.dtype]
    words += ["--shape", kernel.shape]
    words += ["--kernels", result.file] if result.file else []
    words += ["--device", device] if device else []
    return shlex.join(["python", "-m", "profiler", "kernels", *words])
