"""The report of a suite of serving kernels: what is wrong, families together, each family's rows; as JSON and CSV too.

Example: ``suite_document(folder.run, suite_rows(results, spec), spec)``
"""

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from calibrate.report.document import (
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
    chart,
    figure,
    table,
)
from calibrate.report.suite_rows import SuiteRow, peaks_of
from profiler.record.run import Run
from roofline.hardware.spec import HardwareSpec
from roofline.units import in_unit, number, percent, plus_minus, seconds

CLICK = "A point is a kernel; click it for its times and the command that repeats it."


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
    Column("repeat", lambda row: row.command, code=True, views=frozenset({"markdown"})),
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
        Figure(f"suite-{name}", chart(f"suite_plots.{name}", rows, spec), note)
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


def _detail(row: SuiteRow) -> Detail:
    """Return what a page shows of one kernel after a click."""
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


def suite_json(path: str, run: Run, rows: Sequence[SuiteRow], spec: HardwareSpec | None) -> dict[str, Any]:
    """All rows, with the figures of each process."""
    peaks = peaks_of(spec) if spec is not None else None
    return {
        "run": path,
        "device": run.environment.device,
        "started": run.started,
        "finished": run.finished,
        "versions": dict(run.environment.versions),
        "warnings": list(run.environment.notes),
        "peaks": None
        if peaks is None or spec is None
        else {
            "source": "measured" if spec.measured is not None else "datasheet",
            "matrix_flops_per_s": {name: rate.value for name, rate in peaks.matrix.items()},
            "memory_bytes_per_s": peaks.levels[-1].bandwidth.value,
        },
        "families": [_plain_family(row) for row in family_rows(rows)],
        "rows": [_plain(row) for row in rows],
    }


def _plain(row: SuiteRow) -> dict[str, Any]:
    return {
        "family": row.kernel.family,
        "provider": row.kernel.provider,
        "dtype": row.kernel.dtype,
        "dims": dict(row.kernel.dims),
        "status": row.status,
        "reason": row.reason,
        "time_s": row.time_s,
        "low_s": row.low_s,
        "high_s": row.high_s,
        "replicates_s": list(row.replicates),
        "variation": row.variation,
        "flops": row.flops,
        "bytes": row.bytes,
        "flops_per_s": row.flops_per_s,
        "bytes_per_s": row.bytes_per_s,
        "roofline_s": row.roofline_s,
        "bound": row.bound,
        "share": row.share,
        "predicted_s": row.predicted_s,
        "predicted_interval_s": list(row.predicted) if row.predicted else None,
        "predicted_ratio": row.ratio,
        "cache": row.cache,
        "best": row.best == "best",
        "tied": row.best == "tied",
        "labels": list(row.labels),
        "worst_error": row.worst,
        "tolerance": row.tolerance,
        "models": list(row.models),
        "versions": dict(row.versions or {}),
        "command": row.command,
    }


def _plain_family(row: FamilyRow) -> dict[str, Any]:
    return {
        "family": row.family,
        "shapes": row.kernels,
        "right": row.right,
        "wrong": row.wrong,
        "time_s": row.time_s,
        "roofline_s": row.roofline_s,
        "predicted_s": row.predicted_s,
        "predicted_time_s": row.priced_s,
        "spread": row.spread,
        "most_spread": row.most,
    }


def write_suite_csv(rows: Sequence[SuiteRow], file: TextIO) -> None:
    """One line a kernel; lists are joined by spaces."""
    writer = csv.writer(file, lineterminator="\n")
    plain = [_plain(row) | {"dims": row.kernel.shape} for row in rows]
    names = list(_plain(rows[0])) if rows else ["family"]
    writer.writerow(names)
    for row in plain:
        writer.writerow([_csv(row[name]) for name in names])


def _csv(value: Any) -> Any:
    if isinstance(value, dict):
        return " ".join(f"{name}={part}" for name, part in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else "" if value is None else value
