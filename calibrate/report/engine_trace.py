"""The report of engines' timelines, its JSON, and its table of kernels."""

import csv
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any, TextIO

from calibrate.report.document import Column, Document, Facts, Lines, Part, Section, Text, brief, figure, table
from profiler.record.engine_trace import (
    Closure,
    EngineTrace,
    KernelRow,
    LayerRow,
    ModuleRow,
    PartRow,
    StepRow,
    StreamRow,
    TraceRank,
)
from roofline.units import percent, seconds

UNKNOWN_KIND = "unknown"
WELL_CLASSIFIED = 0.97
"""Share of kernel time from which the kinds say where the time goes."""
FEW = 12
"""Rows of a table on a terminal."""

_NUMBER = re.compile(r"_\d+(?=/|$)")

_KINDS: tuple[Column[tuple[str, int, float, float]], ...] = (
    Column("kind", lambda row: row[0], words=True),
    Column("kernels", lambda row: f"{row[1]:,}"),
    Column("time", lambda row: figure(row[2]), strong=True),
    Column("share", lambda row: figure(row[3], percent)),
)
_STREAMS: tuple[Column[tuple[TraceRank, StreamRow]], ...] = (
    Column("stream", lambda row: str(row[1].stream)),
    Column("events", lambda row: f"{row[1].events:,}"),
    Column("busy", lambda row: figure(row[1].busy_s)),
)


def trace_document(trace: EngineTrace) -> Document:
    """Each device of each file by itself."""
    parts: list[Part] = []
    for rank in trace.ranks:
        inside = _rank_parts(rank, trace)
        parts += inside if len(trace.ranks) == 1 else [Section(_name(rank), inside)]
    return Document("Timeline of " + (_name(trace.ranks[0]) if len(trace.ranks) == 1 else _names(trace)), parts)


def trace_json(trace: EngineTrace) -> dict[str, Any]:
    """The record, with the shares that follow from it."""
    document: dict[str, Any] = trace.model_dump(mode="json")
    for rank, of in zip(document["ranks"], trace.ranks, strict=True):
        rank["idle"] = of.idle
        rank["closure"] |= {
            "window_s": of.closure.window_s, "classified": of.closure.classified,
            "attributed": of.closure.attributed, "unexplained": of.closure.unexplained,
        }  # fmt: skip
        for name in ("layers", "parts"):
            rank[name] = [row | {"error": one.error} for row, one in zip(rank[name], getattr(of, name), strict=True)]
        rank["kinds"] = [
            {"kind": kind, "kernels": count, "total_s": total, "share": share}
            for kind, count, total, share in kinds(of)
        ]
    return document


def write_trace_csv(trace: EngineTrace, file: TextIO) -> None:
    """A row for each kernel of each device; open a file on disk with ``newline=""``."""
    writer = csv.writer(file)
    writer.writerow(["file", "device", *KernelRow.model_fields])
    for rank in trace.ranks:
        for row in rank.kernels:
            writer.writerow([_cell(value) for value in (rank.file, rank.device, *row.model_dump().values())])


def kinds(rank: TraceRank) -> list[tuple[str, int, float, float]]:
    """Kind, kernels, seconds and share of the kernel time in the window, the longest first."""
    counts: dict[str, int] = defaultdict(int)
    totals: dict[str, float] = defaultdict(float)
    for row in rank.kernels:
        counts[row.kind or UNKNOWN_KIND] += row.calls - row.outside
        totals[row.kind or UNKNOWN_KIND] += row.total_s - row.outside_s
    whole = rank.closure.window_s
    rows = [(kind, counts[kind], totals[kind], totals[kind] / whole if whole else 0.0) for kind in totals]
    return sorted((row for row in rows if row[1]), key=lambda row: -row[2])


