"""The tables of a run: the device's peaks, its layer kinds, and what a page shows of one after a click."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from calibrate.passes.pass_report import FusedKernel, PassReport
from calibrate.passes.reports import MeasuredPass
from calibrate.report import document
from calibrate.report import run_rows as rows
from calibrate.report.document import Cell, Column, Detail, Lines, Part, Section, Table, Text, figure, table
from calibrate.report.run_rows import LayerRow
from profiler.record.run import Cell as PassCell
from roofline.hardware.spec import Figure, HardwareSpec, Peaks
from roofline.laws.fitted import FittedLaw
from roofline.laws.kinds import HOST_GAP, OPERATOR
from roofline.record import Record
from roofline.units import UNKNOWN, dtype, in_unit, magnitude, number, percent, plus_minus, ratio, seconds

USUAL = {"attn": "default", "experts": "default", "cache": "dynamic", "weights": "random"}
"""What `run` does where an option is not given."""
MOST_KERNELS = 20
"""Compiled kernels that a terminal shows at most."""


def half(low: float | None, high: float | None, of: float | None) -> Cell:
    """Half an interval as a share of its value."""
    return Cell(plus_minus(low, high, of or 0.0), rows.half_width(low, high))


def error(predicted_s: float | None, measured_s: float | None) -> Cell:
    """Predicted less measured time, as a share of the measured one."""
    if predicted_s is None or not measured_s:
        return Cell(UNKNOWN)
    share = predicted_s / measured_s - 1
    return Cell(percent(share, signed=True), share)


def _repeat(row: LayerRow) -> Cell:
    if row.median_s is None:
        return Cell("")
    spread = "" if row.spread_s is None or not row.median_s else f" ± {percent(row.spread_s / row.median_s)}"
    return Cell(seconds(row.median_s) + spread, row.median_s)


LAYER_COLUMNS: tuple[Column[LayerRow], ...] = (
    Column("layer kind", lambda row: row.label, code=True),
    Column("kind", lambda row: row.kind, words=True, drop=4),
    Column("×", lambda row: figure(row.count, number), drop=11),
    Column("time", lambda row: figure(row.time_s), strong=True, drop=1),
    Column("±", lambda row: half(row.time_s_low, row.time_s_high, row.time_s), drop=6),
    Column("share", lambda row: Cell(percent(row.share), row.share, fill=row.share if row.kind else None), drop=15),
    Column("ideal", lambda row: replace(figure(row.ideal_s), bad=row.ideal_above_predicted), drop=7),
    Column("predicted", lambda row: figure(row.predicted_s), drop=2),
    Column("predicted ±", lambda row: half(row.predicted_s_low, row.predicted_s_high, row.predicted_s), drop=12),
    Column("error", lambda row: error(row.predicted_s, row.time_s), drop=3),
    Column("efficiency", lambda row: Cell(rows.efficiency(row), row.efficiency, bad=row.above_one), drop=5),
    Column("bound", lambda row: row.bound, words=True, drop=14),
    Column("FLOP/s", lambda row: figure(row.flops_per_s, magnitude), drop=10),
    Column("bytes/s", lambda row: figure(row.bytes_per_s, magnitude), drop=9),
    Column("per repeat", _repeat, drop=13),
    Column("kernels", lambda row: ", ".join(row.kernels), wraps=True, optional=True, views=document.FILES),
)


def layer_tables(report: PassReport, measured: MeasuredPass | None) -> tuple[Table, ...]:
    """The slowest layer kinds on a terminal, and all of them in a file; `measured` has the operations of the pass."""
    every = rows.layer_rows(report)
    few = rows.fold(every, report.wall_s)
    command = "" if measured is None else command_of(measured.result.cell)
    ran = {} if measured is None else _operations(measured)
    details = [_detail(report, row, command, ran.get(row.key, ())) for row in every]
    return document.brief(
        LAYER_COLUMNS, few, every, rows.busy_row(report), details=details, groups=_groups(every, report.wall_s)
    )


def command_of(cell: PassCell) -> str:
    """The command that measures a pass again."""
    asked = cell.workload
    sizes = {"prefill": [("--prompt", asked.query_tokens)], "decode": [("--context", asked.context_tokens)]}
    both = [("--prompt", asked.query_tokens), ("--context", asked.context_tokens)]
    options: list[tuple[str, object]] = [("--phase", asked.phase), ("--batch", asked.batch)]
    options += [*sizes.get(asked.phase, both), ("--dtype", asked.dtype)]
    options += [(f"--{name}", getattr(cell, name)) for name, usual in USUAL.items() if getattr(cell, name) != usual]
    options += [("--layers", cell.layers)] if cell.layers else []
    words = [cell.model, *(str(word) for option in options for word in option)]
    words += ["--compile"] * cell.is_compiled + ["--cuda-graph"] * cell.is_graph
    return shlex.join(["python", "-m", "profiler", "run", *words])


def _groups(every: Sequence[LayerRow], wall_s: float) -> list[tuple[LayerRow, list[int]]]:
    """The layer kinds of each module together; a module's own operations stand with what is in it."""
    members: dict[str, list[int]] = {}
    for i, row in enumerate(every):
        members.setdefault(_module(row.path), []).append(i)
    if len(members) == len(every):
        return []
    return [(rows.total_row([every[i] for i in places], wall_s, path or "(model)"), places)
            for path, places in members.items()]  # fmt: skip


