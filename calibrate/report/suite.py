"""The results of a suite of serving kernels: rows with intervals and shares of the device, and their report.

The unit of an interval is a fresh process. A share is the roofline's time ÷ the measured time, by the peaks that the
device reaches where they were measured, else by its datasheet. Nothing is hidden: a cold row that beats its roofline is
marked, and so is one whose predicted time its own calibration saw.

Example: ``suite_document(folder.run, suite_rows(results, spec), spec)``
"""

import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from calibrate.device.figures import FEWEST, center, coefficient_of_variation, interval
from calibrate.report.document import (
    FILES,
    TERMINAL,
    Cell,
    Column,
    Detail,
    Document,
    Facts,
    Figure,
    Lines,
    Part,
    Section,
    Text,
    figure,
    table,
)
from profiler.record.run import Run
from profiler.record.suite_table import WRONG, KernelId, KernelResult
from roofline.hardware.spec import HardwareSpec, Peaks, facts_of
from roofline.laws.work import arithmetic
from roofline.units import in_unit, number, percent, plus_minus, seconds

CLICK = "A point is a kernel; click it for its times and the command that repeats it."
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
    """What the roofline waits for: "compute" or "memory"."""
    predicted_s: float | None = None
    """By the calibrated law of its kind."""
    predicted: tuple[float, float] | None = None
    """90 % interval of that."""
    cache: str | None = None
    best: str = ""
    """"best" for the fastest provider of a kernel, "tied" where its interval holds the fastest's time."""
    labels: tuple[str, ...] = ()
    """What has to be known of its conditions, marks first."""
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


def _time(row: SuiteRow) -> Cell:
    if row.time_s is None:
        return Cell(row.status, row.status, bad=row.is_wrong)
    return Cell(seconds(row.time_s), row.time_s)


_COLUMNS: tuple[Column[SuiteRow], ...] = (
    Column("shape", lambda row: row.kernel.shape.replace(",", " "), words=True),
    Column("dtype", lambda row: row.kernel.dtype, words=True, drop=3),
    Column("provider", lambda row: row.kernel.provider, words=True),
    Column("time", _time, strong=True),
    Column("±", lambda row: plus_minus(row.low_s, row.high_s, row.time_s) if row.time_s else "", drop=4),
    Column("TFLOP/s", lambda row: _scaled(row.flops_per_s, 1e12), optional=True, drop=6),
    Column("GB/s", lambda row: _scaled(row.bytes_per_s, 1e9), drop=5),
    Column("roofline", lambda row: figure(row.share, percent) if row.share else ""),
    Column("predicted", lambda row: figure(row.predicted_s) if row.predicted_s else "", optional=True, drop=7),
    Column("÷ measured", lambda row: f"{row.ratio:.2f}" if row.ratio else "", optional=True, drop=2),
    Column("caches", lambda row: row.cache or "", optional=True, drop=8),
    Column("", lambda row: row.best, words=True, optional=True, drop=1),
    Column("repeat", lambda row: row.command, code=True, views=FILES),
)


def _scaled(rate: float | None, unit: float) -> Cell:
    return Cell("") if rate is None else Cell(f"{rate / unit:.3g}", rate)


@dataclass(frozen=True, slots=True)
class FamilyRow:
    """The kernels of one family together; times are of the fastest provider of each kernel."""

    family: str
    kernels: int
    right: int
    """Kernels × providers that passed."""
    wrong: int
    time_s: float
    roofline_s: float | None
    predicted_s: float | None
    """Sum over those kernels whose law is known, and their measured time."""
    priced_s: float
    spread: float | None
    """Median over kernels of the standard deviation between processes ÷ mean."""
    most: float | None
    """The largest of them."""


def family_rows(rows: Sequence[SuiteRow]) -> list[FamilyRow]:
    """One row for each family that has a time or something wrong."""
    families: dict[str, list[SuiteRow]] = {}
    for row in rows:
        families.setdefault(row.kernel.family, []).append(row)
    result = []
    for name, alike in families.items():
        timed = [row for row in alike if row.time_s is not None]
        best = [row for row in timed if row.best == "best"]
        marked = {(row.kernel.dtype, row.kernel.shape) for row in best}
        best += [row for row in timed if (row.kernel.dtype, row.kernel.shape) not in marked]
        spreads = [row.variation for row in timed if row.variation is not None]
        roofs = [row.roofline_s for row in best if row.roofline_s is not None]
        priced = [row for row in best if row.predicted_s is not None]
        wrong = sum(row.is_wrong for row in alike)
        if timed or wrong:
            result.append(
                FamilyRow(
                    name,
                    len({(row.kernel.dtype, row.kernel.shape) for row in alike}),
                    sum(row.status == "passed" for row in alike),
                    wrong,
                    sum(row.time_s or 0.0 for row in best),
                    sum(roofs) if roofs and len(roofs) == len(best) else None,
                    sum(row.predicted_s or 0.0 for row in priced) if priced else None,
                    sum(row.time_s or 0.0 for row in priced),
                    statistics.median(spreads) if spreads else None,
                    max(spreads, default=None),
                )
            )
    return result


_FAMILIES: tuple[Column[FamilyRow], ...] = (
    Column("family", lambda row: row.family, words=True),
    Column("shapes", lambda row: figure(row.kernels, number), drop=4),
    Column("right", lambda row: figure(row.right, number)),
    Column("wrong", lambda row: Cell(number(row.wrong), row.wrong, bad=row.wrong > 0)),
    Column("time", lambda row: figure(row.time_s) if row.time_s else "", strong=True),
    Column("roofline", lambda row: figure(row.roofline_s / row.time_s, percent) if row.roofline_s else ""),
    Column("law ÷ time", lambda row: f"{row.predicted_s / row.priced_s:.2f}" if row.predicted_s else "", optional=True),
    Column("spread", lambda row: figure(row.spread, percent) if row.spread is not None else "", drop=1),
    Column("at most", lambda row: figure(row.most, percent) if row.most is not None else "", drop=2),
)