def _rank_parts(rank: TraceRank, trace: EngineTrace) -> list[Part]:
    closure = rank.closure
    unknown = [row for row in rank.kernels if row.kind is None]
    parts: list[Part] = [
        Text(f"{seconds(closure.window_s)} of kernels in {seconds(rank.span_s)}, {percent(rank.idle)} idle", "strong"),
        Lines(rank.left_out, tone="warning"),
        Facts(_facts(rank)),
        Section("Closure", (table(_CLOSURE, _closure_rows(closure)),)),
    ]
    if closure.classified < WELL_CLASSIFIED:
        worst = ", ".join(f"{row.name[:60]} ({seconds(row.total_s)})" for row in unknown[:3])
        parts.insert(1, Text(f"{percent(1 - closure.classified)} of kernel time has no known kind: {worst}", "warning"))
    parts.append(Section("Kinds of kernels", (table(_KINDS, kinds(rank)),)))
    if rank.steps:
        source = rank.steps[0].source
        between = f", {seconds(rank.between_steps_s)} of kernels between them" if rank.between_steps_s else ""
        title = f"{len(rank.steps)} of {source}{between}"
        parts.append(Section("Steps", (Text(title), *brief(_STEPS, rank.steps[:FEW], rank.steps))))
    if rank.parts:
        parts.append(
            Section(f"Steps, measured against {trace.model} on {trace.hardware}", (table(_PARTS, rank.parts),))
        )
    if rank.layers:
        parts.append(Section(f"Layers, measured against {trace.hardware}", _layer_parts(rank)))
    modules = _by_class(rank.modules)
    if modules and not rank.layers:
        columns = _modules(closure.window_s)
        parts.append(Section("Modules", brief(columns, modules[:FEW], modules)))
    columns_of_kernels = _kernels(closure.kernel_s)
    parts.append(Section("Kernels", brief(columns_of_kernels, rank.kernels[:FEW], rank.kernels)))
    if len(rank.streams) > 1:
        parts.append(Section("Streams", (table(_STREAMS, [(rank, stream) for stream in rank.streams]),)))
    return parts


def _layer_parts(rank: TraceRank) -> list[Part]:
    """How much of the window has a price and how far that is off, before the layers."""
    priced_s, by_law_s, predicted_s, off = priced(rank)
    whole_s = rank.closure.window_s
    words = f"{percent(priced_s / whole_s if whole_s else 0.0)} of the window's kernel time has a price"
    if predicted_s and priced_s:
        words += (
            f": predicted {seconds(predicted_s)}, measured {seconds(priced_s)} "
            f"({percent(predicted_s / priced_s - 1, signed=True)}); laws give {percent(by_law_s / predicted_s)} of the "
            "prediction, the datasheet the rest"
        )
    lines: list[Part] = [Text(words)]
    if off is not None:
        lines.append(Text(f"median error of the layers: {percent(off)}"))
    return [*lines, *brief(_LAYERS, rank.layers[:FEW], rank.layers)]


def priced(rank: TraceRank) -> tuple[float, float, float, float | None]:
    """Seconds of kernels with a price, of those of the prediction by laws and in all, and the median absolute error of
    the layers."""
    of = [row for row in rank.layers if row.predicted_s is not None]
    errors = [abs(row.error) for row in of if row.error is not None]
    return (
        sum(row.measured_s - row.unpriced_s for row in of), sum(row.by_law_s for row in of),
        sum(row.predicted_s or 0.0 for row in of), statistics.median(errors) if errors else None,
    )  # fmt: skip


_PARTS: tuple[Column[PartRow], ...] = (
    Column("part", lambda row: row.part, words=True),
    Column("measured", lambda row: figure(row.measured_s), strong=True),
    Column("predicted", lambda row: figure(row.predicted_s)),
    Column("error", lambda row: figure(row.error, partial(percent, signed=True))),
)
_LAYERS: tuple[Column[LayerRow], ...] = (
    Column("layer", lambda row: row.path, code=True),
    Column("calls", lambda row: f"{row.calls:,}", drop=3),
    Column("measured", lambda row: figure(row.measured_s), strong=True),
    Column("no price", lambda row: figure(row.unpriced_s or None), optional=True, drop=2),
    Column("predicted", lambda row: figure(row.predicted_s)),
    Column("error", lambda row: figure(row.error, partial(percent, signed=True))),
    Column("at peaks", lambda row: figure(row.ideal_s), drop=2),
    Column("bound", lambda row: row.bound, words=True, drop=4),
    Column("priced by", lambda row: row.source, words=True, drop=1),
)