def _module(path: str) -> str:
    """The module just inside the repeated layer: "model.layers.*.mlp"; the first part of a path outside of one."""
    parts = path.split(".")
    return ".".join(parts[: parts.index("*") + 2]) if "*" in parts else parts[0]


def _operations(measured: MeasuredPass) -> dict[str, list[str]]:
    """The operations of each layer kind, alike ones together, each with its sizes, its time and its kernels."""
    alike: dict[tuple[str, str, tuple[tuple[str, int], ...]], list[int]] = {}
    for i, op in enumerate(measured.graph.ops):
        alike.setdefault((rows.key_of(op.path, op.kind.value), op.name, tuple(op.dims.items())), []).append(i)
    ran: dict[str, list[str]] = {}
    for (key, name, dims), ops in alike.items():
        count = sum(measured.graph.ops[i].count for i in ops)
        time_s = float(sum(measured.table.measured_s[i] * measured.graph.ops[i].count for i in ops))
        kernels = dict.fromkeys(kernel for i in ops for kernel in measured.table.kernels[i])
        sizes = ", ".join(f"{dim} {size}" for dim, size in dims)
        by = f", by {', '.join(kernels)}" if kernels else ""
        ran.setdefault(key, []).append(f"{name} ({sizes}) × {number(count)}: {seconds(time_s)}{by}")
    return ran


def _detail(report: PassReport, row: LayerRow, command: str, ran: Sequence[str]) -> Detail:
    terms = rows.waterfall_rows(row.waterfall, row.time_s) if row.waterfall else ()
    bars = [(term.label, term.time_s, seconds(term.time_s, signed=True)) for term in terms if term.time_s is not None]
    wall = "" if row.waterfall is None else seconds(row.time_s + row.waterfall.idle)
    facts = {
        "measured": f"{seconds(row.time_s)} in {number(row.count)} executions, {percent(row.share)} of the wall time",
        "predicted": seconds(row.predicted_s),
        "ideal": f"{seconds(row.ideal_s)}, efficiency {rows.efficiency(row)}",
        "bound": row.bound,
        "with its idle time": wall,
    }
    compiled = [
        f"{kernel.name} × {number(kernel.count)}: {seconds(kernel.measured_s)}"
        for kernel in report.kernels
        if row.path in kernel.modules and row.kind in kernel.kinds
    ]
    shown = tuple((name, words) for name, words in facts.items() if words)
    return Detail(row.key, f"{row.label} {row.kind}", shown, bars, compiled or ran or row.kernels, command)


def layer_terms(report: PassReport) -> Table:
    """The waterfall of each layer kind, a row each."""
    labels, lines = rows.layer_terms(report)
    columns: list[Column[Any]] = [
        Column("layer kind", lambda line: line[0], code=True),
        Column("kind", lambda line: line[1], words=True),
    ]
    columns += [
        Column(label, lambda line, i=i: Cell(seconds(line[2][i], signed=True), line[2][i]))  # type: ignore[misc]
        for i, label in enumerate(labels)
    ]
    return document.table(columns, lines)


def compiled_kernels(report: PassReport) -> Section:
    """The kernels of a compiled pass: which modules each came from, and what it took."""
    columns: tuple[Column[FusedKernel], ...] = (
        Column("kernel", lambda kernel: kernel.name, code=True),
        Column("from", lambda kernel: rows.fold_modules(kernel.modules), code=True),
        Column("×", lambda kernel: figure(kernel.count, number), drop=2),
        Column("time", lambda kernel: figure(kernel.measured_s), strong=True),
        Column("share", lambda kernel: figure(ratio(kernel.measured_s, report.wall_s), percent), drop=1),
        Column("roofline", lambda kernel: figure(kernel.predicted_s), drop=3),
    )
    few = [
        kernel for kernel in report.kernels[:MOST_KERNELS] if kernel.measured_s >= rows.SMALLEST_SHARE * report.wall_s
    ]
    return Section("Compiled kernels", document.brief(columns, few, report.kernels))


Unit = Literal["FLOP/s", "B/s", "s"]

STEADY_WITHIN = 0.5
"""(high − low) ÷ value; above it other work slowed some samples: a quiet machine repeats itself to percents."""