_WORDS = {
    "time": "geometric mean over fresh processes of each one's median; ±: 90 % interval over processes",
    "roofline": "the device's roofline of the kernel's FLOPs and compulsory bytes ÷ its time",
    "spread": "standard deviation between fresh processes ÷ mean, the median over a family's kernels",
    "law ÷ time": "time by the calibrated law of the kernel's kind ÷ measured time",
}


def suite_document(run: Run, rows: Sequence[SuiteRow], spec: HardwareSpec | None) -> Document:
    """The report: what is wrong first, families together, then the kernels of each family."""
    passed = sum(row.status == "passed" for row in rows)
    wrong = [row for row in rows if row.is_wrong]
    absent: dict[str, int] = {}
    for row in rows:
        if row.status in ("not installed", "unsupported"):
            what = f"{row.kernel.family} {row.kernel.provider}: {row.status}: {row.reason}"
            absent[what] = absent.get(what, 0) + 1
    counted = f"{number(passed)} kernels passed, {number(len(wrong))} wrong or failed"
    left = f", {number(sum(absent.values()))} not run" if absent else ""
    plots = [
        Figure(f"suite-{name}", partial(_draw, name, rows, spec), note)
        for name, note in (("families", CLICK), ("roofline", ""))
    ]
    parts: list[Part] = [
        Text(f"{counted}{left}", "bad" if wrong else "strong"),
        Text(_shares_of(spec)),
        Lines([f"{row.kernel.key}: {row.status}: {row.reason}" for row in wrong], "Wrong or failed", tone="bad"),
        Section("Families", (*plots, table(_FAMILIES, family_rows(rows)), Facts(tuple(_WORDS.items()), "faint"))),
    ]
    families: dict[str, list[SuiteRow]] = {}
    for row in rows:
        if row.time_s is not None or row.is_wrong:
            families.setdefault(row.kernel.family, []).append(row)
    for family, alike in families.items():
        marks: dict[str, list[str]] = {}
        for row in alike:
            for label in row.labels[:1]:
                marks.setdefault(label, []).append(f"{row.kernel.provider} {row.kernel.dtype} {row.kernel.shape}")
        lines = [f"{label}: {_some(which)}" for label, which in marks.items()]
        parts.append(
            Section(
                family,
                (table(_COLUMNS, alike, details=list(map(_detail, alike))), Lines(lines, "Conditions", tone="warning")),
            )
        )
    if untimed := [row for row in rows if row.status == "passed" and row.time_s is None]:
        parts.append(Section("Checked, not timed", (Lines([row.kernel.key for row in untimed]),)))
    parts.append(Section("Not run", (Lines([_times(what, count) for what, count in absent.items()], tone="faint"),)))
    if timed := next((row for row in rows if row.time_s is not None), None):
        parts.append(Text(f"repeat a row: {timed.command}", "faint", TERMINAL))
    parts.append(Lines([f"note: {note}" for note in run.environment.notes], tone="warning"))
    versions = {name: version for row in rows for name, version in (row.versions or {}).items()}
    parts.append(Facts((("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),), "faint"))
    return Document(f"{run.environment.device}: serving kernels", parts)


def _draw(chart: str, rows: Sequence[SuiteRow], spec: HardwareSpec | None) -> Any:
    from calibrate.report import suite_plots  # plotly takes long to import, and only pages draw

    return getattr(suite_plots, chart)(rows, spec)


def _detail(row: SuiteRow) -> Detail:
    """What a page shows of one kernel after a click."""
    half = plus_minus(row.low_s, row.high_s, row.time_s) if row.time_s else ""
    roofline = f"{seconds(row.roofline_s)} ({row.bound}), {percent(row.share)} of the time" if row.roofline_s else ""
    facts = {
        "status": f"{row.status}: {row.reason}" if row.reason else row.status,
        "time": f"{seconds(row.time_s)} ± {half}" if row.time_s else "",
        "processes": ", ".join(map(seconds, row.replicates)),
        "roofline": roofline,
        "predicted": seconds(row.predicted_s) if row.predicted_s else "",
        "caches": row.cache or "",
        "of models": ", ".join(row.models),
        "conditions": "; ".join(row.labels),
    }
    shown = tuple((name, words) for name, words in facts.items() if words)
    return Detail(row.kernel.key, row.kernel.key, shown, command=row.command)


def _some(which: Sequence[str]) -> str:
    """The first of several names, and how many more there are."""
    return which[0] if len(which) == 1 else f"{which[0]} and {len(which) - 1} more"


def _times(what: str, count: int) -> str:
    return what if count == 1 else f"{what} ({count} shapes)"


def _shares_of(spec: HardwareSpec | None) -> str:
    if spec is None or (peaks := peaks_of(spec)) is None:
        return "shares of the roofline are not known: name the device with --hardware"
    origin = "peaks measured on this device" if spec.measured is not None else f"the datasheet of {spec.name}"
    rates = ", ".join(f"{name} {in_unit(rate.value, 'FLOP/s')}" for name, rate in peaks.matrix.items())
    return f"roofline: {origin}: {rates}; memory {in_unit(peaks.levels[-1].bandwidth.value, 'B/s')}"