def _facts(rank: TraceRank) -> list[tuple[str, str]]:
    rows = [("busy", seconds(rank.busy_s)), ("computing", seconds(rank.compute_s))]
    if rank.exposed_collective_s:
        rows.append(("collectives that nothing hides", seconds(rank.exposed_collective_s)))
    if rank.exposed_memory_s:
        rows.append(("copies that nothing hides", seconds(rank.exposed_memory_s)))
    return rows


_CLOSURE: tuple[Column[tuple[str, float, float, str]], ...] = (
    Column("part", lambda row: row[0], words=True),
    Column("time", lambda row: figure(row[1]), strong=True),
    Column("share", lambda row: figure(row[2], percent)),
    Column("of", lambda row: row[3], words=True, drop=1),
)


def _closure_rows(closure: Closure) -> list[tuple[str, float, float, str]]:
    def row(name: str, part_s: float, whole_s: float, of: str) -> tuple[str, float, float, str]:
        return name, part_s, part_s / whole_s if whole_s else 0.0, of

    whole, window = closure.kernel_s, closure.window_s
    rows = [
        row("classified by name", closure.classified_s, whole, f"{closure.kernels:,} kernels"),
        row("classified by operator", closure.by_operator_s, whole, f"{closure.kernels:,} kernels"),
        row("launched before the window", closure.outside_s, whole, f"{closure.outside:,} kernels, left out below"),
        row("in modules", closure.module_s, window, "the window"),
        row("in operators alone", closure.operator_s, window, "the window"),
        row("in graph launches", closure.graph_s, window, "the window"),
        row("unexplained", closure.unexplained_s, window, "the window"),
    ]
    return [one for one in rows if one[1] or one[0] in ("classified by name", "unexplained")]


_STEPS: tuple[Column[StepRow], ...] = (
    Column("step", lambda row: row.name, code=True),
    Column("kernels", lambda row: f"{row.kernels:,}"),
    Column("time", lambda row: figure(row.kernel_s), strong=True),
    Column("span", lambda row: figure(row.span_s)),
    Column("idle", lambda row: figure(1 - row.busy_s / row.span_s if row.span_s else 0.0, percent), drop=1),
    Column("host", lambda row: figure(row.host_s), optional=True, drop=2),
)


def _kernels(whole_s: float) -> tuple[Column[KernelRow], ...]:
    return (
        Column("kernel", lambda row: row.name, code=True),
        Column("kind", lambda row: row.kind or UNKNOWN_KIND, words=True),
        Column("family", lambda row: row.family, words=True, optional=True, drop=2),
        Column("calls", lambda row: f"{row.calls:,}", drop=1),
        Column("median", lambda row: figure(row.median_s), drop=3),
        Column("time", lambda row: figure(row.total_s), strong=True),
        Column("share", lambda row: figure(row.total_s / whole_s if whole_s else 0.0, percent)),
    )


def _modules(whole_s: float) -> tuple[Column[tuple[str, int, int, float, float]], ...]:
    return (
        Column("module", lambda row: row[0], code=True),
        Column("paths", lambda row: f"{row[1]:,}", drop=2),
        Column("kernels", lambda row: f"{row[2]:,}", drop=1),
        Column("own time", lambda row: figure(row[3]), drop=3),
        Column("time", lambda row: figure(row[4]), strong=True),
        Column("share", lambda row: figure(row[4] / whole_s if whole_s else 0.0, percent)),
    )


def _by_class(modules: Sequence[ModuleRow]) -> list[tuple[str, int, int, float, float]]:
    """Modules of one class at one place together: path without numbers, paths, kernels, own and whole seconds."""
    rows: dict[str, list[float]] = {}
    for module in modules:
        row = rows.setdefault(_NUMBER.sub("", module.path), [0, 0, 0.0, 0.0])
        for i, value in enumerate((1, module.kernels, module.own_s, module.total_s)):
            row[i] += value
    return [(path, int(row[0]), int(row[1]), row[2], row[3]) for path, row in rows.items()]


def _name(rank: TraceRank) -> str:
    return f"{rank.file}, device {rank.device}"


def _names(trace: EngineTrace) -> str:
    files = {rank.file for rank in trace.ranks}
    return f"{len(trace.ranks)} devices in {len(files)} file{'s' if len(files) > 1 else ''}"


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: names come from a file of others (OWASP, "CSV Injection")."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