class PeakRow(Record):
    """One rate of the device, by origin."""

    name: str
    unit: Unit
    datasheet: Figure | None
    measured: Figure | None

    def shows(self, value: float | None) -> str:
        return in_unit(value, self.unit)

    def interval(self) -> str:
        """5–95 % range of the measurement's samples, "–" where there is none."""
        if self.spread is None or self.measured is None:
            return UNKNOWN
        return f"{self.shows(self.measured.low)} to {self.shows(self.measured.high)}"

    @property
    def of_datasheet(self) -> float | None:
        return self.measured.value / self.datasheet.value if self.measured and self.datasheet else None

    @property
    def spread(self) -> float | None:
        """(high − low) ÷ value of the measurement."""
        figure = self.measured
        if figure is None or figure.low is None or figure.high is None:
            return None
        return (figure.high - figure.low) / figure.value


PEAK_COLUMNS: tuple[Column[PeakRow], ...] = (
    Column("peak", lambda row: row.name, words=True),
    Column("datasheet", lambda row: row.shows(row.datasheet.value if row.datasheet else None)),
    Column("achieved", lambda row: row.shows(row.measured.value if row.measured else None), strong=True),
    Column("5–95 % of samples", lambda row: row.interval(), optional=True, drop=1),
    Column("of datasheet", lambda row: percent(row.of_datasheet), optional=True, drop=2),
    Column("source of the datasheet", lambda row: row.datasheet.source if row.datasheet else UNKNOWN,
           wraps=True, optional=True, views=document.FILES),
    Column("how it was achieved", lambda row: row.measured.source if row.measured else UNKNOWN,
           wraps=True, optional=True, views=document.FILES),
)  # fmt: skip


def peak_parts(spec: HardwareSpec) -> tuple[Part, ...]:
    """The peaks of a device, how sure they are, what is missing, and the laws it was calibrated to."""
    known = peak_rows(spec)
    reasons = {name: " ".join(reason.split()).removeprefix("RuntimeError: ") for name, reason in spec.missing.items()}
    missing = [f"missing or doubtful: {name}: {reason}" for name, reason in reasons.items()]
    none = "No peaks of this device are known: neither a datasheet nor a measurement."
    return (
        Text("" if known else none),
        table(PEAK_COLUMNS, known),
        Text(unsteady(known), "warning"),
        Lines(missing, tone="faint"),
        Text(laws(spec) or ""),
    )


def peak_rows(spec: HardwareSpec) -> tuple[PeakRow, ...]:
    """Every rate of the device, datasheet beside measured."""
    datasheet, measured = _figures(spec.datasheet), _figures(spec.measured)
    units = get_args(Unit)
    return tuple(
        PeakRow(name=name, unit=unit, datasheet=datasheet.get((unit, name)), measured=measured.get((unit, name)))
        for unit, name in sorted({**datasheet, **measured}, key=lambda key: units.index(key[0]))
    )


def laws(spec: HardwareSpec) -> str | None:
    """A sentence on the calibrated laws and their errors on groups that a fit had not seen; None without laws."""
    if not spec.calibrated:
        return None
    kinds: dict[str, list[FittedLaw]] = {}
    for law in spec.calibrated:
        kinds.setdefault("streaming operators" if law.kind.startswith(OPERATOR) else law.kind, []).append(law)
    errors = {}
    for kind, alike in kinds.items():
        unseen = [law.unseen for law in alike if law.unseen is not None and kind != HOST_GAP]  # no kernel
        errors[kind.replace("_", " ")] = sum(unseen) / len(unseen) if unseen else None
    listed = ", ".join(f"{kind} {percent(error)}" for kind, error in errors.items())
    old = sorted({law.kind.replace("_", " ") for law in spec.calibrated if law.is_outdated})
    again = f"; calibrate again for {', '.join(old)}: an older roofcal fitted other laws" if old else ""
    return f"{len(spec.calibrated)} calibrated laws; mean error on kernels held out from the fit: {listed}{again}"


def unsteady(rows: Sequence[PeakRow]) -> str:
    """A warning where the samples of a figure vary much; else ""."""
    wide = [f"{row.name} by {percent(row.spread)}" for row in rows if (row.spread or 0.0) > STEADY_WITHIN]
    if not wide:
        return ""
    reason = "other work, or a clock that changes; measure again on a quiet machine"
    return f"samples of the peaks vary ({', '.join(wide)}): {reason}"


def _figures(peaks: Peaks | None) -> dict[tuple[Unit, str], Figure]:
    if peaks is None:
        return {}
    figures: dict[tuple[Unit, str], Figure] = {
        **{("FLOP/s", f"matrix {dtype(name)}"): figure for name, figure in peaks.matrix.items()},
        **{("FLOP/s", f"vector {dtype(name)}"): figure for name, figure in peaks.vector.items()},
        **{("B/s", level.name): level.bandwidth for level in peaks.levels},
    }
    if peaks.host_s_per_op is not None:
        figures["s", "host per operation"] = peaks.host_s_per_op
    return figures
